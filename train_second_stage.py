"""Train the second stage: the residual to the first stage's discretized ages."""

from utils.common.errors import run_command, user_errors
from utils.options.everything import parse_training_flags


def main() -> None:
    args = parse_training_flags(stage=2)
    # Imported here, so that --help and wrong flags answer at once.
    from model.building import load_network, make_config, make_loss, make_network, start_from_first_stage
    from utils.common import distributed
    from utils.common.checkpoints import data_settings, describe_checkpoint, load_checkpoint
    from utils.common.files import sha256_of
    from utils.data.cohort import add_first_stage_ages, load_cohort, warn_of_overfitting
    from utils.data.dataset import ScanDataset
    from utils.data.discretized_ages import read_discretized_ages
    from utils.data.images import model_grid
    from utils.data.scans import ScanStore
    from utils.training.stages import SecondStage
    from utils.training.trainer import Training, check_run_folder

    first_stage = load_checkpoint(args.first_stage_checkpoint)
    with user_errors(str(args.first_stage_checkpoint)):
        first_network = load_network(first_stage, stage=1)
        args.voxel_size, args.normalization = data_settings(first_stage, args.normalization)
    with user_errors():
        grid = model_grid(args.voxel_size)
        box = first_network.config.field_of_view
        make_config(args, 2, grid.shape, box, [0.0])
        criterion = make_loss(args)
    check_run_folder(args.output_dir, args.resume)
    device = distributed.start(args.device)
    scans = ScanStore(args.voxel_size, args.normalization, args.cache_folder, args.num_workers)
    folders = {"train": args.train_folder, "valid": args.valid_folder}
    cohort = load_cohort(
        {split: folder for split, folder in folders.items() if folder},
        args.label_table,
        scans,
        use_sex=args.use_sex,
    )
    folder = args.discretized_age_folder or args.first_stage_checkpoint.parent
    sha256 = sha256_of(args.first_stage_checkpoint)
    for split, subjects in cohort.items():
        path = folder / f"{split}_discretized_age.npy"
        table = read_discretized_ages(path, [s.subject_id for s in subjects], args.age_interval, sha256)
        cohort[split] = add_first_stage_ages(
            subjects, table["brain_age"], table["discretized_age"], table["out_of_fold"]
        )
    valid_subjects = cohort.get("valid", [])
    if valid_subjects and not args.age_jitter:
        warn_of_overfitting(cohort["train"], valid_subjects)
    ages = [subject.chronological_age for subject in cohort["train"]]
    network = make_network(make_config(args, 2, grid.shape, box, ages), args.seed, args.activation_checkpointing)
    if args.start_from_first_stage:
        with user_errors(str(args.first_stage_checkpoint)):
            start_from_first_stage(network, first_network)
    best = Training(
        network,
        SecondStage(args.age_interval, args.age_jitter),
        criterion.to(device),
        ScanDataset(cohort["train"], scans),
        ScanDataset(valid_subjects, scans),
        args.output_dir,
        args,
        device,
        describe_checkpoint(network.config.to_dict(), args, cohort["train"], valid_subjects, sha256),
    ).fit()
    if distributed.rank() == 0:
        print(f"best weights: {best}")
    distributed.stop()


if __name__ == "__main__":
    run_command(main)
