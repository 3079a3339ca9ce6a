"""Training, prediction and maps on a GPU, shown without one: devices, types, and what waits for the device."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT

TRAININGS = [
    "first stage", "second stage", "float32, sgd, no ranking", "every augmentation, absolute error",
    "activation checkpointing", "accumulation, adam, amsgrad", "paper's network", "plain blocks", "without sex",
    "frozen blocks", "one of two processes",
]  # fmt: skip
PREDICTIONS = ["prediction, folded", "prediction, folded, bfloat16", "prediction", "map"]
Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stub of a CUDA device, compiled."""
    compiler = shutil.which("g++")
    if not compiler:
        pytest.skip("g++ is not installed")
    if torch.version.cuda:
        pytest.skip("this torch has CUDA itself")
    folder, path = Path(torch.__file__).parent, tmp_path_factory.mktemp("stub") / "device.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-std=c++20", "-I", str(folder / "include"), str(Path(__file__).parent / "device.cpp"),
         "-o", str(path), "-L", str(folder / "lib"), f"-Wl,-rpath,{folder / 'lib'}", "-lc10", "-ltorch_cpu"],
        check=True,
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def found(library) -> Found:
    """What each case did."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.fake_cuda.program", str(library)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return {case.pop("case"): case for case in map(json.loads, result.stdout.splitlines())}


def test_every_case_is_looked_at(found) -> None:
    assert list(found) == [*TRAININGS, *PREDICTIONS, "sorter", "wrong device", "wait", "upload", "wrong type"]


@pytest.mark.parametrize("case", [*TRAININGS, *PREDICTIONS, "sorter"])
def test_nothing_mixes_devices(found, case) -> None:
    assert not found[case]["error"]


@pytest.mark.parametrize("case", TRAININGS)
def test_a_training_step_never_waits_for_the_device(found, case) -> None:
    assert not found[case]["waits"]


@pytest.mark.parametrize("case", TRAININGS)
def test_convolutions_run_in_bfloat16_unless_asked_otherwise(found, case) -> None:
    assert found[case]["types"] == (["float32"] if "float32" in case else ["bfloat16"])


def test_predictions_run_in_float32_unless_asked_otherwise(found) -> None:
    types = {case: found[case]["types"] for case in PREDICTIONS}
    assert types == {case: ["float32"] for case in PREDICTIONS} | {"prediction, folded, bfloat16": ["bfloat16"]}
    assert all(found[case]["waits"] == ["copy"] for case in PREDICTIONS if case != "map")


def test_what_is_broken_is_seen(found) -> None:
    """A tensor on the wrong device, a copy to the CPU or from it in each block, a block without autocast."""
    assert "found at least two devices" in found["wrong device"]["error"]
    assert len(found["wait"]["waits"]) > 1
    assert len(found["upload"]["waits"]) > 1
    assert found["wrong type"]["types"] == ["bfloat16", "float32"]
