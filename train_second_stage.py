"""Train the second stage: the residual to the first stage's discretized ages."""

from dataclasses import replace

from utils.common.errors import run_command, user_errors
from utils.options.flags import flags_of, settings_from
from utils.options.training import parse_training_flags


def main() -> None:
    args = parse_training_flags(stage=2)
    # Imported here, so that --help and wrong flags answer at once.
    from model.building import load_network, make_loss, make_network, scale_to, start_from_first_stage
    from utils.common import distributed
    from utils.common.checkpoints import load_checkpoint
    from utils.common.files import sha256_of
    from utils.data.cohort import add_first_stage_ages, load_cohort, warn_of_overfitting
    from utils.data.dataset import ScanDataset
    from utils.data.discretized_ages import read_discretized_ages
    from utils.data.scans import ScanStore, data_settings
    from utils.prediction.weights import check_same_network, read_initial_weights
    from utils.training.run_folder import check_run_folder
    from utils.training.settings import TrainingSettings
    from utils.training.stages import SecondStage
    from utils.training.state import describe_checkpoint
    from utils.training.trainer import Trainer

    settings, released_start = settings_from(TrainingSettings, args), args.initialization == "released"
    first_stage = load_checkpoint(args.first_stage_checkpoint)
    with user_errors(str(args.first_stage_checkpoint)):
        first_network = load_network(first_stage, stage=1)
        voxel_size, normalization = data_settings(first_stage, args.normalization)
    initial = read_initial_weights(args.initial_weights, 2, args.age_interval)
    if initial:
        check_same_network(args.initial_weights, initial, first_network, voxel_size, normalization)
    with user_errors():
        criterion = make_loss(
            args.loss, args.ranking, args.sorter, args.rank_temperature, args.ranking_weight, args.age_difference_weight
        )
    device = distributed.start(args.device)
    check_run_folder(args.output_dir, args.resume, args.train_folder, args.valid_folder)
    scans = ScanStore(voxel_size, normalization, args.cache_folder, args.num_workers)
    folders = {"train": args.train_folder, "valid": args.valid_folder}
    folders = {split: folder for split, folder in folders.items() if folder}
    cohort = load_cohort(folders, args.label_table, scans, use_sex=first_network.config.use_sex)
    table_folder = args.discretized_age_folder or args.first_stage_checkpoint.parent
    sha256 = sha256_of(args.first_stage_checkpoint)
    for split, subjects in cohort.items():
        path = table_folder / f"{split}_discretized_age.npy"
        table = read_discretized_ages(path, [s.subject_id for s in subjects], args.age_interval, sha256)
        columns = (table[name] for name in ("brain_age", "discretized_age", "out_of_fold"))
        cohort[split] = add_first_stage_ages(subjects, *columns)
    valid_subjects = cohort.get("valid", [])
    if valid_subjects and not args.age_jitter:
        warn_of_overfitting(cohort["train"], valid_subjects)
    ages = [subject.chronological_age for subject in cohort["train"]]
    unscaled = replace(first_network.config, stage=2, age_mean=0.0, age_sd=1.0)
    config = unscaled if released_start else scale_to(unscaled, ages, stage=2)
    with user_errors("--freeze_blocks"):
        network = make_network(
            initial.network.config if initial else config, args.seed, args.activation_checkpointing, released_start,
            initial and initial.network, args.freeze_blocks,
        )  # fmt: skip
    if args.start_from_first_stage and not initial:
        start_from_first_stage(network, first_network)
    best = Trainer(
        network,
        SecondStage(args.age_interval, args.age_jitter),
        criterion.to(device),
        ScanDataset(cohort["train"], scans),
        ScanDataset(valid_subjects, scans),
        args.output_dir,
        settings,
        flags_of(args),
        device,
        describe_checkpoint(
            network.config.to_dict(), voxel_size, normalization, args.age_interval, cohort["train"],
            valid_subjects if settings.chooses_by_validation else [], sha256, initial.subjects if initial else [],
        ),
    ).fit()  # fmt: skip
    print(f"weights of the {args.keep} epoch: {best}")
    distributed.stop()


if __name__ == "__main__":
    run_command(main, several=True)
