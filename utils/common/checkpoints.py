"""Write and read checkpoints: atomically, and without running code."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.common.errors import InputError
from utils.common.files import replacing
from utils.data.subjects import Subject, person_of


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


def describe_checkpoint(
    network: dict[str, Any],
    args: Namespace,
    train_subjects: Sequence[Subject],
    valid_subjects: Sequence[Subject],
    first_stage_sha256: str | None = None,
) -> dict[str, Any]:
    """Collect what a checkpoint must say of itself besides its weights.

    Parameters
    ----------
    network : dict
        The fields of the network's configuration.
    args : Namespace with ``voxel_size``, ``normalization``, ``age_interval``, ``keep``, ``scheduler``
    train_subjects, valid_subjects : sequence of Subject
    first_stage_sha256 : str, for a second stage

    Returns
    -------
    dict of plain values
        Validation subjects that were only watched, and chose neither the
        epoch nor the learning rate, are not among them.
    """
    chose = valid_subjects if args.keep == "best" or args.scheduler == "plateau" else []
    second = {}
    if first_stage_sha256 is not None:
        second = {
            "first_stage_sha256": first_stage_sha256,
            "train_discretized_ages": [subject.discretized_age for subject in train_subjects],
        }
    return {
        "network": network,
        "voxel_size": args.voxel_size,
        "normalization": args.normalization,
        "age_interval": args.age_interval,
        "train_subjects": [subject.subject_id for subject in train_subjects],
        "train_ages": [subject.chronological_age for subject in train_subjects],
        "train_sexes": [subject.sex for subject in train_subjects],
        "valid_subjects": [subject.subject_id for subject in chose],
        "valid_ages": [subject.chronological_age for subject in chose],
        **second,
    }


def data_settings(checkpoint: Mapping[str, Any], normalization: str | None) -> tuple[int, str]:
    """Return the voxel size in mm and the normalization that a network expects.

    Parameters
    ----------
    checkpoint : mapping
        One that the authors released works at 2 mm.
    normalization : str or None
        For a released checkpoint; None means ``brain``.

    Raises
    ------
    ValueError
        If `normalization` contradicts the checkpoint.
    """
    own = checkpoint.get("normalization", normalization or "brain")
    if own == "local_sd":
        raise ValueError("was trained on the local deviations of an earlier version, which are others; train it anew")
    if normalization not in (None, own):
        raise ValueError(f"was trained with --normalization {own}; leave the flag out")
    return checkpoint.get("voxel_size", 2), own


def seen_in_training(subjects: Sequence[Subject], path: Path, checkpoint: Mapping[str, Any]) -> np.ndarray:
    """Tell on which subjects a network was trained; warn of them, and of those who chose its epoch.

    Parameters
    ----------
    subjects : sequence of N Subject
    path : Path of the checkpoint, for the warning
    checkpoint : mapping
        One that the authors released does not say whom it has seen; all
        subjects then count as seen, without a warning.

    Returns
    -------
    (N,) bool array
    """
    if "train_subjects" not in checkpoint:
        return np.ones(len(subjects), dtype=bool)
    seen = {}
    for key, use in (("train_subjects", "train"), ("valid_subjects", "choose the epoch of")):
        known = {person_of(subject_id) for subject_id in checkpoint[key]}
        seen[key] = np.array([person_of(subject.subject_id) in known for subject in subjects], dtype=bool)
        if seen[key].any():
            print(
                f"WARNING: {seen[key].sum()} of {len(subjects)} subjects, such as "
                f"{subjects[int(seen[key].argmax())].subject_id}, were used to {use} {path}; "
                "the errors below are smaller than on new subjects"
            )
    return seen["train_subjects"]
