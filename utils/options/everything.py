"""The flags of the entry points: each name, default, unit and meaning, once."""

import argparse
import glob
import math
import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

# What the flags of training default to. "small_cohort" is what docs/results.md found best with about a hundred
# scans; "paper" is what the authors' code does.
RECIPES: dict[str, dict[str, Any]] = {
    "small_cohort": {
        "model": "perceptron",
        "blocks": 4,
        "filters": 8,
        "normalization": "local_sd",
        "voxel_size": 4,
        "field_of_view": "brain",
        "flip_averaging": True,
        "ranking_weight": 0.0,
        "age_difference_weight": 1.0,
        "epochs": 30,
        "batch_size": 4,
        "batches": "stratified",
        "optimizer": "adamw",
        "learning_rate": 3e-3,
        "weight_decay": 1e-2,
        "amsgrad": False,
        "scheduler": "cosine",
        "warmup_epochs": 3,
        "keep": "last",
        "recalibrate": True,
        "augmentation": ("flip", "gain", "gamma"),
        "start_from_first_stage": True,
        "age_jitter": 6.0,
    },
    "paper": {
        "model": "scaledense",
        "blocks": 5,
        "filters": 8,
        "normalization": "brain",
        "voxel_size": 2,
        "field_of_view": "whole",
        "flip_averaging": False,
        "ranking_weight": 10.0,
        "age_difference_weight": 1.0,
        "epochs": 150,
        "batch_size": 32,
        "batches": "shuffled",
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "weight_decay": 5e-4,
        "amsgrad": True,
        "scheduler": "plateau",
        "warmup_epochs": 0,
        "keep": "best",
        "recalibrate": False,
        "augmentation": (),
        "start_from_first_stage": False,
        "age_jitter": 0.0,
    },
}
SECOND_STAGE: dict[str, dict[str, Any]] = {  # where the second stage's defaults differ
    "small_cohort": {"epochs": 10, "learning_rate": 5e-4, "warmup_epochs": 1},
    "paper": {"optimizer": "sgd", "learning_rate": 1e-5},
}
AUGMENTATIONS = ("flip", "shift", "rotation", "scaling", "gain", "gamma", "bias_field", "noise")
PATIENT_GAPS = {"MCI": 5.0, "AD": 10.0}  # years, mean true gap of simulated patients; 0 in healthy subjects
CORRECTIONS = ("linear-gap", "linear-prediction", "covariate")  # of the brain-age gap
EPILOGUE = "The bash script beside this one sets these flags from variables; the README explains each."


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep line breaks of descriptions, show defaults."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=100)


def _boolean(text: str) -> bool:
    """Read true or false in the usual spellings."""
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")
    return values[text.lower()]


def _number(text: str, low: float, strict: bool, kind: type) -> float:
    """Read a number above (or at) a bound."""
    try:
        value = kind(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from error
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"'{text}' is not a finite number")
    if not (value > low if strict else value >= low):
        raise argparse.ArgumentTypeError(
            f"{text} is too small; expected {'more than' if strict else 'at least'} {low:g}"
        )
    return value  # type: ignore[no-any-return]


def _recipe_of(stage: int, name: str) -> dict[str, Any]:
    """Return the defaults of a stage in a recipe."""
    return RECIPES[name] | (SECOND_STAGE[name] if stage == 2 else {})


def _add_recipe_flag(group: Any, stage: int, *names: str, kind: Any, meaning: str, choices: Any = ()) -> None:
    """Add a flag that is None, or empty, until `parse_training_flags` takes it from the recipe."""
    flag = names[0].removeprefix("--")

    def read(text: str) -> Any:
        value = kind(text) if text else None
        if choices and text and value not in choices:
            raise argparse.ArgumentTypeError(f"'{text}' is none of {', '.join(choices)}")
        return value

    def shown(value: Any) -> str:
        if isinstance(value, tuple):
            return ",".join(value) or "none"
        return f"{value:g}" if isinstance(value, float) else str(value).lower()

    defaults = ", ".join(f"{name}: {shown(_recipe_of(stage, name)[flag])}" for name in RECIPES)
    metavar = "{" + ",".join(choices) + "}" if choices else "{true,false}" if kind is _boolean else flag.upper()
    group.add_argument(*names, type=read, default=argparse.SUPPRESS, metavar=metavar, help=f"{meaning} ({defaults})")


