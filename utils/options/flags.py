"""What the flags of all entry points have in common: types, parsers, groups that several of them share."""

import argparse
import difflib
import glob
import math
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from model.conventions import NORMALIZATIONS
from utils.common.choices import Shard
from utils.common.errors import fail
from utils.common.files import PROJECT
from utils.common.provenance import software_version

EPILOGUE = "The bash script of the same name sets these flags from variables; docs/variables.md explains each."
HIGHEST = 2**32 - 1  # of whole numbers, such as seeds
Settings = TypeVar("Settings")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep line breaks of descriptions, show defaults."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=100)


class Parser(argparse.ArgumentParser):
    """A parser in the house style: a wrong flag gets one line, not the list of all flags."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description, epilog=EPILOGUE, formatter_class=_Formatter, allow_abbrev=False)
        meaning = "tell the version of this project, and exit"
        self.add_argument("--version", action="version", version=f"TSAN {software_version()}", help=meaning)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Read flags; those of the command line come with the environment, whose misspelt variables are named."""
        parsed = super().parse_args(args, namespace)
        if args is None:
            scripts = "".join(path.read_text() for path in PROJECT.glob("bash_*.sh"))
            known = {name.removeprefix("--").upper() for name in self._option_string_actions}
            known |= set(re.findall(r"^(?:export )?([A-Z_]+)=", scripts, re.M))
            for name in sorted(set(os.environ) - known):
                alike = difflib.get_close_matches(name, known, 1, cutoff=0.9)
                if alike:
                    print(f"WARNING: the variable {name} means nothing here; did you mean {alike[0]}?")
        return parsed

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: -"):
            wrong = message.split()[2].partition("=")[0]
            alike = difflib.get_close_matches(wrong, self._option_string_actions, 1)
            message += f"; did you mean {alike[0]}?" if alike else ""
        elif message.endswith("expected one argument"):
            name = message.split()[1].rstrip(":").partition("/")[0]
            is_path = self._option_string_actions[name].type in (Path, optional_path, paths)
            message += "; put ./ before a path that begins with a dash" if is_path else ""
        fail([f"error: {message} ({self.prog} --help explains every flag)"])


def flag(group: Any, names: str, default: Any, kind: Callable[[str], Any], meaning: str, **options: Any) -> None:
    """Add a flag.

    Parameters
    ----------
    group : parser or group of one
    names : str
        The flag's name and its aliases, separated by blanks.
    default : str or None
        As a user would type it, and as the bash script has it.
    kind : callable
        Turns a text into a value; raises `argparse.ArgumentTypeError` or `ValueError`.
    meaning : str
    **options
        Further arguments of `argparse.ArgumentParser.add_argument`.
    """
    if kind is boolean:
        options.setdefault("metavar", "{true,false}")
    group.add_argument(*names.split(), default=default, type=kind, help=meaning, **options)


def settings_from(kind: type[Settings], args: argparse.Namespace) -> Settings:
    """Make a dataclass of the flags that have the names of its fields."""
    return kind(**{part.name: getattr(args, part.name) for part in fields(kind)})  # type: ignore[arg-type]


def flags_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags as plain values."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}


# ---- types ----


def boolean(text: str) -> bool:
    """Read true or false in the usual spellings."""
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")
    return values[text.lower()]


def number(text: str, low: float, above: bool = False, kind: Callable[[str], float] = float) -> Any:
    """Read a number that is at least `low`, or above it; a whole one is at most `HIGHEST`."""
    try:
        value = kind(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from error
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"'{text}' is not a finite number")
    if not (value > low if above else value >= low):
        raise argparse.ArgumentTypeError(
            f"{text} is too small; expected {'more than' if above else 'at least'} {low:g}"
        )
    if kind is int and value > HIGHEST:
        raise argparse.ArgumentTypeError(f"{text} is too large; expected at most {HIGHEST}")
    return value


def positive(text: str) -> float:
    """Read a number above 0."""
    return number(text, 0, above=True)  # type: ignore[no-any-return]


def not_negative(text: str) -> float:
    """Read a number of at least 0."""
    return number(text, 0)  # type: ignore[no-any-return]


def count(text: str) -> int:
    """Read a whole number of at least 1."""
    return number(text, 1, kind=int)  # type: ignore[no-any-return]


def whole(text: str) -> int:
    """Read a whole number of at least 0."""
    return number(text, 0, kind=int)  # type: ignore[no-any-return]


def fraction(text: str) -> float:
    """Read a number between 0 and 1."""
    value = positive(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text} is too large; expected less than 1")
    return value


def folds(text: str) -> int:
    """Read a number of folds, or 0 for none."""
    value = whole(text)
    if value == 1:
        raise argparse.ArgumentTypeError("1 fold leaves nothing to train on; expected 0 or at least 2")
    return value


def optional_path(text: str) -> Path | None:
    """Read a path; an empty text means none."""
    return Path(text) if text else None


def optional_text(text: str) -> str | None:
    """Read a text; an empty one means none."""
    return text or None


