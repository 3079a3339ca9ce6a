"""Train the first stage: brain age from a T1-weighted scan."""

from pathlib import Path

from utils.common.errors import run_command, user_errors
from utils.options.everything import parse_training_flags


def main() -> None:
    args = parse_training_flags(stage=1)
    # Imported here, so that --help and wrong flags answer at once.
    import numpy as np

    from model.building import load_network, make_config, make_loss, make_network
    from utils.common import distributed
    from utils.common.checkpoints import describe_checkpoint, load_checkpoint
    from utils.common.files import sha256_of
    from utils.data.cohort import load_cohort, resolve_normalization, split_into_folds
    from utils.data.dataset import ScanDataset
    from utils.data.discretized_ages import write_discretized_ages
    from utils.data.images import brain_box, model_grid
    from utils.data.scans import ScanStore
    from utils.data.subjects import Subject
    from utils.training.stages import FirstStage
    from utils.training.trainer import Training, check_run_folder, predict

    with user_errors():
        grid = model_grid(args.voxel_size)
        box = brain_box(args.voxel_size) if args.field_of_view == "brain" else None
        make_config(args, 1, grid.shape, box, [0.0])
        criterion = make_loss(args)
    check_run_folder(args.output_dir, args.resume)
    device = distributed.start(args.device)
    criterion.to(device)
    folders = {"train": args.train_folder, "valid": args.valid_folder, "test": args.test_folder}
    resolved = resolve_normalization(args.normalization, filter(None, folders.values()))
    if (args.normalization, resolved) == ("local_sd", "registered_sd") and distributed.rank() == 0:
        print("note: no local_sd/ of bash_preprocess.sh beside the scans: deviations are measured after registration")
    args.normalization = resolved
    scans = ScanStore(args.voxel_size, args.normalization, args.cache_folder, args.num_workers)
    cohort = load_cohort(
        {split: folder for split, folder in folders.items() if folder},
        args.label_table,
        scans,
        use_sex=args.use_sex,
    )

    def train(train_subjects: list[Subject], folder: Path, seed: int) -> Path:
        ages = [subject.chronological_age for subject in train_subjects]
        network = make_network(make_config(args, 1, grid.shape, box, ages), seed, args.activation_checkpointing)
        valid_subjects = cohort.get("valid", [])
        identity = describe_checkpoint(network.config.to_dict(), args, train_subjects, valid_subjects)
        datasets = ScanDataset(train_subjects, scans), ScanDataset(valid_subjects, scans)
        return Training(network, FirstStage(), criterion, *datasets, folder, args, device, identity).fit()

    def estimate(checkpoint: Path, subjects: list[Subject], label: str) -> np.ndarray:
        network = load_network(load_checkpoint(checkpoint), stage=1).to(device)
        return predict(network, FirstStage(), ScanDataset(subjects, scans), args, device, label)["brain_age"]

    folds = list(split_into_folds(cohort["train"], args.folds, args.seed))
    best = train(cohort["train"], args.output_dir, args.seed)
    ages = {split: estimate(best, subjects, split) for split, subjects in cohort.items()}
    for number, (rest, part) in enumerate(folds, 1):
        print(f"fold {number} of {args.folds}: {len(rest)} subjects to train on, {len(part)} to estimate")
        fold = train([cohort["train"][i] for i in rest], args.output_dir / f"fold_{number}", args.seed + number)
        ages["train"][part] = estimate(fold, [cohort["train"][i] for i in part], f"fold {number}")
    if distributed.rank() == 0:
        for split, subjects in cohort.items():
            write_discretized_ages(
                args.output_dir / f"{split}_discretized_age.npy",
                [subject.subject_id for subject in subjects],
                ages[split],
                args.age_interval,
                sha256_of(best),
                np.full(len(subjects), split != "train" or args.folds > 0),
            )
        print(f"best weights: {best}\ndiscretized ages: {args.output_dir}/<{'|'.join(cohort)}>_discretized_age.npy")
    distributed.stop()


if __name__ == "__main__":
    run_command(main)
