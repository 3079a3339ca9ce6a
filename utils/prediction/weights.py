"""Weights as they are shipped: trained cascades, a manifest and a model card."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from model.building import REMOVED, load_network
from model.conventions import NORMALIZATIONS
from model.scaledense import ScaleDense
from utils.common.checkpoints import ENTRIES, Check, age_interval_of, is_number, is_text, list_of, load_checkpoint
from utils.common.errors import InputError, user_errors
from utils.common.files import check_writable, read_json, replacing, sha256_of, write_json
from utils.data.images import model_grid
from utils.data.scans import data_settings
from utils.data.subjects import trained_persons
from utils.evaluation.metrics import INTERVAL_COVERAGE, interval_radius
from utils.prediction.likeness import TypicalVolumes

MANIFEST = "weights.json"
CARD = "MODEL_CARD.md"
TYPICAL_VOLUMES = "typical_volumes.safetensors"
STAGES = ("first_stage", "second_stage")
DATA_SETTINGS = ("voxel_size", "normalization", "age_interval")


def _is_range(value: Any) -> bool:
    return list_of(is_number)(value) and len(value) == 2 and value[0] <= value[1]


NEEDED: dict[str, Check] = {  # entries of the manifest, and a check of each
    "members": lambda value: isinstance(value, int) and value >= 1,
    "networks": lambda value: set(value) == set(STAGES) and all(map(ENTRIES["network"], value.values())),
    **{name: ENTRIES[name] for name in ("voxel_size", "age_interval")},
    "normalization": lambda value: value in NORMALIZATIONS,
    "age_range": _is_range,
    "out_of_fold_errors": lambda value: (
        list_of(is_number)(value) and np.isfinite(interval_radius(value, INTERVAL_COVERAGE))
    ),
    "sha256": lambda value: isinstance(value, dict),
    "distance_limit": lambda value: is_number(value) and value > 0,
    "training_persons": list_of(is_text),
    "preprocessing": ENTRIES["preprocessing"],
}
OPTIONAL: dict[str, Check] = {
    "unseen_site_gaps": lambda value: all(map(list_of(is_number), value.values())),
    "unseen_site_ages": _is_range,
}


def _small(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return weights in half precision; the statistics of batch norm, which may be large, stay as they are."""
    keep = not tensor.is_floating_point() or "running_" in name
    return tensor.contiguous() if keep else tensor.half().contiguous()


def weights_file(folder: Path, member: int, stage: str) -> Path:
    """Return the path of a member's weights of a stage; members are counted from 1."""
    return folder / f"member_{member}_{stage}.safetensors"


def check_weights_folder(folder: Path) -> None:
    """Refuse a folder for new weights that cannot be written or holds weights already.

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
    typical: TypicalVolumes,
) -> None:
    """Write the weights of trained cascades; the manifest comes last.

    Parameters
    ----------
    folder : Path
    members : sequence of (first stage, second stage) checkpoints
        Of `utils.common.checkpoints.load_checkpoint`; members differ only in their weights.
    manifest : mapping of plain values
        Further entries of the manifest.
    card : str
        The model card, Markdown.
    typical : TypicalVolumes
        Of the training scans.
    """
    with replacing(folder / TYPICAL_VOLUMES) as temporary:
        temporary.write_bytes(save({name: part.half().contiguous() for name, part in typical._asdict().items()}))
    for number, checkpoints in enumerate(members, 1):
        for stage, checkpoint in zip(STAGES, checkpoints, strict=True):
            tensors = {name: _small(name, tensor) for name, tensor in checkpoint["state_dict"].items()}
            with replacing(weights_file(folder, number, stage)) as temporary:
                temporary.write_bytes(save(tensors))
    networks = {stage: checkpoint["network"] for stage, checkpoint in zip(STAGES, members[0], strict=True)}
    with replacing(folder / CARD) as temporary:
        temporary.write_text(card, encoding="utf-8")
    settings = {name: members[0][0][name] for name in DATA_SETTINGS}
    sums = {file.name: sha256_of(file) for file in sorted(folder.glob("*.safetensors"))}
    content = {"members": len(members), "networks": networks, **settings, "sha256": sums, **manifest}
    write_json(folder / MANIFEST, content)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of weights.

    Raises
    ------
    InputError
        If it is missing or damaged, or describes weights of a kind that was removed.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = read_json(path)
        if manifest.get("normalization") in REMOVED:
            raise InputError(
                f"{path}: these weights are of version 0.1 and work on local deviations, a kind that was removed; "
                "set WEIGHTS_DIR (--weights_dir) to weights of this version"
            )
        if "distance_limit" not in manifest and "out_of_fold_errors" in manifest:
            raise InputError(
                f"{path}: these weights are of an earlier version; make them again, or use weights/ of this one"
            )
        wrong = [
            name
            for name, usable in {**NEEDED, **OPTIONAL}.items()
            if (name in manifest or name in NEEDED) and not _passes(usable, manifest.get(name))
        ]
        if wrong:
            raise ValueError(f"lacks a usable {', '.join(wrong)}")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: no readable manifest of weights ({error}); set WEIGHTS_DIR (--weights_dir) to "
            "the folder weights/ of this project, or to one that bash_cross_validate.sh wrote"
        ) from error
    return manifest


def _passes(usable: Check, value: Any) -> bool:
    """Apply a check to a value that may be of any type."""
    try:
        return bool(usable(value))
    except (TypeError, ValueError, IndexError, KeyError, AttributeError):
        return False


def load_weights(folder: Path) -> tuple[dict[str, Any], list[list[dict[str, Any]]]]:
    """Read weights and their manifest.

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
            state = _read_tensors(weights_file(folder, number, stage), manifest)
            whole = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
            members[-1].append({"state_dict": whole, "network": manifest["networks"][stage]})
    return manifest, members


