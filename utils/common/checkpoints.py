"""Write and read checkpoints: atomically, and without running code."""

import math
import sys
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import torch

from model.state_dicts import read_plain
from utils.common.errors import InputError
from utils.common.files import replacing

Check = Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """Tell whether a value is a finite number."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def list_of(check: Check) -> Check:
    """Return a check of lists, all of whose items pass another check."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def is_text(value: Any) -> bool:
    """Tell whether a value is a text."""
    return isinstance(value, str)


def _is_preparation(value: Any) -> bool:
    known = isinstance(value, dict) and {"fingerprint", "registration"} <= value.keys()
    return value is None or (known and all(map(is_text, value.values())))


ENTRIES: dict[str, Check] = {  # what may stand in a checkpoint besides its weights, and a check of each
    "network": lambda value: isinstance(value, dict) and all(map(is_text, value)),
    "voxel_size": lambda value: isinstance(value, int) and value >= 2 and value % 2 == 0,
    "normalization": is_text,
    "age_interval": lambda value: is_number(value) and value > 0,
    "first_stage_sha256": is_text,
    "preprocessing": list_of(_is_preparation),
    **dict.fromkeys(("train_subjects", "valid_subjects", "initial_subjects"), list_of(is_text)),
    **dict.fromkeys(("train_persons", "valid_persons"), list_of(is_text)),
    **dict.fromkeys(("train_ages", "valid_ages", "train_sexes", "train_discretized_ages"), list_of(is_number)),
}


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values, whole or not at all; equal contents give equal bytes."""
    with replacing(path) as temporary, temporary.open("wb") as file:  # of a path, torch would store the random name
        try:
            torch.save(_unshared(content), file)
        except RuntimeError as error:  # torch's word for any failed write
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def _unshared(value: Any) -> Any:
    """Copy containers and intern texts, because pickling writes an object that occurs twice only once."""
    if isinstance(value, Mapping):
        return {_unshared(key): _unshared(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_unshared, value))
    return sys.intern(value) if isinstance(value, str) else value


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this project or of the authors, on the CPU.

    Raises
    ------
    InputError
        If the file is missing or damaged, holds anything but tensors and
        plain values, would expand beyond its size, or lacks what a
        checkpoint needs.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; give the best.pt of a finished training")
    try:
        content = read_plain(path)
    except ValueError as error:
        raise InputError(f"{path}: {error}; give a checkpoint of tensors and plain values, such as best.pt") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise InputError(f"{path}: has no 'state_dict'; give a checkpoint of a training")
    wrong = [name for name, usable in ENTRIES.items() if name in content and not usable(content[name])]
    if wrong:
        raise InputError(f"{path}: has no usable {', '.join(wrong)}; give a checkpoint of a training")
    return content


def age_interval_of(checkpoint: Mapping[str, Any], age_interval: float | None) -> float:
    """Return the step of the discretized ages, years, that a network was trained with.

    Parameters
    ----------
    checkpoint : mapping
    age_interval : float or None, years
        For a checkpoint that the authors released; None means 5.

    Raises
    ------
    ValueError
        If `age_interval` contradicts the checkpoint.
    """
    own: float = checkpoint.get("age_interval", age_interval or 5.0)
    if age_interval not in (None, own):
        raise ValueError(f"was trained with AGE_INTERVAL={own:g}; leave it as it is")
    return own
