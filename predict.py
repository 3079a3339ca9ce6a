"""Estimate brain ages of raw or prepared scans with trained weights."""

import sys

from utils.common.errors import run_command, user_errors
from utils.options.prediction import prediction_parser


def main() -> None:
    args = prediction_parser().parse_args()
    # Imported here, so that --help and wrong flags answer at once.
    from tqdm import tqdm

    from model.building import load_network
    from model.cascade import Cascade
    from utils.common import distributed
    from utils.common.files import check_writable
    from utils.data.dataset import ScanDataset
    from utils.data.scans import ScanStore
    from utils.evaluation.metrics import INTERVAL_COVERAGE, interval_radius
    from utils.evaluation.predicting import predict
    from utils.prediction import scan_ages
    from utils.prediction.pictures import draw_scan
    from utils.prediction.weights import load_mean_volume, load_weights
    from utils.training.stages import FirstStage

    check_writable(args.output_dir)
    manifest, members = load_weights(args.weights_dir)
    mean_volume = load_mean_volume(args.weights_dir)
    with user_errors(str(args.weights_dir)):
        stages = [(load_network(first, 1), load_network(second, 2)) for first, second in members]
    scans = scan_ages.find_scans(args.input)
    scan_ages.add_labels(scans, args.label_table, args.sex)
    scan_ages.add_verdicts(scans)
    scan_ages.preprocess(scans, args.output_dir / "preprocessed", manifest["preprocessing"], args.device, args.timeout)
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
        from utils.prediction.explaining import write_maps

        write_maps(args.output_dir / "maps", network, usable, dataset, mean_volume.to(device), args.explain)
    print("\n".join(scan_ages.describe(scans)))
    print(f"table: {args.output_dir / 'predictions.csv'}   pictures: {args.output_dir / 'pictures'}")
    sys.exit(0 if len(usable) == len(scans) else 1)


if __name__ == "__main__":
    run_command(main)
