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
    "frozen blocks",
]  # fmt: skip
PREDICTIONS = ["prediction, folded", "prediction, folded, bfloat16", "prediction", "map"]
STEPS = 2
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


def run(library: Path, *arguments: str) -> Found:
    result = subprocess.run(
        [sys.executable, "-m", "tests.fake_cuda.program", str(library), *arguments],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return {found.pop("case"): found for found in map(json.loads, result.stdout.splitlines())}


@pytest.fixture(scope="module")
def found(library) -> Found:
    return run(library)


def test_every_case_is_looked_at(found) -> None:
    assert list(found) == [*TRAININGS, *PREDICTIONS, "sorter"]


@pytest.mark.parametrize("case", [*TRAININGS, *PREDICTIONS, "sorter"])
def test_nothing_mixes_devices(found, case) -> None:
    assert not found[case]["error"]


@pytest.mark.parametrize("case", TRAININGS)
def test_a_training_step_waits_for_the_device_once(found, case) -> None:
    assert found[case]["waits"] == ["number"] * STEPS


@pytest.mark.parametrize("case", TRAININGS)
def test_convolutions_run_in_bfloat16_unless_asked_otherwise(found, case) -> None:
    assert found[case]["types"] == (["float32"] if "float32" in case else ["bfloat16"])


def test_predictions_run_in_float32_unless_asked_otherwise(found) -> None:
    types = {case: found[case]["types"] for case in PREDICTIONS}
    assert types == {case: ["float32"] for case in PREDICTIONS} | {"prediction, folded, bfloat16": ["bfloat16"]}
    assert all(found[case]["waits"] == ["copy"] for case in PREDICTIONS if case != "map")


def test_what_is_broken_is_seen(library) -> None:
    """The same checks, with a tensor on the wrong device, with a copy to the CPU, and without autocast."""
    assert "found at least two devices" in run(library, "device", "first stage")["first stage"]["error"]
    assert len(run(library, "wait", "first stage")["first stage"]["waits"]) > STEPS
    assert run(library, "type", "first stage")["first stage"]["types"] == ["bfloat16", "float32"]