def _some_of(choices: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return a reader of names with commas between them, or ``none``."""

    def read(text: str) -> tuple[str, ...]:
        names = () if text == "none" else tuple(text.split(","))
        unknown = [name for name in names if name not in choices]
        if unknown:
            raise argparse.ArgumentTypeError(f"'{unknown[0]}' is none of none, {', '.join(choices)}")
        return names

    return read


def _fraction(text: str) -> float:
    value = _number(text, 0, True, float)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text} is too large; expected less than 1")
    return value


def _positive(text: str) -> float:
    return _number(text, 0, True, float)


def _not_negative(text: str) -> float:
    return _number(text, 0, False, float)


def _count(text: str) -> float:
    return _number(text, 1, False, int)


def _whole(text: str) -> float:
    return _number(text, 0, False, int)


def _folds(text: str) -> float:
    value = _number(text, 0, False, int)
    if value == 1:
        raise argparse.ArgumentTypeError("1 fold leaves nothing to train on; expected 0 or at least 2")
    return value


def _optional_path(text: str) -> Path | None:
    """Read a path; nothing at all means none."""
    return Path(text) if text else None


def _optional_text(text: str) -> str | None:
    """Read a text; nothing at all means none."""
    return text or None


class _Ignored(argparse.Action):
    """A flag of the authors' scripts that has no use here."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        print(f"note: {option_string} is taken from the authors' scripts, and ignored")


def _ignore(parser: argparse.ArgumentParser, *flags: str) -> None:
    """Accept flags that the authors' scripts pass."""
    for flag in flags:
        parser.add_argument(flag, action=_Ignored, dest=argparse.SUPPRESS, help=argparse.SUPPRESS)


def _ranking(text: str) -> str:
    """Read a ranker; the authors' name for theirs is ``ranking``."""
    return {"ranking": "sodeep"}.get(text.lower(), text.lower())


class _Parser(argparse.ArgumentParser):
    """Says of a wrong flag one line, not all flags."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} ({self.prog} --help explains every flag)\n")


def make_parser(description: str) -> argparse.ArgumentParser:
    """Make an empty parser in the house style."""
    return _Parser(description=description, epilog=EPILOGUE, formatter_class=_Formatter, allow_abbrev=False)


def _add_timeout(group: Any) -> None:
    group.add_argument(
        "--timeout", type=_positive, default=600.0, help="seconds after which the preprocessing of a scan is given up"
    )


def _add_device(group: Any) -> None:
    group.add_argument(
        "--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto: CUDA where there is a GPU"
    )


def add_hardware_flags(
    parser: argparse.ArgumentParser, stage: int | None = None, cache_folder: Path | None = Path("data/cache")
) -> None:
    """Add what depends on the machine alone; the batch size of training is the recipe's."""
    group = parser.add_argument_group("machine")
    if stage:
        _add_recipe_flag(group, stage, "--batch_size", kind=_count, meaning="scans in a batch, of each process")
    else:
        group.add_argument("--batch_size", type=_count, default=8, help="scans in a batch, of each process")
    _add_machine_flags(group, cache_folder)


def _add_machine_flags(group: Any, cache_folder: Path | None) -> None:
    group.add_argument(
        "--num_workers",
        type=_whole,
        default=8,
        help="processes that read scans, at most one for each processor; 0 reads in the main one",
    )
    _add_device(group)
    group.add_argument(
        "--precision",
        choices=("auto", "bfloat16", "float32"),
        default="auto",
        help="of the network; the head and the losses always run in float32. auto: bfloat16 on CUDA, float32 on a CPU",
    )
    if cache_folder is None:
        return
    group.add_argument(
        "--cache_folder",
        type=_optional_path,
        default=cache_folder,
        help="where scans are kept ready after they were read once, at most 3.6 MB each; made anew for scans that change; '' reads the scans themselves each time",
    )


def _add_memory_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("memory and speed of training")
    group.add_argument(
        "--accumulation_steps",
        type=_count,
        default=1,
        help="batches whose gradients are averaged for one step, where a larger batch does not fit; ranks compare the scans of one batch",
    )
    group.add_argument(
        "--activation_checkpointing",
        type=_boolean,
        default=False,
        metavar="{true,false}",
        help="compute each block again in the backward pass rather than keep it: less memory, about a third more time",
    )
    group.add_argument(
        "--compile",
        type=_boolean,
        default=False,
        metavar="{true,false}",
        help="fuse pointwise operations by torch.compile, which takes minutes at the start; see docs/performance.md",
    )


def training_parser(stage: int) -> argparse.ArgumentParser:
    """Return the parser of ``train_first_stage.py`` or ``train_second_stage.py``."""
    if stage == 1:
        parser = make_parser(
            "Train the first stage of TSAN: brain age from a T1-weighted scan (and sex).\n\n"
            "Writes best.pt, last.pt, metrics.csv, hyperparameters.json and TensorBoard events to the\n"
            "output folder, and <split>_discretized_age.npy, which the second stage needs."
        )
    else:
        parser = make_parser(
            "Train the second stage of TSAN: the residual to the first stage's discretized ages.\n\n"
            "Reads <split>_discretized_age.npy beside the first stage's checkpoint; the first stage\n"
            "itself is not run. Writes best.pt, last.pt, metrics.csv, hyperparameters.json and\n"
            "TensorBoard events to the output folder."
        )
    parser.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        default="small_cohort",
        help="the defaults of the flags that name two: small_cohort, found best with about a hundred scans (docs/results.md); paper, as the authors' code",
    )
    _add_training_data_flags(parser, stage)
    _add_network_flags(parser, stage)
    _add_loss_flags(parser, stage)
    _add_optimization_flags(parser, stage)
    add_hardware_flags(parser, stage)
    _add_memory_flags(parser)
    _ignore(parser, "--print_freq", "--warmup_lr_init", "--model_name", "--npz_name", "--plot_name")
    if stage == 2:
        _ignore(parser, "--test_folder")
    return parser


