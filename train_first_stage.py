"""Train the first stage: brain age from a T1-weighted scan."""

from pathlib import Path

from utils.common.errors import run_command, user_errors
from utils.options.flags import flags_of, settings_from
from utils.options.training import NETWORK_FLAGS, parse_training_flags


def main() -> None:
    args = parse_training_flags(stage=1)
    # Imported here, so that --help and wrong flags answer at once.
    import numpy as np

    from model.building import load_network, make_loss, make_network, scale_to
    from model.scaledense import NetworkConfig
    from utils.common import distributed
    from utils.common.checkpoints import load_checkpoint
    from utils.common.files import sha256_of
    from utils.data.cohort import are_known, load_cohort, split_into_folds
    from utils.data.dataset import ScanDataset
    from utils.data.discretized_ages import write_discretized_ages
    from utils.data.images import brain_box, model_grid
    from utils.data.scans import ScanStore
    from utils.data.subjects import Subject
    from utils.evaluation.predicting import predict
    from utils.prediction.weights import read_initial_weights
    from utils.training.run_folder import check_run_folder
    from utils.training.settings import TrainingSettings
    from utils.training.stages import FirstStage
    from utils.training.state import describe_checkpoint
    from utils.training.trainer import Trainer

    settings, released_start = settings_from(TrainingSettings, args), args.initialization == "released"
    initial = read_initial_weights(args.initial_weights, 1, args.age_interval)
    voxel_size, normalization = initial[1:3] if initial else (args.voxel_size, args.normalization)
    with user_errors():
        unscaled = initial.network.config if initial else NetworkConfig(
            1, volume_shape=model_grid(voxel_size).shape, **{flag: getattr(args, flag) for flag in NETWORK_FLAGS},
            field_of_view=brain_box(voxel_size) if args.field_of_view == "brain" else None,
        )  # fmt: skip
        criterion = make_loss(
            args.loss, args.ranking, args.sorter, args.rank_temperature, args.ranking_weight, args.age_difference_weight
        )
    device = distributed.start(args.device)
    check_run_folder(args.output_dir, args.resume, args.train_folder, args.valid_folder, args.test_folder)
    if device.type == "cpu" and voxel_size == 2:
        print("note: training at 2 mm on a CPU takes minutes for a hundred scans; try RECIPE=recipes/small_cohort.sh")
    scans = ScanStore(voxel_size, normalization, args.cache_folder, args.num_workers)
    folders = {"train": args.train_folder, "valid": args.valid_folder, "test": args.test_folder}
    cohort = load_cohort({s: f for s, f in folders.items() if f}, args.label_table, scans, use_sex=unscaled.use_sex)
    valid_subjects, known = cohort.get("valid", []), initial.subjects if initial else []

    def train(train_subjects: list[Subject], folder: Path, seed: int) -> Path:
        ages = [subject.chronological_age for subject in train_subjects]
        config = unscaled if released_start or initial else scale_to(unscaled, ages, stage=1)
        with user_errors("--freeze_blocks"):
            network = make_network(
                config, seed, args.activation_checkpointing, released_start, initial and initial.network,
                args.freeze_blocks,
            )  # fmt: skip
        identity = describe_checkpoint(
            config.to_dict(), voxel_size, normalization, args.age_interval, train_subjects,
            valid_subjects if settings.chooses_by_validation else [], initial_subjects=known,
        )  # fmt: skip
        return Trainer(
            network, FirstStage(), criterion.to(device), ScanDataset(train_subjects, scans),
            ScanDataset(valid_subjects, scans), folder, settings, flags_of(args), device, identity,
        ).fit()  # fmt: skip

    def estimate(checkpoint: Path, subjects: list[Subject], label: str) -> np.ndarray:
        network = load_network(load_checkpoint(checkpoint), stage=1).to(device)
        return predict(
            network, FirstStage(), ScanDataset(subjects, scans), device, batch_size=args.batch_size,
            num_workers=args.num_workers, precision="float32", label=label,  # as testing does
        )["brain_age"]  # fmt: skip

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
                args.output_dir / f"{split}_discretized_age.npy", [subject.subject_id for subject in subjects],
                ages[split], args.age_interval, sha256_of(best),
                (split != "train" or args.folds > 0) & ~are_known(subjects, known),
            )  # fmt: skip
        tables = f"{args.output_dir}/<{'|'.join(cohort)}>_discretized_age.npy"
        print(f"weights of the {args.keep} epoch: {best}\ndiscretized ages: {tables}")
    distributed.stop()


if __name__ == "__main__":
    run_command(main, several=True)
