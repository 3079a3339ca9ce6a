"""The flags of the training scripts: networks, losses, optimization, and the sorter."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from model.conventions import LOSSES, MODELS, NORMALIZATIONS, RANKERS, SORTER_TYPES
from utils.common.choices import AUGMENTATIONS
from utils.options.flags import (
    Parser,
    add_age_interval,
    add_device,
    add_first_stage_checkpoint,
    add_label_table,
    add_machine_flags,
    add_overwrite,
    add_released_normalization,
    boolean,
    count,
    flag,
    folds,
    fraction,
    ignore,
    not_negative,
    optional_path,
    positive,
    some_of,
    whole,
)

# Those of the first stage that are fields of `model.scaledense.NetworkConfig`.
NETWORK_FLAGS = (
    "model", "use_sex", "blocks", "filters", "dense_connections", "asymmetric_convolutions", "squeeze_excitation",
    "flip_averaging",
)  # fmt: skip


def training_parser(stage: int) -> Parser:
    """Return the parser of ``train_first_stage.py`` or ``train_second_stage.py``."""
    if stage == 1:
        parser = Parser(
            "Train the first stage of TSAN: brain age from a T1-weighted scan (and sex).\n\n"
            "Writes best.pt, last.pt, metrics.csv, hyperparameters.json and TensorBoard events to the\n"
            "output folder, and <split>_discretized_age.npy, which the second stage needs."
        )
    else:
        parser = Parser(
            "Train the second stage of TSAN: the residual to the first stage's discretized ages.\n\n"
            "The network is that of the first stage's checkpoint, with another head. Reads\n"
            "<split>_discretized_age.npy beside that checkpoint; the first stage is not run. Writes best.pt, last.pt, metrics.csv, hyperparameters.json and\n"
            "TensorBoard events to the output folder."
        )
    _add_data_flags(parser.add_argument_group("data"), stage)
    _add_network_flags(parser.add_argument_group("network"), stage)
    _add_loss_flags(parser)
    _add_optimization_flags(parser.add_argument_group("optimization"), stage)
    machine = parser.add_argument_group("machine")
    add_machine_flags(machine, "data/cache", None, "auto")
    _add_memory_flags(machine)
    ignore(parser, "--print_freq", "--warmup_lr_init", "--model_name", "--npz_name", "--plot_name")
    if stage == 2:
        ignore(parser, "--test_folder", "--model", "--use_gender")
    return parser


def parse_training_flags(stage: int, flags: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line of a training script, or `flags`; refuse flags that contradict each other."""
    parser = training_parser(stage)
    args = parser.parse_args(flags)
    if args.valid_folder is None and args.keep == "best":
        parser.error("--keep best needs --valid_folder; give one, or keep the last epoch's weights (--keep last)")
    if args.valid_folder is None and args.scheduler == "plateau":
        parser.error("--scheduler plateau needs --valid_folder; give one, or use cosine or constant")
    if args.freeze_blocks and not args.initial_weights and not (stage == 2 and args.start_from_first_stage):
        parser.error("--freeze_blocks would keep random weights; give --initial_weights, or leave it at 0")
    if args.ranking == "sodeep" and args.ranking_weight == 0:
        parser.error("--ranking sodeep does nothing with --ranking_weight 0; set RANKING_WEIGHT, such as 10")
    if args.deterministic and args.fuse == "true":
        parser.error("--fuse true chooses its kernels anew in each run; leave it at auto with --deterministic true")
    if args.ranking == "sodeep" and args.sorter is None:
        parser.error("--ranking sodeep needs --sorter; make one with bash_train_sorter.sh")
    if args.minimum_learning_rate > args.learning_rate:
        parser.error(
            f"--minimum_learning_rate {args.minimum_learning_rate:g} is above --learning_rate {args.learning_rate:g}"
        )
    if args.warmup_epochs and args.scheduler == "plateau":
        parser.error("--warmup_epochs goes with --scheduler cosine or constant; set WARMUP_EPOCHS=0 for plateau")
    if args.warmup_epochs >= args.epochs:
        parser.error(
            f"--warmup_epochs {args.warmup_epochs} leaves none of {args.epochs} epochs at the full rate; "
            "set a smaller WARMUP_EPOCHS, such as 0"
        )
    return args