def parse_training_flags(stage: int, flags: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line of a training script, or `flags`; refuse those that contradict each other."""
    parser = training_parser(stage)
    args = parser.parse_args(flags)
    known = {action.dest for action in parser._actions if action.default is argparse.SUPPRESS}  # of `_add_recipe_flag`
    recipe = _recipe_of(stage, args.recipe)
    warmup_given, blocks_given = (getattr(args, name, None) is not None for name in ("warmup_epochs", "blocks"))
    if getattr(args, "scheduler", None) == "plateau":
        recipe["warmup_epochs"] = 0
    for name, value in recipe.items():
        if name in known and getattr(args, name, None) is None:
            setattr(args, name, value)
    if not warmup_given:  # of a training that is shorter than the recipe's
        args.warmup_epochs = min(args.warmup_epochs, args.epochs - 1)
    if args.valid_folder is None and args.keep == "best":
        parser.error("--keep best needs --valid_folder; give one, or keep the last epoch's weights (--keep last)")
    if args.valid_folder is None and args.scheduler == "plateau":
        parser.error("--scheduler plateau needs --valid_folder; give one, or use cosine or constant")
    if args.ranking == "sodeep" and args.ranking_weight == 0:
        parser.error("--ranking sodeep does nothing with --ranking_weight 0; set RANKING_WEIGHT, such as 10")
    if args.minimum_learning_rate > args.learning_rate:
        parser.error(
            f"--minimum_learning_rate {args.minimum_learning_rate:g} is above --learning_rate {args.learning_rate:g}"
        )
    if args.compile and args.activation_checkpointing:
        parser.error("--compile and --activation_checkpointing do not go together; choose one")
    if args.warmup_epochs >= args.epochs:
        parser.error(
            f"--warmup_epochs {args.warmup_epochs} leaves none of {args.epochs} epochs at the full learning rate"
        )
    if args.model == "perceptron" and (blocks_given or not args.dense_connections):
        parser.error("--model perceptron has no --blocks and no --dense_connections; leave them out")
    if args.warmup_epochs and args.scheduler == "plateau":
        parser.error("--warmup_epochs goes with --scheduler cosine or constant, not with plateau")
    return args


def _add_training_data_flags(parser: argparse.ArgumentParser, stage: int) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--train_folder", type=Path, default=Path("data/train"), help="folder of .nii or .nii.gz scans to train on"
    )
    group.add_argument(
        "--valid_folder",
        type=_optional_path,
        default=Path("data/valid"),
        help="folder of scans that are estimated after each epoch, and choose the best one with --keep best; '' for none",
    )
    if stage == 1:
        group.add_argument(
            "--test_folder",
            type=_optional_path,
            default=Path("data/test"),
            help="folder of scans that get discretized ages too; '' for none",
        )
    group.add_argument(
        "--label_table",
        "--excel_path",
        type=Path,
        default=Path("data/labels.csv"),
        help="table of subject, age (years), sex: .csv, .tsv, .xlsx, .xls",
    )
    group.add_argument(
        "--output_dir",
        type=Path,
        default=Path(f"runs/{'first' if stage == 1 else 'second'}_stage"),
        help="folder of the run; must not hold one already, but for --resume",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in the output folder, exactly as if it had never stopped",
    )
    if stage == 1:
        _add_age_interval(group)
        group.add_argument(
            "--folds",
            type=_folds,
            default=0,
            help="train this many more networks, each on all but one part of the training set, so that its subjects get discretized ages from networks that never saw them; for first stages that know their training subjects by heart, see the README. 0: none",
        )
    else:
        _add_first_stage_checkpoint(group, "checkpoint of the first stage; the second takes its grid and normalization")
        group.add_argument(
            "--discretized_age_folder",
            type=_optional_path,
            default=None,
            help="folder of train_ and valid_discretized_age.npy; default: that of the first stage's checkpoint",
        )
        _add_recipe_flag(
            group,
            stage,
            "--start_from_first_stage",
            kind=_boolean,
            meaning="start with the first stage's weights, and a residual that undoes the discretization; from new weights the second stage hardly learns",
        )
        _add_recipe_flag(
            group,
            stage,
            "--age_jitter",
            kind=_not_negative,
            meaning="standard deviation, years, of an error that is added to the first stage's ages of training subjects in every step, for the first stage knows them too well; ages from networks that never saw the subject (FOLDS) get none",
        )
        group.add_argument(
            "--age_interval",
            "--dis_range",
            type=_positive,
            default=5.0,
            help="step of the discretized ages, years; must be that of the tables",
        )


def _add_network_flags(parser: argparse.ArgumentParser, stage: int) -> None:
    group = parser.add_argument_group("network")
    _add_recipe_flag(
        group,
        stage,
        "--model",
        kind=str.lower,
        choices=("scaledense", "scaledense_paper", "perceptron"),
        meaning="scaledense: that of the authors' code, 102 M parameters; scaledense_paper: the lighter one of the paper's figure, 1.5 M parameters, a tenth of the work; perceptron: weighs every voxel by its place, best with few scans in one space",
    )
    _add_recipe_flag(
        group, stage, "--blocks", kind=_count, meaning="number of blocks; each halves the volume; a perceptron has none"
    )
    _add_recipe_flag(
        group,
        stage,
        "--filters",
        kind=_count,
        meaning="channels of the stem (scaledense) or of the first block (scaledense_paper), or units that weigh the voxels (perceptron)",
    )
    group.add_argument(
        "--dense_connections",
        type=_boolean,
        default=True,
        metavar="{true,false}",
        help="whether every block sees the outputs of all earlier ones, or that of the one before it alone; a perceptron has no blocks",
    )
    group.add_argument(
        "--use_sex",
        "--use_gender",
        type=_boolean,
        default=True,
        metavar="{true,false}",
        help="whether the network is told the sex",
    )
    _add_recipe_flag(
        group,
        stage,
        "--flip_averaging",
        kind=_boolean,
        meaning="whether an estimate is the mean over the volume and its mirror image",
    )
    if stage == 1:
        _add_recipe_flag(
            group,
            stage,
            "--voxel_size",
            kind=_count,
            meaning="mm, of the grid the network works on: 2, or a multiple; scans at 2 mm are averaged down to it",
        )
        _add_recipe_flag(
            group,
            stage,
            "--field_of_view",
            kind=str.lower,
            choices=("brain", "whole"),
            meaning="what of the grid the network looks at: the box of the brain saves a third of the work",
        )
        _add_recipe_flag(
            group,
            stage,
            "--normalization",
            kind=str.lower,
            choices=("brain", "legacy", "local_sd", "registered_sd"),
            meaning="brain: intensities, of zero mean and unit deviation inside it; legacy: as the authors' code before 2023-11-21; local_sd: the standard deviation of the intensities around each voxel, which shows how wide sulci and ventricles are on a coarse grid too, as bash_preprocess.sh measured it on the scanner's grid, or, where it has not, as it is after registration; registered_sd: after registration in any case, for scans of several tool chains together; the second stage takes it over",
        )
    else:
        _add_released_normalization(group)


def _add_age_interval(group: Any) -> None:
    group.add_argument(
        "--age_interval", "--dis_range", type=_positive, default=5.0, help="step of the discretized ages, years"
    )


def _add_first_stage_checkpoint(group: Any, meaning: str) -> None:
    group.add_argument(
        "--first_stage_checkpoint",
        "--first_stage_net",
        type=Path,
        default=Path("runs/first_stage/best.pt"),
        help=meaning,
    )


def _add_released_normalization(group: Any) -> None:
    group.add_argument(
        "--normalization",
        choices=("brain", "legacy"),
        default=None,
        help="of a released checkpoint; legacy: for weights from before 2023-11-21; default: brain",
    )


def _add_loss_flags(parser: argparse.ArgumentParser, stage: int) -> None:
    group = parser.add_argument_group(
        "loss", "error + ranking_weight * (ranking + age_difference_weight * age difference)"
    )
    group.add_argument(
        "--loss",
        type=str.lower,
        choices=("mse", "mae"),
        default="mse",
        help="of the ages: mean squared or mean absolute error",
    )
    group.add_argument(
        "--ranking",
        "--aux_loss",
        type=_ranking,
        choices=("soft", "sodeep", "none"),
        default="soft",
        help="how predicted ages are ranked: soft, in closed form, for any batch size; sodeep, by the sorter of the paper; none: no ranking term, the age difference stays",
    )
    _add_recipe_flag(
        group,
        stage,
        "--ranking_weight",
        "--lbd",
        kind=_not_negative,
        meaning="lambda of the paper; 0: neither ranking nor age difference",
    )
    _add_recipe_flag(group, stage, "--age_difference_weight", "--beta", kind=_not_negative, meaning="beta of the paper")
    group.add_argument(
        "--rank_temperature",
        type=_positive,
        default=1.0,
        help="of the soft ranks, years: ages further apart have sharp ranks",
    )
    group.add_argument(
        "--sorter",
        type=_optional_path,
        default=None,
        help="sorter file for --ranking sodeep; its length must be the batch size",
    )


def _add_optimization_flags(parser: argparse.ArgumentParser, stage: int) -> None:
    group = parser.add_argument_group("optimization")
    _add_recipe_flag(group, stage, "--epochs", kind=_count, meaning="passes over the training set, at most")
    _add_recipe_flag(
        group,
        stage,
        "--batches",
        kind=str.lower,
        choices=("stratified", "shuffled"),
        meaning="stratified: each batch covers the range of ages; shuffled: drawn whatever the ages",
    )
    _add_recipe_flag(
        group,
        stage,
        "--optimizer",
        kind=str.lower,
        choices=("adam", "adamw", "sgd"),
        meaning="the authors use adam for the first stage, sgd at 1e-5 for the second",
    )
    _add_recipe_flag(
        group, stage, "--learning_rate", "--lr", kind=_positive, meaning="at the start, or after the warm-up"
    )
    _add_recipe_flag(
        group,
        stage,
        "--weight_decay",
        kind=_not_negative,
        meaning="L2 penalty (adam, sgd) or decoupled decay (adamw)",
    )
    _add_recipe_flag(group, stage, "--amsgrad", kind=_boolean, meaning="of adam and adamw")
    group.add_argument("--momentum", type=_not_negative, default=0.0, help="of sgd alone")
    _add_recipe_flag(
        group,
        stage,
        "--scheduler",
        "--schedular",
        kind=str.lower,
        choices=("plateau", "cosine", "constant"),
        meaning="plateau: lower the rate when validation MAE stalls; cosine: down to the lowest over all epochs",
    )
    group.add_argument("--plateau_factor", type=_fraction, default=0.5, help="what plateau multiplies the rate by")
    group.add_argument("--plateau_epochs", type=_whole, default=5, help="epochs without gain that plateau waits")
    _add_recipe_flag(
        group,
        stage,
        "--warmup_epochs",
        "--warmup_epoch",
        kind=_whole,
        meaning="epochs of rising rate before cosine or constant",
    )
    group.add_argument(
        "--minimum_learning_rate",
        "--min_lr",
        type=_not_negative,
        default=0.0,
        help="the lowest that plateau and cosine reach",
    )
    group.add_argument(
        "--early_stopping_epochs",
        type=_count,
        default=20,
        help="with --keep best: stop after this many epochs without a better validation MAE",
    )
    _add_recipe_flag(
        group,
        stage,
        "--keep",
        kind=str.lower,
        choices=("best", "last"),
        meaning="which epoch's weights best.pt holds: those of the lowest validation MAE, or the last; a few validation subjects choose badly",
    )
    _add_recipe_flag(
        group,
        stage,
        "--recalibrate",
        kind=_boolean,
        meaning="whether the running statistics of batch norm are taken anew, from the training scans, before the network is evaluated or kept",
    )
    _add_recipe_flag(
        group,
        stage,
        "--augmentation",
        kind=_some_of(AUGMENTATIONS),
        meaning=f"what is changed at random in training volumes: some of {', '.join(AUGMENTATIONS)}, with commas between them, or none; see utils/augmentation.py",
    )
    group.add_argument(
        "--seed", type=_whole, default=0, help="of the weights, the order, the pairs and the augmentation"
    )
    group.add_argument(
        "--save_every_steps", type=_count, default=1000, help="write last.pt within an epoch too, after so many batches"
    )


def testing_parser(stage: int) -> argparse.ArgumentParser:
    """Return the parser of ``test_first_stage.py`` or ``test_second_stage.py``."""
    what = "first stage" if stage == 1 else "whole cascade"
    files = "predictions.csv, predictions.npz, metrics.json and a scatter plot"
    parser = make_parser(
        f"Estimate the brain age of every scan in a folder with the {what} of TSAN.\n\n"
        f"Writes {files} to the output folder"
        + (",\nand <split>_discretized_age.npy, which the second stage needs." if stage == 1 else ".")
        + "\nWithout a label table it predicts all the same."
    )
    folder = "first_stage" if stage == 1 else "second_stage"
    group = parser.add_argument_group("data")
    group.add_argument("--test_folder", type=Path, default=Path("data/test"), help="folder of .nii or .nii.gz scans")
    group.add_argument(
        "--label_table",
        "--excel_path",
        type=_optional_path,
        default=Path("data/labels.csv"),
        help="table of subject, age (years), sex; '' where there is none",
    )
    group.add_argument(
        "--sex", choices=("F", "M"), default=None, help="sex of all subjects that the label table does not tell it of"
    )
    group.add_argument(
        "--checkpoint",
        type=Path,
        default=Path(f"runs/{folder}/best.pt"),
        help="of the trained network, or one that the authors released; says itself what network it holds",
    )
    group.add_argument("--output_dir", type=Path, default=Path(f"runs/{folder}/test"), help="folder for the results")
    group.add_argument("--npz_name", default="predictions.npz", help="file name of the predictions as arrays")
    group.add_argument("--plot_name", default="brain_age.png", help="file name of the scatter plot")
    if stage == 1:
        group.add_argument("--split", default="test", help="name of the split: <split>_discretized_age.npy")
        _add_age_interval(group)
    else:
        _add_first_stage_checkpoint(group, "checkpoint of the first stage that the second was trained on")
        group.add_argument(
            "--discretized_age_file",
            type=_optional_path,
            default=None,
            help="table of test_first_stage.py for these scans; the first stage is then not run again",
        )
    group = parser.add_argument_group("released checkpoints", "Checkpoints of this project know these themselves.")
    group.add_argument(
        "--use_sex",
        "--use_gender",
        type=_boolean,
        default=None,
        metavar="{true,false}",
        help="which of the two heads to use; default: that with sex",
    )
    _add_released_normalization(group)
    if stage == 2:
        group.add_argument(
            "--age_interval",
            "--dis_range",
            type=_positive,
            default=None,
            help="step of the discretized ages, years; default: 5",
        )
    add_hardware_flags(parser)
    _ignore(parser, "--model", "--model_name", "--sorter", "--loss", "--aux_loss", "--lbd", "--beta")
    return parser


def _flags(text: str) -> list[str]:
    """Split flags as a shell does."""
    return shlex.split(text)


def cross_validation_parser() -> argparse.ArgumentParser:
    """Return the parser of ``cross_validate.py``."""
    parser = make_parser(
        "Cross-validate both stages: K folds of like ages, all scans of a person in one, so that everybody\n"
        "is estimated by networks that never saw the person; no validation split chooses anything.\n\n"
        "Writes predictions.csv, metrics.json and a scatter plot of all subjects together, folds.csv, and a\n"
        "folder for each fold. What is finished is not done again. With --weights_dir it then trains on\n"
        "everybody, and writes the weights that predict.py takes."
    )
    parser.add_argument(
        "--scan_folder", type=Path, default=Path("preprocessed"), help="folder of prepared scans, .nii or .nii.gz"
    )
    parser.add_argument(
        "--label_table", type=Path, default=Path("labels.csv"), help="table of subject, age (years), sex"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("runs/cross_validation"), help="folder for everything")
    parser.add_argument("--folds", type=_folds, default=5, help="K, the number of parts: each is tested once")
    parser.add_argument(
        "--members", type=_count, default=1, help="cascades of other seeds in each fold, whose estimates are averaged"
    )
    parser.add_argument("--stages", type=int, choices=(1, 2), default=2, help="1: the first stage alone")
    parser.add_argument("--seed", type=_whole, default=0, help="of the folds; member m trains with seed + m - 1")
    parser.add_argument(
        "--flags", type=_flags, default=[], help="flags for both training scripts, in quotes, such as '--epochs 20'"
    )
    parser.add_argument("--first_stage_flags", type=_flags, default=[], help="flags for train_first_stage.py")
    parser.add_argument("--second_stage_flags", type=_flags, default=[], help="flags for train_second_stage.py")
    parser.add_argument(
        "--weights_dir",
        type=_optional_path,
        default=None,
        help="folder for weights trained on everybody, with a model card; '' for none",
    )
    parser.add_argument("--data_notice", default="", help="name, source and licence of the data, for the model card")
    _add_machine_flags(parser.add_argument_group("machine"), Path("runs/cache"))
    return parser


def prediction_parser() -> argparse.ArgumentParser:
    """Return the parser of ``predict.py``."""
    parser = make_parser(
        "Estimate brain ages of T1-weighted scans, raw or prepared, with weights that are ready.\n\n"
        "Writes predictions.csv (brain age, 90 % interval, gap where the age is known, warnings) and a\n"
        "picture of each scan. A scan that fails is reported and does not stop the others.\n"
        "The exit status is 0 if every scan got an age, 1 if some did not, 2 for wrong input."
    )
    parser.add_argument(
        "--input",
        type=Path,
        default=Path("raw"),
        help="a scan, a folder of scans (.nii, .nii.gz), or a BIDS data set; a scan on the 2 mm grid of MNI152 whose background is 0 is taken as prepared, any other is preprocessed; or the folder of fsl_anat's folders",
    )
    parser.add_argument("--output_dir", type=Path, default=Path("predictions"), help="folder for the results")
    parser.add_argument(
        "--label_table",
        type=_optional_path,
        default=None,
        help="table of subject, age (years), sex, where they are known; '' where there is none",
    )
    parser.add_argument(
        "--sex", choices=("F", "M"), default=None, help="sex of all subjects that the label table does not tell it of"
    )
    parser.add_argument(
        "--weights_dir",
        type=_optional_path,
        default=None,
        help="folder of weights, of bash_cross_validate.sh; in it, registered_sd/ may hold those for brains without local_sd/ beside them, which fail otherwise; default: weights/ of this project",
    )
    parser.add_argument(
        "--explain",
        choices=("none", "occlusion", "integrated_gradients"),
        default="none",
        help="write a map of where the network looks, too: occlusion is easier to read, integrated_gradients faster",
    )
    add_hardware_flags(parser, cache_folder=None)
    _add_timeout(parser)
    return parser


def _paths(text: str) -> list[Path]:
    """Read paths as a shell does, with blanks between them and ``*`` for any name."""
    if os.path.exists(text):  # one path, whatever blanks it has
        return [Path(text)]
    paths = []
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' cannot be split into paths ({error})") from error
    for word in words:
        paths += [Path(name) for name in sorted(glob.glob(word))] or [Path(word)]
    return paths


def _labels(text: str) -> list[str]:
    """Read labels with commas between them."""
    return [label.strip() for label in text.split(",") if label.strip()]


def gap_parser() -> argparse.ArgumentParser:
    """Return the parser of ``analyse_brain_age_gap.py``."""
    parser = make_parser(
        "Turn brain ages into evidence: accuracy, bias correction, diagnosis, uncertainty, repeats, leakage.\n\n"
        "Reads predictions.csv of this project, or any table with subject, age and brain age. Writes\n"
        "report.html, tables (CSV), metrics.json, figures (PNG, SVG) and TensorBoard events. A person counts\n"
        "once, with the first scan; further scans serve the section on repeats."
    )
    data = parser.add_argument_group("data", "Several files stand in quotes, with blanks between them; * is any name.")
    data.add_argument(
        "--predictions",
        type=_paths,
        default=[Path("runs/second_stage/test/predictions.csv")],
        help="the test set: tables of subject, age, brain age; patients too, for the comparison with healthy subjects",
    )
    data.add_argument(
        "--label_table",
        type=_optional_path,
        default=None,
        help="table that tells of the subjects what the predictions do not: diagnosis, site, sex, session, person; '' for none",
    )
    data.add_argument("--output_dir", type=Path, default=Path("runs/brain_age_gap"), help="folder for the results")
    correction = parser.add_argument_group("correction of the gap for its dependence on age")
    correction.add_argument(
        "--correction",
        type=_some_of(CORRECTIONS),
        default=(),
        metavar="{none," + ",".join(CORRECTIONS) + "}",
        help="one, or several with commas between them; all stand beside the uncorrected figures. linear-gap: gap = alpha * age + beta, the authors'; linear-prediction: brain age = a + b * age, inverted; covariate: what is left of the gap after age, its square and sex, for comparing groups alone",
    )
    correction.add_argument(
        "--fit_predictions",
        type=_paths,
        default=[],
        help="predictions of healthy subjects outside the test set and outside training, to fit the correction on: the validation split's, or out-of-fold ones; at least 40, over the ages of the test set",
    )
    correction.add_argument(
        "--correction_file",
        type=_optional_path,
        default=None,
        help="corrections.json of an earlier analysis, to be applied as it is instead of a new fit",
    )
    diagnosis = parser.add_argument_group("diagnosis")
    diagnosis.add_argument("--healthy_label", default="HC", help="how the diagnosis column calls healthy subjects")
    diagnosis.add_argument(
        "--patient_labels",
        type=_labels,
        default=[],
        help="diagnoses to tell from healthy subjects, one by one, with commas between them, such as AD,MCI; default: all of which there are enough persons",
    )
    diagnosis.add_argument(
        "--protocol",
        choices=("ours", "paper"),
        default="ours",
        help="ours: linear support vector machine, repeated stratified 5-fold cross-validation; paper: what the released script does, RBF, C = 10, three shuffle splits",
    )
    diagnosis.add_argument(
        "--match_ages",
        type=_boolean,
        default=False,
        metavar="{true,false}",
        help="compare pairs of a patient and a healthy subject at most 3 years apart; without, older patients look ill for their age alone",
    )
    diagnosis.add_argument(
        "--repeats", type=_count, default=10, help="of the 5 folds, each time drawn anew; of --protocol ours"
    )
    diagnosis.add_argument(
        "--permutations", type=_count, default=1000, help="shuffled labels for the p-value, at least 1 / (this + 1)"
    )
    uncertainty = parser.add_argument_group("uncertainty and repeated scans")
    uncertainty.add_argument(
        "--calibration_predictions",
        type=_paths,
        default=[],
        help="predictions of healthy subjects outside the test set and outside training, whose errors give the intervals; those of --fit_predictions will do",
    )
    uncertainty.add_argument(
        "--coverage", type=_fraction, default=0.9, help="share of new subjects whose age the interval shall hold"
    )
    uncertainty.add_argument(
        "--retest_years",
        type=_not_negative,
        default=1.0,
        help="scans of a person at most so far apart count as test and retest; from those further apart comes the slope per year",
    )
    leakage = parser.add_argument_group("leakage")
    leakage.add_argument(
        "--checkpoints",
        type=_paths,
        default=[],
        help="best.pt of the stages that gave these ages; their training subjects must not be in the test set, nor in the fit",
    )
    leakage.add_argument(
        "--weights_dir", type=_optional_path, default=None, help="likewise, folder of weights that predict.py used"
    )
    leakage.add_argument(
        "--allow_leakage",
        type=_boolean,
        default=False,
        metavar="{true,false}",
        help="go on although persons are on both sides; the report then says so in red",
    )
    columns = parser.add_argument_group("columns", "Where the known names do not fit; of any of the tables.")
    for names, meaning in (
        (("--subject_id_column",), "subject or file name"),
        (("--chronological_age_column", "--age_column"), "chronological age, years"),
        (("--brain_age_column",), "the model's estimate, years"),
        (("--first_stage_age_column",), "another estimate to compare with, such as the first stage's, years"),
        (("--true_brain_age_column",), "true brain age of simulated subjects, years"),
        (("--diagnosis_column",), "diagnosis, healthy or ill"),
        (("--sex_column",), "sex: F or M, 0 or 1"),
        (("--site_column",), "site or scanner"),
        (("--session_column",), "which of a person's scans it is"),
        (("--person_column",), "whose scan it is; default: by the names of BIDS and the public data sets"),
    ):
        columns.add_argument(*names, type=_optional_text, default=None, metavar="NAME", help=meaning)
    parser.add_argument("--seed", type=_whole, default=0, help="of bootstrap, folds and permutations")
    return parser


def parse_gap_flags(flags: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line of ``analyse_brain_age_gap.py``; refuse flags that contradict each other."""
    parser = gap_parser()
    args = parser.parse_args(flags)
    if not args.predictions:
        parser.error("--predictions names no file; give the predictions.csv of a test")
    if args.correction_file and args.fit_predictions:
        parser.error(
            "--correction_file and --fit_predictions contradict each other; apply an old fit, or make a new one"
        )
    if args.correction and not (args.fit_predictions or args.correction_file):
        parser.error(
            "--correction needs --fit_predictions (healthy subjects outside the test set) or --correction_file; it is never fitted on the test set"
        )
    if args.fit_predictions and not args.correction:
        parser.error("--fit_predictions does nothing with --correction none; set CORRECTION, such as linear-gap")
    return args


def _patient_gaps(text: str) -> dict[str, float]:
    """Read the mean true gap of each simulated patient group."""
    gaps = [_number(part, -20, False, float) for part in text.split(",")]
    if len(gaps) != len(PATIENT_GAPS):
        raise argparse.ArgumentTypeError(f"'{text}' is not the years of {' and '.join(PATIENT_GAPS)}, such as 5,10")
    return dict(zip(PATIENT_GAPS, gaps, strict=True))


def cohort_parser() -> argparse.ArgumentParser:
    """Return the parser of ``make_demo_cohort.py``."""
    parser = make_parser(
        "Write a cohort of SIMULATED brains that age visibly, for trying everything without data.\n\n"
        "Writes train/, valid/, test/ (70, 15, 15 %), patients/ where asked for, and labels.csv with\n"
        "age, sex, diagnosis and the true brain age that was drawn."
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("data"),
        help="folder for the cohort; new, empty, or holding this very cohort",
    )
    parser.add_argument("--subjects", type=_count, default=120, help="healthy subjects, 20 to 90 years old")
    parser.add_argument(
        "--patients",
        type=_whole,
        default=0,
        help="subjects of each patient group, MCI and AD",
    )
    parser.add_argument(
        "--patient_gaps",
        type=_patient_gaps,
        default=PATIENT_GAPS,
        help="years, mean true brain-age gap of each group, such as 5,10; 0,0: patients who have none",
    )
    parser.add_argument("--voxel_size", type=_count, default=2, help="mm: 2, or 4 for a CPU")
    parser.add_argument("--seed", type=_whole, default=0, help="of everything random")
    parser.add_argument("--num_workers", type=_count, default=2, help="processes that simulate")
    return parser


def _shard(text: str) -> tuple[int, int]:
    """Read which part of how many, such as ``2/8``."""
    parts = re.fullmatch(r"(\d+)/(\d+)", text)
    if not parts or not 1 <= int(parts[1]) <= int(parts[2]):
        raise argparse.ArgumentTypeError(f"'{text}' is no part such as 1/8, 2/8, ... 8/8")
    return int(parts[1]), int(parts[2])


def preprocessing_parser() -> argparse.ArgumentParser:
    """Return the parser of ``preprocess.py``."""
    parser = make_parser(
        "Take raw T1-weighted scans to the network: brain extracted, bias field corrected, in MNI152\n"
        "space on the grid of FSL's MNI152_T1_2mm.\n\n"
        "Writes <subject>[_<session>].nii.gz for each scan that did not fail, its local deviations in\n"
        "local_sd/, qc.csv, index.html with a picture of each, and dataset_description.json. Scans that\n"
        "are finished are not done again.\n"
        "The exit status is 0 if all passed, 1 if some are doubtful or failed, 2 for wrong input."
    )
    parser.add_argument(
        "--input",
        type=Path,
        default=Path("raw"),
        help="a scan, a folder of scans (.nii, .nii.gz), or a BIDS data set (sub-*/[ses-*/]anat/*_T1w.nii.gz)",
    )
    parser.add_argument("--output_dir", type=Path, default=Path("preprocessed"), help="folder for the results")
    parser.add_argument(
        "--registration",
        choices=("nonlinear", "affine"),
        default="nonlinear",
        help="to the template; docs/preprocessing.md shows what each does to the signs of age",
    )
    parser.add_argument(
        "--num_workers",
        type=_whole,
        default=0,
        help="scans at a time; 0: as many as there are processors, and 2 GiB of memory for each",
    )
    parser.add_argument(
        "--shard",
        type=_shard,
        default=(1, 1),
        metavar="I/N",
        help="do the I-th of N parts of the scans, as a job array does; all write to one output folder",
    )
    parser.add_argument(
        "--keep_failed",
        type=_boolean,
        default=False,
        metavar="{true,false}",
        help="write the brain of a failed scan too, where there is one",
    )
    parser.add_argument(
        "--save_masks",
        type=_boolean,
        default=False,
        metavar="{true,false}",
        help="write the brain mask on the raw scan's own grid, masks/<subject>.nii.gz",
    )
    _add_timeout(parser)
    _add_device(parser)
    return parser


def _fractions(text: str) -> tuple[float, ...]:
    """Read the shares of train, validation and test."""
    shares = tuple(_number(part, 0, False, float) for part in text.split(","))
    if len(shares) != 3 or sum(shares) <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not three shares such as 70,15,15")
    return shares


def _where(text: str) -> tuple[str, frozenset[str]]:
    """Read a condition such as ``DX=CN,MCI``."""
    column, equals, values = text.partition("=")
    if not (column and equals and values):
        raise argparse.ArgumentTypeError(f"'{text}' is no condition such as DX=CN or DX=MCI,Dementia")
    return column, frozenset(values.split(","))


def dataset_parser() -> argparse.ArgumentParser:
    """Return the parser of ``prepare_dataset.py``."""
    parser = make_parser(
        "Split preprocessed scans into train, validation and test, all scans of a person in one, with\n"
        "ages (and sites) spread alike, and write what training takes.\n\n"
        "Writes train/, valid/, test/ with links to the scans, labels.csv and splits.csv. Scans that\n"
        "preprocess.py calls doubtful are left out."
    )
    parser.add_argument(
        "--preprocessed",
        type=_paths,
        default=[Path("preprocessed")],
        help="folder of preprocessed scans: of preprocess.py, or of fsl_anat's folders with T1_to_MNI_nonlin_brain.nii.gz; several, in quotes with blanks between them, where the same people were prepared in several ways",
    )
    parser.add_argument(
        "--label_table",
        type=Path,
        default=Path("labels.csv"),
        help="IXI.xls, oasis_cross-sectional.csv, oasis_longitudinal.csv, OASIS-3's demographics or sessions, ADNIMERGE.csv, Cam-CAN's table, BIDS participants.tsv, or a table with subject_id, age, sex",
    )
    parser.add_argument("--output_dir", type=Path, default=Path("data"), help="folder for the data set; new or empty")
    parser.add_argument(
        "--fractions", type=_fractions, default=(70.0, 15.0, 15.0), help="shares of the persons for train,valid,test"
    )
    parser.add_argument(
        "--person_column",
        type=_optional_text,
        default=None,
        help="column of the table that says whose scan it is; default: by the names of BIDS and the public data sets",
    )
    parser.add_argument(
        "--site_column", type=_optional_text, default=None, help="column of the table whose values to spread evenly too"
    )
    parser.add_argument(
        "--split_column",
        type=_optional_text,
        default=None,
        help="column of the table that tells each scan's split; --fractions is then ignored",
    )
    parser.add_argument(
        "--where",
        type=_where,
        action="append",
        default=[],
        metavar="COLUMN=VALUES",
        help="take only scans whose row has one of these values, such as DX=CN; may be given again",
    )
    parser.add_argument(
        "--include_doubtful",
        type=_boolean,
        default=False,
        metavar="{true,false}",
        help="take scans too that preprocess.py calls doubtful",
    )
    parser.add_argument(
        "--skip_unlabelled",
        type=_boolean,
        default=False,
        metavar="{true,false}",
        help="leave out scans without a row or an age, rather than refuse them",
    )
    parser.add_argument(
        "--copy", type=_boolean, default=False, metavar="{true,false}", help="copy the scans rather than link to them"
    )
    parser.add_argument("--seed", type=_whole, default=0, help="of the split")
    return parser


def sorter_parser() -> argparse.ArgumentParser:
    """Return the parser of ``train_sorter.py``."""
    parser = make_parser(
        "Train a SoDeep sorter: a network that ranks a fixed number of ages, differentiably.\n\n"
        "For --ranking sodeep alone; the default, --ranking soft, needs no sorter. Writes one file\n"
        "and says how well the sorter ranks ages that it has not seen."
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/sorter_8.pt"), help="file for the sorter; must not exist"
    )
    parser.add_argument(
        "--length",
        type=_count,
        default=8,
        help="how many ages it ranks: the batch size of the training that will use it",
    )
    parser.add_argument(
        "--model_type",
        choices=("lstm", "lstmla"),
        default="lstmla",
        help="128 (lstm) or 512 (lstmla, the authors') units",
    )
    parser.add_argument("--youngest", type=float, default=0.0, help="years, lowest age that is drawn")
    parser.add_argument("--oldest", type=float, default=110.0, help="years, highest age that is drawn")
    parser.add_argument("--steps", type=_count, default=3000, help="steps of the optimizer")
    parser.add_argument("--batch_size", type=_count, default=128, help="sequences in a step")
    parser.add_argument(
        "--learning_rate", type=_positive, default=2e-3, help="of Adam, at the start; falls to 0 along a cosine"
    )
    parser.add_argument("--seed", type=_whole, default=0, help="of the weights and the ages")
    _add_device(parser)
    return parser


def throughput_parser() -> argparse.ArgumentParser:
    """Return the parser of ``benchmarks/throughput.py``."""
    parser = make_parser(
        "Measure scans per second and memory of training and inference, ours against the plain way,\n"
        "with the share of what the hardware could do; and how fast scans are loaded.\n\n"
        "Prints tables and writes JSON with device, versions and commit."
    )
    parser.add_argument(
        "--model", choices=("both", "scaledense", "scaledense_paper"), default="both", help="which networks to measure"
    )
    parser.add_argument(
        "--precision",
        choices=("both", "float32", "bfloat16"),
        default="both",
        help="of our way; the plain way has float32",
    )
    parser.add_argument("--batch_size", type=_whole, default=0, help="scans in a batch; 0: 32 on CUDA, 2 on a CPU")
    parser.add_argument("--voxel_size", type=_count, default=2, help="mm, of the grid")
    parser.add_argument("--blocks", type=_count, default=5, help="number of blocks of the networks")
    parser.add_argument("--rounds", type=_count, default=5, help="how often each variant is built and measured")
    parser.add_argument("--steps", type=_count, default=3, help="steps in a round, of which the median counts")
    parser.add_argument(
        "--levers",
        type=_boolean,
        default=False,
        metavar="{true,false}",
        help="measure our way without each of its levers too, and with those that are off by default",
    )
    parser.add_argument("--num_workers", type=_whole, default=8, help="processes that read scans")
    parser.add_argument(
        "--cohort_size", type=_whole, default=0, help="scans, say 100000, of a cohort whose start and memory to measure"
    )
    _add_device(parser)
    parser.add_argument("--output", type=Path, default=Path("runs/throughput.json"), help="file for the figures")
    return parser
