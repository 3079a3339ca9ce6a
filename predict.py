"""Estimate brain ages of raw or prepared scans with trained weights."""

import sys

from utils.common.errors import run_command, user_errors
from utils.options.prediction import prediction_parser


def main() -> None:
    args = prediction_parser().parse_args()
    # Imported here, so that --help and wrong flags answer at once.
    import torch
    from tqdm import tqdm

    from model.building import load_network
    from model.cascade import Cascade
    from utils.common import distributed
    from utils.common.files import check_writable
    from utils.data.dataset import ScanDataset, collate, to_device
    from utils.data.scans import ScanStore
    from utils.evaluation.metrics import INTERVAL_COVERAGE, interval_radius
    from utils.evaluation.predicting import predict
    from utils.prediction import scan_ages
    from utils.prediction.pictures import draw_scan, write_map
    from utils.prediction.weights import load_reference, load_weights
    from utils.preparation.preprocessing_jobs import RawFile, Settings, preprocess_all
    from utils.training.stages import FirstStage

    check_writable(args.output_dir)
    manifest, members = load_weights(args.weights_dir)
    reference = load_reference(args.weights_dir)
    with user_errors(str(args.weights_dir)):
        stages = [(load_network(first, 1), load_network(second, 2)) for first, second in members]
    scans = scan_ages.find_scans(args.input)
    scan_ages.add_labels(scans, args.label_table, args.sex)
    scan_ages.add_verdicts(scans)
    raw = {scan.name: scan for scan in scans if not scan.prepared and not scan.failure}
    if raw:
        made = next(filter(None, manifest["preprocessing"]), {"registration": "nonlinear"})
        prepared = args.output_dir / "preprocessed"
        settings = Settings(prepared, made["registration"], args.device, False, False)
        files = [RawFile(scan.name, scan.source) for scan in raw.values()]
        scan_ages.add_records(raw, preprocess_all(files, settings, 0, args.timeout), prepared)
    device = distributed.start(args.device)
    network = Cascade(stages, manifest["age_interval"]).to(device)
    store = ScanStore(manifest["voxel_size"], manifest["normalization"])
    usable = scan_ages.check_scans(scans, store)
    scan_ages.add_preparation(usable, manifest["preprocessing"])
    scan_ages.add_training(usable, manifest["training_persons"])
    dataset = ScanDataset([scan.subject for scan in usable], store)
    if usable:
        ages = predict(
            network, FirstStage(), dataset, device, batch_size=args.batch_size, num_workers=args.num_workers,
            precision=args.precision, label="brain age",
        )["brain_age"]  # fmt: skip
        radius = interval_radius(manifest["out_of_fold_errors"], INTERVAL_COVERAGE)
        scan_ages.add_ages(usable, ages, radius, manifest["age_range"])
    scan_ages.write_table(args.output_dir / "predictions.csv", scans)
    for scan in tqdm(usable, "pictures", unit="scan", disable=None, leave=False):
        draw_scan(args.output_dir / "pictures" / f"{scan.name}.png", scan)
    if args.explain != "none":
        from utils.prediction.explaining import explain

        folded, reference, voxel_size = network.folded(), reference.to(device), manifest["voxel_size"]
        folded.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        for index, scan in enumerate(tqdm(usable, "maps", unit="scan", disable=None, leave=False)):
            batch = to_device(collate([dataset[index]]), device)
            values = explain(folded, batch["volume"], reference, batch["sex"], args.explain, voxel_size)
            write_map(args.output_dir / "maps", scan, values.cpu().numpy(), voxel_size)
    print("\n".join(scan_ages.describe(scans)))
    print(f"table: {args.output_dir / 'predictions.csv'}   pictures: {args.output_dir / 'pictures'}")
    sys.exit(0 if len(usable) == len(scans) else 1)


if __name__ == "__main__":
    run_command(main)
