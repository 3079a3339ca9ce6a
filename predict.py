"""Estimate brain ages of raw or prepared scans with weights that are ready."""

import sys
from typing import Any

from utils.common.errors import run_command, user_errors
from utils.options.everything import prediction_parser


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
    from utils.prediction import scan_ages as prediction
    from utils.prediction.weights import DEFAULT_FOLDER, load_reference, load_weights, weights_folders
    from utils.preparation.preprocessing_jobs import RawFile, Settings, preprocess_all
    from utils.training.stages import FirstStage
    from utils.training.trainer import predict

    check_writable(args.output_dir)
    folders = weights_folders(args.weights_dir or DEFAULT_FOLDER)
    manifests, networks, references = {}, {}, {}
    for folder in folders:
        manifests[folder], members = load_weights(folder)
        references[folder] = load_reference(folder)
        with user_errors(str(folder)):
            stages = [(load_network(first, 1), load_network(second, 2)) for first, second in members]
        networks[folder] = Cascade(stages, manifests[folder]["age_interval"])
    scans = prediction.find_scans(args.input)
    prediction.add_labels(scans, args.label_table, args.sex)
    prediction.add_verdicts(scans)
    raw = {scan.name: scan for scan in scans if not scan.prepared and not scan.failure}
    if raw:
        made = next(filter(None, manifests[folders[0]]["preprocessing"]), {"registration": "nonlinear"})
        prepared = args.output_dir / "preprocessed"
        settings = Settings(prepared, made["registration"], args.device, False, False)
        files = [RawFile(scan.name, scan.source) for scan in raw.values()]
        prediction.add_records(raw, preprocess_all(files, settings, 0, args.timeout), prepared)
    device = distributed.start(args.device)
    datasets, groups = {}, prediction.assign_weights(scans, folders)
    for folder, group in groups.items():
        manifest = manifests[folder]
        store = ScanStore(manifest["voxel_size"], manifest["normalization"])
        groups[folder] = usable = prediction.check_scans(group, store)
        prediction.add_preparation(usable, manifest["preprocessing"])
        prediction.add_training(usable, manifest["training_persons"])
        prediction.add_sharpness(usable, manifest["sharpness_range"])
        prediction.add_voxel_sizes(usable, manifest["native_voxel_sizes"])
        datasets[folder] = ScanDataset([scan.subject for scan in usable], store)
        if usable:
            ages = predict(networks[folder].to(device), FirstStage(), datasets[folder], args, device, "brain age")
            radius = interval_radius(manifest["out_of_fold_errors"], INTERVAL_COVERAGE)
            prediction.add_ages(usable, ages["brain_age"], radius, manifest["age_range"])
    prediction.write_table(args.output_dir / "predictions.csv", scans)
    estimated = [scan for scan in scans if not scan.failure]
    for scan in tqdm(estimated, "pictures", unit="scan", disable=None, leave=False):
        prediction.draw_scan(args.output_dir / "pictures" / f"{scan.name}.png", scan)
    if args.explain != "none":
        from utils.prediction.explaining import explain

        for folder, group in groups.items():
            folded: Any = networks[folder].to(device).folded()
            folded = folded.to(memory_format=torch.channels_last_3d)
            reference, voxel_size = references[folder].to(device), manifests[folder]["voxel_size"]
            for index, scan in enumerate(tqdm(group, "maps", unit="scan", disable=None, leave=False)):
                batch = to_device(collate([datasets[folder][index]]), device)
                values = explain(folded, batch["volume"], reference, batch["sex"], args.explain, voxel_size)
                prediction.write_map(args.output_dir / "maps", scan, values.cpu().numpy(), voxel_size)
    print("\n".join(prediction.describe(scans)))
    print(f"table: {args.output_dir / 'predictions.csv'}   pictures: {args.output_dir / 'pictures'}")
    sys.exit(0 if len(estimated) == len(scans) else 1)


if __name__ == "__main__":
    run_command(main)