def _read_tensors(path: Path, manifest: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Read a file of weights, and check that it is the one that the manifest describes."""
    try:
        if sha256_of(path) != manifest["sha256"].get(path.name):
            raise InputError(f"{path}: is not the file that {MANIFEST} describes; fetch the folder of weights again")
        return load_file(path)  # type: ignore[no-any-return]
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); fetch the folder of weights again, with all its files"
        ) from error


class InitialWeights(NamedTuple):
    """A network to start a training from, and what must stay as it was.

    Parameters
    ----------
    network : ScaleDense
    voxel_size : int, mm
    normalization : str
    subjects : list of str
        The persons on whom it was trained.
    """

    network: ScaleDense
    voxel_size: int
    normalization: str
    subjects: list[str]


def read_initial_weights(path: Path | None, stage: int, age_interval: float) -> InitialWeights | None:
    """Read the weights of one stage to start a training from.

    Parameters
    ----------
    path : Path or None
        A folder of weights, of which the first member is taken, or a checkpoint; None gives None.
    stage : {1, 2}
    age_interval : float, years
        Of the training; must be that of the weights.

    Raises
    ------
    InputError
        If there is none, it cannot be read, or does not fit.
    """
    if path is None:
        return None
    if path.is_dir():
        manifest, members = load_weights(path)
        checkpoint = {**{name: manifest[name] for name in DATA_SETTINGS}, **members[0][stage - 1]}
        subjects = manifest["training_persons"]
    else:
        checkpoint = load_checkpoint(path)
        subjects = trained_persons(checkpoint)
    with user_errors(str(path)):
        network = load_network(checkpoint, stage)
        age_interval_of(checkpoint, age_interval)
        return InitialWeights(network, *data_settings(checkpoint, None), subjects)


def check_same_network(
    path: Path, initial: InitialWeights, first_stage: ScaleDense, voxel_size: int, normalization: str
) -> None:
    """Refuse initial weights of a second stage whose trunk or grid is not that of the first stage.

    Raises
    ------
    InputError
    """
    wanted = first_stage.config
    own = replace(initial.network.config, stage=1, age_mean=wanted.age_mean, age_sd=wanted.age_sd)
    if (own, initial.voxel_size, initial.normalization) != (wanted, voxel_size, normalization):
        raise InputError(f"{path}: holds another network than the first stage; start the first stage from it, too")


def load_typical_volumes(folder: Path) -> TypicalVolumes:
    """Return what the training scans look like.

    Raises
    ------
    InputError
        If the file is missing or damaged.
    """
    manifest = read_manifest(folder)
    parts = _read_tensors(folder / TYPICAL_VOLUMES, manifest)
    shape = (1, 1, *model_grid(manifest["voxel_size"]).shape)
    if {name: part.shape for name, part in parts.items()} != dict.fromkeys(TypicalVolumes._fields, shape):
        raise InputError(f"{folder / TYPICAL_VOLUMES}: holds no volumes of this grid; make the weights again")
    return TypicalVolumes(**{name: parts[name].float() for name in TypicalVolumes._fields})