def some_of(choices: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Return a reader of names separated by commas, or ``none``."""

    def names(text: str) -> tuple[str, ...]:
        given = () if text == "none" else tuple(text.split(","))
        unknown = [name for name in given if name not in choices]
        if unknown:
            raise argparse.ArgumentTypeError(f"'{unknown[0]}' is not among none, {', '.join(choices)}")
        return given

    return names


def paths(text: str) -> list[Path]:
    """Read paths as a shell does, separated by blanks, with ``*`` for any name."""
    if os.path.exists(text):  # one path that may contain blanks
        return [Path(text)]
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' cannot be split into paths ({error})") from error
    return [path for word in words for path in [Path(name) for name in sorted(glob.glob(word))] or [Path(word)]]


def labels(text: str) -> list[str]:
    """Read labels separated by commas."""
    return [label.strip() for label in text.split(",") if label.strip()]


def shard(text: str) -> Shard:
    """Read which share of how many, such as ``2/8``."""
    parts = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not parts or not 1 <= int(parts[1]) <= int(parts[2]):
        raise argparse.ArgumentTypeError(f"'{text}' is no part such as 1/8, 2/8, ... 8/8")
    return Shard(int(parts[1]), int(parts[2]))


# ---- flags of the authors' scripts without a use here ----


class _Ignored(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        print(f"note: {option_string} is a flag of the authors' scripts that has no use here; it is ignored")


def ignore(parser: argparse.ArgumentParser, *names: str) -> None:
    """Accept flags that the authors' scripts pass."""
    for name in names:
        parser.add_argument(name, action=_Ignored, dest=argparse.SUPPRESS, help=argparse.SUPPRESS)


# ---- groups ----


def add_label_table(group: Any, default: str, meaning: str = "") -> None:
    """Add the flag of a table that tells ages and sexes."""
    flag(
        group, "--label_table --excel_path", default, optional_path if meaning else Path,
        f"table of subject, age (years) and sex: .csv, .tsv, .xlsx, .xls{meaning}",
    )  # fmt: skip


def add_age_interval(
    group: Any, default: str | None = "5", meaning: str = "step of the discretized ages, years"
) -> None:
    """Add the flag of the step of the discretized ages."""
    flag(group, "--age_interval --dis_range", default, positive, meaning)


def add_first_stage_checkpoint(group: Any) -> None:
    """Add the flag of the first stage that a second one builds on."""
    flag(
        group, "--first_stage_checkpoint --first_stage_net", "runs/first_stage/best.pt", Path,
        "checkpoint of the first stage that the second builds on",
    )  # fmt: skip


def add_released_normalization(group: Any) -> None:
    """Add the flag that only checkpoints of the authors need."""
    flag(
        group, "--normalization", None, str,
        "for a checkpoint that the authors released: brain, or legacy for weights from before 2023-11-21; "
        "our checkpoints store it",
        choices=NORMALIZATIONS,
    )  # fmt: skip


def add_overwrite(group: Any) -> None:
    """Add the flag without which no result of an earlier call is replaced."""
    flag(group, "--overwrite", "false", boolean, "replace results of an earlier call in the output folder")


def add_device(group: Any) -> None:
    """Add the flag of the device."""
    flag(group, "--device", "auto", str, "auto: CUDA if there is a GPU", choices=("auto", "cuda", "cpu"))


def add_machine_flags(group: Any, cache_folder: str | None, batch_size: str | None, precision: str = "float32") -> None:
    """Add the flags that depend on the machine alone; None leaves one out."""
    if batch_size is not None:
        flag(group, "--batch_size", batch_size, count, "scans in a batch, of each process")
    flag(group, "--num_workers", "8", whole, "processes that read scans, at most one a core; 0: the main process reads")
    add_device(group)
    flag(
        group, "--precision", precision, str,
        "of the network; head and losses always use float32. auto: bfloat16 on NVIDIA GPUs from Ampere on, else "
        "float32; bfloat16 moves ages by up to a year",
        choices=("auto", "bfloat16", "float32"),
    )  # fmt: skip
    if cache_folder is not None:
        flag(
            group, "--cache_folder", cache_folder, optional_path,
            "where decoded scans are kept, at most 3.6 MB each; '': decode them each time",
        )  # fmt: skip


def add_selection(group: Any) -> None:
    """Add which people and sessions of the input are taken."""
    flag(group, "--participants", "", labels, "people to take, separated by commas, such as 01,02; '': all")
    flag(group, "--sessions", "", labels, "sessions to take, separated by commas, such as 1,2; '': all")


def add_shard(group: Any, meaning: str) -> None:
    """Add which share of the work is done, as by an element of a job array."""
    flag(group, "--shard", "1/1", shard, f"I/N: do the I-th of N parts, as a job array does; {meaning}", metavar="I/N")


def add_strict(group: Any, doubtful: str) -> None:
    """Add whether bad scans show in the exit status."""
    flag(group, "--strict", "false", boolean, f"end with status 1 if any scan {doubtful} or failed")


def add_brain_extracted(group: Any) -> None:
    """Add whether scans are brains without skulls."""
    flag(
        group, "--brain_extracted", "auto", str,
        "whether raw scans are brains without skulls, which are not extracted again; auto: tell each by its zeros",
        choices=("auto", "true", "false"),
    )  # fmt: skip


def add_timeout(group: Any) -> None:
    """Add the limit of time for preprocessing a scan."""
    flag(group, "--timeout", "600", positive, "seconds after which preprocessing gives up a scan")
