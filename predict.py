"""Estimate brain ages of raw or prepared scans with trained weights."""

import sys

from utils.common.errors import InputError, run_command, status_of_scans, user_errors
from utils.options.prediction import prediction_parser


def main() -> None:
    args = prediction_parser().parse_args()
    # Imported here, so that --help and wrong flags answer at once.
    from utils.common.files import check_results, sha256_of
    from utils.common.log_file import keep_log
    from utils.data.scan_folders import Selection
    from utils.data.tables import read_label_table
    from utils.prediction import scan_ages, scan_labels, scan_preparation

    if args.scanner and args.calibration_table:
        raise InputError("--scanner and --calibration_table contradict each other; give one of them")
    table = args.output_dir / "predictions.csv"
    check_results(args.output_dir, [table.name], args.overwrite, args.input)
    scans = scan_preparation.find_scans(args.input, Selection(args.participants, args.sessions))
    calibration = read_label_table(args.calibration_table) if args.calibration_table else None
    scan_labels.add_labels(scans, args.label_table, args.sex)

    # Imported here, so that wrong input is told before torch is loaded.
    import torch

    from model.building import load_network
    from model.cascade import Cascade
    from utils.common import distributed
    from utils.data.dataset import ScanDataset
    from utils.data.scans import ScanStore, data_settings
    from utils.prediction.estimating import Estimator
    from utils.prediction.journal import Journal
    from utils.prediction.pictures import draw_scans
    from utils.prediction.weights import MANIFEST, load_typical_volumes, load_weights
    from utils.preparation.preprocessing_jobs import Settings as PreprocessingSettings

    manifest, members = load_weights(args.weights_dir)
    typical = load_typical_volumes(args.weights_dir)
    scan_ages.interval_errors(manifest, args.scanner)  # a wrong name ends the command before the work
    with user_errors(str(args.weights_dir)):
        data_settings({**manifest, "network": manifest["networks"]["first_stage"]}, None)
        stages = [(load_network(first, 1), load_network(second, 2)) for first, second in members]
    candidates = []
    if calibration:  # before the work; scans that fail later are left out then
        candidates = scan_labels.find_candidates(scans, calibration, manifest["training_persons"])
        scan_labels.calibration_people(candidates, args.calibration_table)
    own = args.shard.of(scans)
    names = {scan.name for scan in own}
    scans = [*own, *(each.scan for each in candidates if each.scan.name not in names)]  # all shards calibrate alike
    prepare = PreprocessingSettings(
        args.output_dir / "preprocessed", scan_preparation.registration_of(manifest["preprocessing"]), args.device,
        keep_failed=False, save_masks=False, brain_extracted=args.brain_extracted, overwrite=args.overwrite,
    )  # fmt: skip
    device = distributed.start(args.device)
    network = Cascade(stages, manifest["age_interval"]).to(device)
    store = ScanStore(manifest["voxel_size"], manifest["normalization"])
    estimator = Estimator(
        network, store, typical, device, args.batch_size, args.num_workers, args.precision
    )  # fmt: skip
    origin = {"weights": sha256_of(args.weights_dir / MANIFEST), "torch": torch.__version__}
    with Journal(
        table.with_suffix(".jsonl"), {**origin, "precision": args.precision, "device": device.type}
    ) as journal:
        keep_log(args.output_dir, device, args.shard)
        estimator.estimate(scans, journal)
        scan_preparation.preprocess(scans, prepare, args.timeout)
        estimator.estimate(scans, journal)  # of those that were raw
        usable = [scan for scan in scans if not scan.failure]
        scan_preparation.add_preparation(usable, manifest["preprocessing"])
        scan_labels.add_averaging(usable, network.uses_sex)
        scan_labels.add_training(usable, manifest["training_persons"])
        scan_ages.add_intervals(usable, manifest, args.scanner)
        if candidates:
            people = scan_labels.calibration_people(candidates, args.calibration_table)
            print(scan_ages.calibrate(usable, [(scan, age) for scan, _, age in people], manifest))
        scan_ages.add_likeness(usable, manifest["distance_limit"])
        scan_ages.add_coarseness(usable)
        scan_ages.add_age_warnings(usable, manifest)
        scan_ages.write_table(table, own, origin["weights"])
        usable = [scan for scan in own if not scan.failure]
        if args.pictures:
            draw_scans(args.output_dir / "pictures", usable, args.num_workers)
        if args.explain != "none":
            from utils.prediction.explaining import write_maps

            dataset = ScanDataset([scan.subject for scan in usable], store)
            write_maps(args.output_dir / "maps", network, usable, dataset, typical.mean.to(device), args.explain)
    print("\n".join(scan_ages.describe(own)))
    print(f"table: {table}" + f"   pictures: {args.output_dir / 'pictures'}" * args.pictures)
    unlike = sum(scan.unlike for scan in usable)
    sys.exit(status_of_scans(len(own), unlike, len(own) - len(usable), args.strict, args.shard))


if __name__ == "__main__":
    run_command(main)