def _add_data_flags(group: argparse._ArgumentGroup, stage: int) -> None:
    flag(group, "--train_folder", "data/train", Path, "folder of .nii or .nii.gz scans to train on")
    flag(
        group, "--valid_folder", "data/valid", optional_path,
        "folder of scans that are estimated after each epoch; --keep best chooses the epoch by them; '': none",
    )  # fmt: skip
    if stage == 1:
        flag(group, "--test_folder", "data/test", optional_path, "scans that get discretized ages, too; '': none")
    add_label_table(group, "data/labels.csv")
    flag(
        group, "--output_dir", f"runs/{'first' if stage == 1 else 'second'}_stage", Path,
        "folder of the run; it must not hold another run, except with --resume",
    )  # fmt: skip
    group.add_argument("--resume", action="store_true", help="go on with the run in the output folder where it stopped")
    if stage == 1:
        add_age_interval(group)
        flag(
            group, "--folds", "0", folds,
            "train this many additional networks, each without one part of the training set, to give its subjects "
            "out-of-fold ages; for first stages that overfit. 0: none",
        )  # fmt: skip
        return
    add_first_stage_checkpoint(group)
    flag(
        group, "--discretized_age_folder", None, optional_path,
        "folder of train_ and valid_discretized_age.npy; default: that of the first stage's checkpoint",
    )  # fmt: skip
    flag(
        group, "--start_from_first_stage", "true", boolean,
        "start with the first stage's weights and a residual that undoes the discretization; false: new weights",
    )  # fmt: skip
    flag(
        group, "--age_jitter", "6", not_negative,
        "standard deviation, years, of an error that is added to in-sample first-stage ages at every step; 0: none",
    )  # fmt: skip
    add_age_interval(group, meaning="step of the discretized ages, years; must be that of the tables")


def _add_network_flags(group: argparse._ArgumentGroup, stage: int) -> None:
    flag(
        group, "--initial_weights", "", optional_path,
        "weights to start from, of this stage: a folder of weights (its first cascade), or a best.pt. Network, grid, "
        "normalization and the scale of the ages are theirs. '': new weights",
    )  # fmt: skip
    flag(
        group, "--freeze_blocks", "0", whole,
        "the stem and this many blocks keep their initial weights; 0: everything is trained",
    )  # fmt: skip
    flag(
        group, "--initialization", "live", str.lower,
        "live: estimates start at the mean training age; released: as the authors' code, where a ReLU may start dead",
        choices=("live", "released"),
    )  # fmt: skip
    if stage == 2:
        add_released_normalization(group)
        return
    flag(
        group, "--model", "scaledense", str.lower,
        "scaledense: the network of the released code; scaledense_paper: the lighter one of the paper's figure",
        choices=MODELS,
    )  # fmt: skip
    flag(group, "--blocks", "5", count, "number of blocks; each halves the volume")
    flag(group, "--filters", "8", count, "channels of the stem (scaledense) or of the first block (scaledense_paper)")
    flag(
        group, "--dense_connections", "true", boolean,
        "whether every block sees the outputs of all earlier ones, or only that of the one before it",
    )  # fmt: skip
    flag(
        group, "--asymmetric_convolutions", "true", boolean,
        "whether a convolution along each axis is added to every 3x3x3 one",
    )  # fmt: skip
    flag(group, "--squeeze_excitation", "true", boolean, "whether each block weighs its channels by their means")
    flag(group, "--use_sex --use_gender", "true", boolean, "whether the network is told the sex")
    flag(
        group, "--flip_averaging", "false", boolean,
        "whether an estimate is the mean over the scan and its left-right mirror image",
    )  # fmt: skip
    flag(group, "--voxel_size", "2", count, "mm, of the network's grid: 2 or a multiple, to which scans are averaged")
    flag(
        group, "--field_of_view", "brain", str.lower,
        "brain: only the box of the brain, a third of the voxels less; whole: the whole grid, as the authors",
        choices=("brain", "whole"),
    )  # fmt: skip
    flag(
        group, "--normalization", "brain", str.lower,
        "of the intensities. brain: z-scores inside the brain, as the authors; tissue: means of fluid, gray and white "
        "matter at fixed values, which makes scanners alike; legacy: as the authors' code before 2023-11-21",
        choices=NORMALIZATIONS,
    )  # fmt: skip


def _add_loss_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "loss", "error + ranking_weight * (ranking + age_difference_weight * age difference)"
    )
    flag(group, "--loss", "mse", str.lower, "error of the ages: mean squared or mean absolute", choices=LOSSES)
    flag(
        group, "--ranking --aux_loss", "soft", _ranker,
        "how ages are ranked. soft: in closed form, for any batch size; sodeep: by the paper's sorter network; "
        "none: no ranking term",
        choices=RANKERS,
    )  # fmt: skip
    flag(
        group, "--ranking_weight --lbd", "10", not_negative,
        "lambda of the paper, the weight of ranking and age difference together; 0: neither",
    )  # fmt: skip
    flag(group, "--age_difference_weight --beta", "1", not_negative, "beta of the paper")
    flag(
        group, "--rank_temperature", "1", positive,
        "of the soft ranks, years: ages much further apart than this have sharp ranks",
    )  # fmt: skip
    flag(group, "--sorter", None, optional_path, "sorter file, for --ranking sodeep; its length is the batch size")


def _ranker(text: str) -> str:
    """Read a ranker; the authors call theirs ``ranking``."""
    return {"ranking": "sodeep"}.get(text.lower(), text.lower())


