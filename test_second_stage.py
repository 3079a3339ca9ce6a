"""Estimate brain ages with the whole cascade."""

from utils.common.errors import InputError, run_command, user_errors
from utils.options.testing import testing_parser


def main() -> None:
    args = testing_parser(stage=2).parse_args()
    # Imported here, so that --help and wrong flags answer at once.
    from model.building import load_network
    from model.conventions import discretize_age
    from utils.common import distributed
    from utils.common.checkpoints import age_interval_of, load_checkpoint
    from utils.common.files import check_results, sha256_of
    from utils.common.log_file import keep_log
    from utils.data.cohort import add_first_stage_ages, load_cohort
    from utils.data.dataset import ScanDataset
    from utils.data.discretized_ages import read_discretized_ages
    from utils.data.scans import ScanStore, data_settings
    from utils.evaluation.predicting import predict, seen_in_training, warn_of_preparation
    from utils.evaluation.reports import announce_report, report_files, write_report
    from utils.training.stages import FirstStage, SecondStage

    options = {"batch_size": args.batch_size, "num_workers": args.num_workers, "precision": args.precision}
    check_results(args.output_dir, report_files(args.npz_name, args.plot_name), args.overwrite, args.test_folder)
    device = distributed.start(args.device)
    paths = {1: args.first_stage_checkpoint, 2: args.checkpoint}
    checkpoints = {number: load_checkpoint(path) for number, path in paths.items()}
    networks, settings = {}, {}
    for number, path in paths.items():
        with user_errors(str(path)):
            networks[number] = load_network(checkpoints[number], number, args.use_sex)
            settings[number] = data_settings(checkpoints[number], args.normalization)
    sha256 = sha256_of(args.first_stage_checkpoint)
    if checkpoints[2].get("first_stage_sha256", sha256) != sha256:
        raise InputError(
            f"{args.checkpoint}: was trained on the ages of another first stage than "
            f"{args.first_stage_checkpoint} (SHA-256 {sha256[:12]}...); give that one as --first_stage_checkpoint"
        )
    if settings[1] != settings[2]:
        raise InputError(
            f"{args.checkpoint}: works on {settings[2][0]} mm and normalization {settings[2][1]}, "
            f"{args.first_stage_checkpoint} on {settings[1][0]} mm and {settings[1][1]}; "
            "for a first stage that the authors released, give its --normalization"
        )
    with user_errors(str(args.checkpoint)):
        age_interval = age_interval_of(checkpoints[2], args.age_interval)
    scans = ScanStore(*settings[1], args.cache_folder, args.num_workers)
    subjects = load_cohort(
        {"test": args.test_folder},
        args.label_table,
        scans,
        use_sex=any(network.config.use_sex for network in networks.values()),
        sex_of_all=args.sex,
        ages_required=False,
    )["test"]
    if args.discretized_age_file:
        ids = [subject.subject_id for subject in subjects]
        brain_age = read_discretized_ages(args.discretized_age_file, ids, age_interval, sha256)["brain_age"]
    else:
        dataset = ScanDataset(subjects, scans)
        ages = predict(networks[1].to(device), FirstStage(), dataset, device, label="first stage", **options)
        brain_age = ages["brain_age"]
    subjects = add_first_stage_ages(subjects, brain_age, discretize_age(brain_age, age_interval))
    for number, path in paths.items():
        seen_in_training(subjects, path, checkpoints[number])
        warn_of_preparation(subjects, path, checkpoints[number])
    keep_log(args.output_dir, device)
    stage = SecondStage(age_interval)
    dataset = ScanDataset(subjects, scans)
    predictions = predict(networks[2].to(device), stage, dataset, device, label="second stage", **options)
    if distributed.rank() == 0:
        metrics = write_report(
            args.output_dir, subjects, predictions, "Cascade", stage.columns, args.npz_name, args.plot_name,
            stage.report, weights_sha256=f"{sha256} {sha256_of(args.checkpoint)}",
        )  # fmt: skip
        announce_report(args.output_dir, "cascade", metrics)
    distributed.stop()


if __name__ == "__main__":
    run_command(main, several=True)
