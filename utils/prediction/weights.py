"""Weights that are shipped: several trained cascades, and what one must know of them."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from model.building import REMOVED
from model.conventions import NORMALIZATIONS
from utils.common.errors import InputError
from utils.common.files import check_writable, replacing, write_json
from utils.evaluation.metrics import INTERVAL_COVERAGE, interval_radius

MANIFEST = "weights.json"
CARD = "MODEL_CARD.md"
REFERENCE = "mean_volume.safetensors"
DEFAULT_FOLDER = Path(__file__).resolve().parents[2] / "weights"
STAGES = ("first_stage", "second_stage")
NEEDED: dict[str, Callable[[Any], bool]] = {  # entries of the manifest, and whether one can be used
    "members": lambda value: value >= 1,
    "networks": lambda value: set(value) == set(STAGES),
    "voxel_size": lambda value: value >= 2 and value % 2 == 0,
    "normalization": lambda value: value in NORMALIZATIONS,
    "age_interval": lambda value: value > 0,
    "age_range": lambda value: value[0] < value[1],
    "out_of_fold_errors": lambda value: np.isfinite(interval_radius(value, INTERVAL_COVERAGE)),
    "training_persons": lambda value: isinstance(value, list),
    "preprocessing": lambda value: isinstance(value, list),  # before, it was that of all scans
}


def _small(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return weights in half the bytes; the statistics of batch norm stay as they are, for they may be large."""
    keep = not tensor.is_floating_point() or "running_" in name
    return tensor.contiguous() if keep else tensor.half().contiguous()


def weights_file(folder: Path, member: int, stage: str) -> Path:
    """Return where the weights of a stage of the member, counted from 1, lie."""
    return folder / f"member_{member}_{stage}.safetensors"


def check_weights_folder(folder: Path) -> None:
    """Refuse a folder for new weights that cannot be written, or holds some already.

    Raises
    ------
    InputError
    """
    check_writable(folder)
    if (folder / MANIFEST).exists():
        raise InputError(f"{folder}: holds weights already; set another WEIGHTS_DIR (--weights_dir)")


def save_weights(
    folder: Path,
    members: Sequence[Sequence[Mapping[str, Any]]],
    manifest: Mapping[str, Any],
    card: str,
    reference: torch.Tensor,
) -> None:
    """Write the weights of trained cascades; the manifest comes last.

    Parameters
    ----------
    folder : Path
    members : sequence of (first stage, second stage) checkpoints
        Of `utils.common.checkpoints.load_checkpoint`; they differ in their weights
        alone.
    manifest : mapping
        What else to tell of them, of plain values.
    card : str
        The model card, Markdown.
    reference : (D, H, W) float32 tensor
        The mean of the training volumes, normalized.
    """
    with replacing(folder / REFERENCE) as temporary:
        temporary.write_bytes(save({"volume": reference.half().contiguous()}))
    for number, checkpoints in enumerate(members, 1):
        for stage, checkpoint in zip(STAGES, checkpoints, strict=True):
            tensors = {name: _small(name, tensor) for name, tensor in checkpoint["state_dict"].items()}
            with replacing(weights_file(folder, number, stage)) as temporary:
                temporary.write_bytes(save(tensors))
    networks = {stage: checkpoint["network"] for stage, checkpoint in zip(STAGES, members[0], strict=True)}
    with replacing(folder / CARD) as temporary:
        temporary.write_text(card, encoding="utf-8")
    settings = {name: members[0][0][name] for name in ("voxel_size", "normalization", "age_interval")}
    write_json(folder / MANIFEST, {"members": len(members), "networks": networks, **settings, **manifest})


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read what is said of weights, without the weights.

    Raises
    ------
    InputError
        If the manifest is missing, damaged or of an older version.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if manifest.get("normalization") in REMOVED:
            raise ValueError("they are of version 0.1, which worked on local deviations; train new ones")
        wrong = [name for name, usable in NEEDED.items() if name not in manifest or not _passes(usable, manifest[name])]
        if wrong:
            raise ValueError(f"lacks a usable {', '.join(wrong)}")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: no readable manifest of weights ({error}); set WEIGHTS_DIR (--weights_dir) to "
            "the folder weights/ of this project, or to one that bash_cross_validate.sh wrote"
        ) from error
    return manifest


def _passes(usable: Callable[[Any], bool], value: Any) -> bool:
    """Tell whether a value, of whatever type, passes a check that is written for the right one."""
    try:
        return bool(usable(value))
    except (TypeError, ValueError, IndexError, KeyError):
        return False


def load_weights(folder: Path) -> tuple[dict[str, Any], list[list[dict[str, Any]]]]:
    """Read what `save_weights` wrote.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    manifest : dict
    members : list of [first stage, second stage] checkpoints
        As `model.building.load_network` takes them.

    Raises
    ------
    InputError
        If a file is missing or damaged.
    """
    manifest = read_manifest(folder)
    members: list[list[dict[str, Any]]] = []
    for number in range(1, int(manifest["members"]) + 1):
        members.append([])
        for stage in STAGES:
            file = weights_file(folder, number, stage)
            try:
                state: dict[str, torch.Tensor] = load_file(file)
            except (OSError, SafetensorError) as error:
                raise InputError(
                    f"{file}: cannot be read ({error}); fetch the folder of weights again, with all its files"
                ) from error
            whole = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
            members[-1].append({"state_dict": whole, "network": manifest["networks"][stage]})
    return manifest, members


def load_reference(folder: Path) -> torch.Tensor:
    """Return the mean of the training volumes, (1, 1, D, H, W) float32 tensor, normalized."""
    try:
        volume = load_file(folder / REFERENCE)["volume"]
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(
            f"{folder / REFERENCE}: cannot be read ({error}); fetch the folder of weights again"
        ) from error
    return volume.float()[None, None]
