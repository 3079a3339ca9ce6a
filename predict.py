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
    from utils.weights import DEFAULT_FOLDER, load_reference, load_weights, weights_folders

    check_writable(args.output_dir)
    weights = {}
    for folder in weights_folders(args.weights_dir or DEFAULT_FOLDER):
        manifest, members = load_weights(folder)
        with user_errors(str(folder)):
            networks = [(load_network(first, 1), load_network(second, 2)) for first, second in members]
        weights[folder] = manifest, Cascade(networks, manifest["age_interval"]), load_reference(folder)
    main_folder, *_ = weights
    made = weights[main_folder][0]["preprocessing"]
    scans = prediction.find_scans(args.input)
    prediction.add_labels(scans, args.label_table, args.sex)
    raw = {scan.name: scan for scan in scans if not scan.prepared}
    if raw:
        prepared = args.output_dir / "preprocessed"
        settings = Settings(prepared, made["registration"] if made else "nonlinear", args.device, False, False)
        files = [RawFile(scan.name, scan.source) for scan in raw.values()]
        prediction.add_records(raw, preprocess_all(files, settings, 0, args.timeout), prepared)
    groups = prediction.assign_weights(scans, list(weights))
    prediction.add_preparation(groups[main_folder], made)
    device = distributed.start(args.device)
    datasets = {}
    for folder, group in groups.items():
        manifest, network, _ = weights[folder]
        prediction.add_training(group, manifest["training_persons"])
        store = ScanStore(manifest["voxel_size"], manifest["normalization"])
        usable = prediction.check_scans(group, store)
        prediction.add_sharpness(usable, manifest["sharpness_range"])
        prediction.add_voxel_sizes(usable, manifest.get("native_voxel_sizes"))
        datasets[folder] = ScanDataset([scan.subject for scan in usable], store), usable
        if usable:
            ages = predict(network.to(device), FirstStage(), datasets[folder][0], args, device, "brain age")
            radius = interval_radius(manifest["out_of_fold_errors"], INTERVAL_COVERAGE)
            prediction.add_ages(usable, ages["brain_age"], radius, manifest["age_range"])
    prediction.write_table(args.output_dir / "predictions.csv", scans)
    estimated = [scan for scan in scans if not scan.failure]
    for scan in tqdm(estimated, "pictures", unit="scan", disable=None, leave=False):
        prediction.draw_scan(args.output_dir / "pictures" / f"{scan.name}.png", scan)
    for folder, (dataset, usable) in datasets.items() if args.explain != "none" else ():
        from utils.explaining import explain

        manifest, network, reference = weights[folder]
        folded: Any = network.folded()
        folded = folded.to(memory_format=torch.channels_last_3d)
        for index, scan in enumerate(tqdm(usable, "maps", unit="scan", disable=None, leave=False)):
            batch = to_device(collate([dataset[index]]), device)
            values = explain(
                folded, batch["volume"], reference.to(device), batch["sex"], args.explain, manifest["voxel_size"]
            )
            prediction.write_map(args.output_dir / "maps", scan, values.cpu().numpy(), manifest["voxel_size"])
    print("\n".join(prediction.describe(scans)))
    print(f"table: {args.output_dir / 'predictions.csv'}   pictures: {args.output_dir / 'pictures'}")
    sys.exit(0 if len(estimated) == len(scans) else 1)


if __name__ == "__main__":
    run_command(main)
