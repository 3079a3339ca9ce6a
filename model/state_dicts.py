"""Read files of torch without running code, and check the weights in them."""

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

ARCHIVE = b"PK\x03\x04"  # how files of torch.save begin


def read_plain(path: Path, *classes: type) -> Any:
    """Read a file of ``torch.save`` on the CPU, without running code.

    Parameters
    ----------
    path : Path
    *classes : type
        Allowed besides tensors and plain values.

    Raises
    ------
    ValueError
        If it is damaged, holds anything else, or would expand beyond its size.
    """
    try:
        expanded = _expanded_size(path)
        if expanded <= path.stat().st_size:
            with torch.serialization.safe_globals(list(classes)), warnings.catch_warnings(action="ignore"):
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises many types
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            raise ValueError(f"cannot be loaded without running code ({code[1]})") from error
        raise ValueError(f"is damaged, or of another kind ({type(error).__name__})") from error
    raise ValueError(f"would expand to {expanded} bytes, as no file of torch does; do not trust it")


def _expanded_size(path: Path) -> int:
    """Return the bytes that an archive expands to; torch never compresses its files, nor lets their parts overlap."""
    with path.open("rb") as file:
        if file.read(len(ARCHIVE)) != ARCHIVE:
            return 0
        with zipfile.ZipFile(file) as archive:
            return sum(part.file_size for part in archive.infolist())


def usable_weights(weights: Any) -> dict[str, torch.Tensor]:
    """Return weights by name, floating-point ones in float32.

    Raises
    ------
    ValueError
        If they are no plain, finite numbers.
    """
    if not isinstance(weights, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()
    ):
        raise ValueError("has a 'state_dict' that holds no weights by name")
    usable = {}
    for name, value in weights.items():
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_complex():
            raise ValueError(f"its {name} is not a tensor of plain numbers; save the weights again")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():  # would expand when it is used
            raise ValueError(f"its {name} claims more numbers than the file holds; do not trust this file")
        if not value.isfinite().all():
            raise ValueError(f"its {name} is not finite; its training has failed, so give another checkpoint")
        usable[name] = value.float() if value.is_floating_point() else value
    return usable