def _add_optimization_flags(group: argparse._ArgumentGroup, stage: int) -> None:
    flag(group, "--epochs", "100" if stage == 1 else "20", count, "passes over the training set, at most")
    flag(group, "--batch_size", "16", count, "scans in a batch, of each process; 16 fit a GPU of 24 GB")
    flag(
        group, "--batches", "stratified", str.lower,
        "stratified: every batch covers the range of ages; shuffled: drawn at random",
        choices=("stratified", "shuffled"),
    )  # fmt: skip
    flag(
        group, "--accumulation_steps", "1", count,
        "batches whose gradients are averaged for a step; ranks compare the scans of one batch",
    )  # fmt: skip
    flag(
        group, "--augmentation", "flip,gain,gamma", some_of(AUGMENTATIONS),
        f"random changes of training scans, separated by commas: {', '.join(AUGMENTATIONS)}; or none",
    )  # fmt: skip
    flag(
        group, "--optimizer", "adamw", str.lower,
        "the authors use adam for the first stage and sgd for the second",
        choices=("adam", "adamw", "sgd"),
    )  # fmt: skip
    flag(
        group, "--learning_rate --lr", "1e-3" if stage == 1 else "3e-4", positive,
        "the highest: at the start, or after the warm-up",
    )  # fmt: skip
    flag(group, "--weight_decay", "1e-2", not_negative, "decoupled (adamw), or L2 penalty (adam, sgd)")
    flag(group, "--amsgrad", "false", boolean, "of adam and adamw")
    flag(group, "--momentum", "0", not_negative, "of sgd")
    flag(
        group, "--scheduler --schedular", "cosine", str.lower,
        "cosine: fall over all epochs; plateau: fall when the validation MAE stalls; constant",
        choices=("cosine", "plateau", "constant"),
    )  # fmt: skip
    flag(
        group, "--warmup_epochs --warmup_epoch", "3" if stage == 1 else "1", whole,
        "epochs of rising rate before cosine or constant",
    )  # fmt: skip
    flag(group, "--minimum_learning_rate --min_lr", "0", not_negative, "the lowest that cosine and plateau reach")
    flag(group, "--plateau_factor", "0.5", fraction, "what plateau multiplies the rate by")
    flag(group, "--plateau_epochs", "5", whole, "epochs without gain that plateau waits")
    flag(
        group, "--keep", "last", str.lower,
        "weights in best.pt: those of the last epoch, or of the lowest validation MAE, which a few subjects choose badly",
        choices=("last", "best"),
    )  # fmt: skip
    flag(group, "--early_stopping_epochs", "20", count, "with --keep best: stop after so many epochs without gain")
    flag(
        group, "--recalibrate", "true", boolean,
        "recompute the running statistics of batch norm from the training scans before evaluation",
    )  # fmt: skip
    flag(
        group, "--sync_batch_norm", "true", boolean,
        "with several processes, whether batch norm goes over the scans of all of them, as one process would compute it",
    )  # fmt: skip
    flag(group, "--seed", "0", whole, "of the weights, the order, the pairs and the augmentation")


def _add_memory_flags(group: argparse._ArgumentGroup) -> None:
    flag(
        group, "--fuse", "auto", str.lower,
        "on CUDA, whether torch.compile fuses the layers between the convolutions, which takes about a minute at the start. "
        "auto: if there are at least 5,000 steps to take and --deterministic is off. Not with synchronized batch norm",
        choices=("auto", "true", "false"),
    )  # fmt: skip
    flag(
        group, "--deterministic", "false", boolean,
        "on CUDA, whether equal runs give equal weights, bit for bit; slower",
    )  # fmt: skip
    flag(group, "--save_every_steps", "1000", count, "batches after which last.pt is written within an epoch, too")
    flag(
        group, "--activation_checkpointing", "false", boolean,
        "recompute each block in the backward pass: less memory, about a third more time",
    )  # fmt: skip


def sorter_parser() -> Parser:
    """Return the parser of ``train_sorter.py``."""
    parser = Parser(
        "Train a SoDeep sorter: a network that ranks a fixed number of ages, differentiably.\n\n"
        "Only --ranking sodeep needs one. Writes one file, and prints how well the sorter ranks\n"
        "new ages."
    )
    flag(parser, "--output", "runs/sorter_16.pt", Path, "file for the sorter")
    add_overwrite(parser)
    flag(parser, "--length", "16", count, "how many ages it ranks: the batch size of the training that will use it")
    flag(parser, "--model_type", "lstmla", str, "lstm: 128 units; lstmla: 512, the authors'", choices=SORTER_TYPES)
    flag(parser, "--youngest", "0", not_negative, "years, lowest age that is drawn")
    flag(parser, "--oldest", "110", positive, "years, highest age that is drawn")
    flag(parser, "--steps", "3000", count, "steps of the optimizer")
    flag(parser, "--batch_size", "128", count, "sequences in a step")
    flag(parser, "--learning_rate", "2e-3", positive, "of Adam, at the start; falls to 0 along a cosine")
    flag(parser, "--seed", "0", whole, "of the weights and the ages")
    add_device(parser)
    return parser
