"""Estimate brain ages of raw or prepared scans with trained weights."""

import sys

from utils.common.errors import InputError, run_command, user_errors
from utils.options.prediction import prediction_parser


def main() -> None:
    args = prediction_parser().parse_args()
    # Imported here, so that --help and wrong flags answer at once.
    from tqdm import tqdm

    from model.building import load_network
    from model.cascade import Cascade
    from utils.common import distributed
    from utils.common.files import check_results
    from utils.data.dataset import ScanDataset
    from utils.data.scans import ScanStore, data_settings
    from utils.data.tables import read_label_table
    from utils.evaluation.predicting import predict
    from utils.prediction import scan_ages, scan_labels, scan_preparation
    from utils.prediction.likeness import measure_distances
    from utils.prediction.pictures import draw_scan
    from utils.prediction.weights import load_typical_volumes, load_weights
    from utils.preparation.preprocessing_jobs import Settings as PreprocessingSettings
    from utils.training.stages import FirstStage

    if args.scanner and args.calibration_table:
        raise InputError("--scanner and --calibration_table contradict each other; give one of them")
    check_results(args.output_dir, ["predictions.csv"], args.overwrite, args.input)
    manifest, members = load_weights(args.weights_dir)
    typical = load_typical_volumes(args.weights_dir)
    scan_ages.interval_errors(manifest, args.scanner)  # a wrong name ends the command before the work
    with user_errors(str(args.weights_dir)):
        data_settings({**manifest, "network": manifest["networks"]["first_stage"]}, None)
        stages = [(load_network(first, 1), load_network(second, 2)) for first, second in members]
    scans = scan_preparation.find_scans(args.input)
    candidates = []
    if args.calibration_table:  # before the work; scans that fail later are left out then
        calibration = read_label_table(args.calibration_table)
        candidates = scan_labels.find_candidates(scans, calibration, manifest["training_persons"])
        scan_labels.calibration_people(candidates, args.calibration_table)
    scan_labels.add_labels(scans, args.label_table, args.sex)
    scan_preparation.add_verdicts(scans)
    prepare = PreprocessingSettings(
        args.output_dir / "preprocessed", scan_preparation.registration_of(manifest["preprocessing"]), args.device,
        keep_failed=False, save_masks=False, brain_extracted=args.brain_extracted, overwrite=args.overwrite,
    )  # fmt: skip
    scan_preparation.preprocess(scans, prepare, args.timeout)
    device = distributed.start(args.device)
    network = Cascade(stages, manifest["age_interval"]).to(device)
    store = ScanStore(manifest["voxel_size"], manifest["normalization"])
    usable = scan_preparation.check_scans(scans, store)
    scan_preparation.add_preparation(usable, manifest["preprocessing"])
    scan_labels.add_averaging(usable, network.uses_sex)
    scan_labels.add_training(usable, manifest["training_persons"])
    dataset = ScanDataset([scan.subject for scan in usable], store)
    if usable:
        ages = predict(
            network, FirstStage(), dataset, device, batch_size=args.batch_size, num_workers=args.num_workers,
            precision=args.precision, label="brain age",
        )["brain_age"]  # fmt: skip
        scan_ages.add_ages(usable, ages, manifest, args.scanner)
        if candidates:
            people = scan_labels.calibration_people(candidates, args.calibration_table)
            print(scan_ages.calibrate(usable, [(scan, age) for scan, _, age in people], manifest))
        scan_ages.add_likeness(
            usable, measure_distances(dataset, typical, args.num_workers), manifest["distance_limit"]
        )
        scan_ages.add_coarseness(usable)
        scan_ages.add_age_warnings(usable, manifest)
    scan_ages.write_table(args.output_dir / "predictions.csv", scans)
    for scan in tqdm(usable, "pictures", unit="scan", disable=None, leave=False):
        draw_scan(args.output_dir / "pictures" / f"{scan.name}.png", scan)
    if args.explain != "none":
        from utils.prediction.explaining import write_maps

        write_maps(args.output_dir / "maps", network, usable, dataset, typical.mean.to(device), args.explain)
    print("\n".join(scan_ages.describe(scans)))
    print(f"table: {args.output_dir / 'predictions.csv'}   pictures: {args.output_dir / 'pictures'}")
    sys.exit(0 if len(usable) == len(scans) else 1)


if __name__ == "__main__":
    run_command(main)
