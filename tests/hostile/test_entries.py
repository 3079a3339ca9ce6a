"""Checkpoints of the right form with entries of other kinds: refused, or harmless."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.building import load_network
from tests.conftest import QUICK, SMALL_NETWORK, VOXEL_SIZE, data_flags
from tests.prediction.conftest import random_checkpoint
from utils.common.checkpoints import age_interval_of, load_checkpoint
from utils.common.errors import InputError, user_errors
from utils.data.scans import data_settings
from utils.data.subjects import Subject
from utils.evaluation.predicting import seen_in_training
from utils.training.state import NEEDED

SUBJECTS = [Subject("sub-1", Path("sub-1.nii"), 50.0, 0)]
ODD: list[Any] = [
    None, True, -1, 0, 10**30, 1e400, float("nan"), "", "\x00", [], [None], {}, {"a": {}}, {1: 2}, set(), b"x",
    torch.zeros(2), torch.zeros(2, dtype=torch.complex64), torch.zeros(2).to_sparse(), torch.empty(2, device="meta"),
    torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.quint8), [float("inf")], ["a", 1], (1, 2, 3),
]  # fmt: skip


def places(content: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where the entries of nested dictionaries stand; of many equal ones, the weights, the first two."""
    for key, value in content.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from list(places(value, (*prefix, key)))[: 2 if key == "state_dict" else None]


def changed(content: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    other = copy.deepcopy(content)
    inner = other
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return other


def use(path: Path) -> None:
    """Do what the scripts do with a checkpoint of the first stage."""
    content = load_checkpoint(path)
    with user_errors(str(path)):
        network = load_network(content, 1)
        data_settings(content, None)
        age_interval_of(content, None)
    seen_in_training(SUBJECTS, path, content)
    with torch.inference_mode():
        age = network.folded()(torch.zeros(1, 1, *network.config.volume_shape), torch.tensor([0]))
    assert np.isfinite(float(age))


def test_a_checkpoint_with_an_odd_entry_is_refused_or_harmless(tmp_path) -> None:
    good = random_checkpoint(1, 0)
    good["state_dict"] = dict(good["state_dict"])
    torch.save(good, tmp_path / "best.pt")
    use(tmp_path / "best.pt")
    refused, lines = 0, set()
    for place in places(good):
        for value in ODD:
            torch.save(changed(good, place, value), tmp_path / "best.pt")
            try:
                use(tmp_path / "best.pt")
            except InputError as error:
                lines.add(len(str(error).splitlines()))
                refused += 1
            except Exception as error:
                raise AssertionError(f"{place} = {value!r}") from error
    assert refused > 300
    assert lines == {1}


def test_a_run_whose_state_has_an_odd_entry_is_refused_or_goes_on(
    first_stage, synthetic_cohort, tmp_path, run_here
) -> None:
    good = torch.load(first_stage / "last.pt", weights_only=True)
    flags = [*data_flags(synthetic_cohort, "train", "valid"), "--test_folder", "", *SMALL_NETWORK, *QUICK, "--epochs", 2,
             "--warmup_epochs", 0, "--voxel_size", VOXEL_SIZE, "--output_dir", tmp_path, "--resume"]  # fmt: skip
    for place in [(key,) for key in NEEDED]:
        for value in (None, [], {}, torch.zeros(2)):
            torch.save(changed(good, place, value), tmp_path / "last.pt")
            try:
                run_here("train_first_stage.py", *flags)
            except InputError:
                continue
            except Exception as error:
                raise AssertionError(f"{place} = {value!r}") from error
