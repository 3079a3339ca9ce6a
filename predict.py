"""Estimate brain ages of raw or prepared scans with weights that are ready."""

import sys
from typing import Any

from utils.errors import run_command, user_errors
from utils.options import prediction_parser


def main() -> None:
    args = prediction_parser().parse_args()
    # Imported here, so that --help and wrong flags answer at once.
    import torch
    from tqdm import tqdm

    from model.building import load_network
    from model.cascade import Cascade
    from utils import distributed, prediction
    from utils.dataset import ScanDataset, collate, to_device
    from utils.engine import predict
    from utils.files import check_writable
    from utils.metrics import INTERVAL_COVERAGE, interval_radius
    from utils.preprocessing_jobs import RawFile, Settings, preprocess_all
    from utils.scans import ScanStore
    from utils.stages import FirstStage
    from utils.weights import DEFAULT_FOLDER, load_reference, load_weights

    check_writable(args.output_dir)
    folder = args.weights_dir or DEFAULT_FOLDER
    manifest, members = load_weights(folder)
    reference = load_reference(folder)
    with user_errors(str(folder)):
        networks = [(load_network(first, 1), load_network(second, 2)) for first, second in members]
    scans = prediction.find_scans(args.input)
    prediction.add_labels(scans, args.label_table, args.sex)
    made = manifest["preprocessing"]
    raw = {scan.name: scan for scan in scans if not scan.prepared}
    if raw:
        prepared = args.output_dir / "preprocessed"
        settings = Settings(prepared, made["registration"] if made else "nonlinear", args.device, False, False)
        files = [RawFile(scan.name, scan.source) for scan in raw.values()]
        prediction.add_records(raw, preprocess_all(files, settings, 0, args.timeout), prepared)
    prediction.add_preparation(scans, made)
    prediction.add_training(scans, manifest["training_persons"])
    if manifest["normalization"] == "native_sd":
        prediction.add_registered(scans)
    device = distributed.start(args.device)
    store = ScanStore(manifest["voxel_size"], manifest["normalization"], None, 0, measure_after=True)
    usable = prediction.check_scans(scans, store)
    prediction.add_sharpness(usable, manifest["sharpness_range"])
    prediction.add_voxel_sizes(usable, manifest.get("native_voxel_sizes"))
    radius = interval_radius(manifest["out_of_fold_errors"], INTERVAL_COVERAGE)
    if usable:
        network = Cascade(networks, manifest["age_interval"]).to(device)
        dataset = ScanDataset([scan.subject for scan in usable], store)
        ages = predict(network, FirstStage(), dataset, args, device, "brain age")["brain_age"]
        prediction.add_ages(usable, ages, manifest["age_range"])
    prediction.write_table(args.output_dir / "predictions.csv", scans, radius)
    for scan in tqdm(usable, "pictures", unit="scan", disable=None, leave=False):
        prediction.draw_scan(args.output_dir / "pictures" / f"{scan.name}.png", scan, radius, manifest["age_range"])
    if args.explain != "none" and usable:
        from utils.explaining import explain

        reference = reference.to(device)
        folded: Any = network.folded()
        folded = folded.to(memory_format=torch.channels_last_3d)
        for index, scan in enumerate(tqdm(usable, "maps", unit="scan", disable=None, leave=False)):
            batch = to_device(collate([dataset[index]]), device)
            values = explain(folded, batch["volume"], reference, batch["sex"], args.explain, manifest["voxel_size"])
            prediction.write_map(args.output_dir / "maps", scan, values.cpu().numpy(), manifest["voxel_size"])
    print("\n".join(prediction.describe(scans, radius)))
    print(f"table: {args.output_dir / 'predictions.csv'}   pictures: {args.output_dir / 'pictures'}")
    sys.exit(0 if len(usable) == len(scans) else 1)


if __name__ == "__main__":
    run_command(main)
