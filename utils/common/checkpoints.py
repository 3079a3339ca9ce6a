"""Write and read checkpoints: atomically, and without running code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils.common.errors import InputError
from utils.common.files import replacing


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values, whole or not at all."""
    with replacing(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this project or of the authors, on the CPU.

    Raises
    ------
    InputError
        If the file is missing or damaged, holds anything but tensors and
        plain values, or has no ``state_dict``.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint; give the best.pt of a finished training")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises many types
        raise InputError(
            f"{path}: is no checkpoint, is damaged, or cannot be loaded without running code "
            f"({type(error).__name__}); give the best.pt of a training, or a checkpoint of tensors and plain values"
        ) from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise InputError(f"{path}: has no 'state_dict'; give a checkpoint of a training")
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
