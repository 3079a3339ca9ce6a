"""What of the machine a process may use."""

import os
import warnings

import pytest
import torch

from utils.common import machine
from utils.common.errors import InputError
from utils.common.machine import usable_cores, use_gpu
from utils.data.dataset import make_loader


@pytest.fixture(autouse=True)
def faked_machine(monkeypatch, tmp_path) -> None:
    """Eight of 64 cores, and no quota."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "CPU_QUOTA", tmp_path / "cpu.max")


@pytest.mark.parametrize(
    ("quota", "cores"), [(None, 8), ("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 8)]
)
def test_cores_follow_the_affinity_and_the_quota_of_a_container(quota, cores) -> None:
    if quota:
        machine.CPU_QUOTA.write_text(f"{quota}\n")
    assert usable_cores() == cores


@pytest.mark.parametrize(("processes", "asked", "workers"), [(1, 20, 8), (1, 3, 3), (1, 0, 0), (4, 20, 2), (16, 20, 1)])
def test_processes_share_the_cores_for_their_workers(monkeypatch, processes, asked, workers) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert make_loader([], [], asked, torch.device("cpu")).num_workers == workers


@pytest.fixture
def installed(monkeypatch, tmp_path) -> None:
    """An NVIDIA GPU that this torch, built for CUDA 13.0, does not find."""
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(machine, "NVIDIA_FILES", (str(tmp_path / "nvidia0"),))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine._tell.cache_clear()


def without_cuda(monkeypatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)


def with_an_old_driver(monkeypatch) -> None:
    def is_available() -> bool:
        warnings.warn(
            "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040).", stacklevel=1
        )
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_cuda, "is built without CUDA: install one that has it"),
        (with_an_old_driver, "PyTorch, built for CUDA 13.0, says: The NVIDIA driver on your system is too old"),
        (lambda patch: patch.setenv("CUDA_VISIBLE_DEVICES", ""), "CUDA_VISIBLE_DEVICES= names none of those"),
        (lambda patch: patch.setenv("CUDA_VISIBLE_DEVICES", "7"), "CUDA_VISIBLE_DEVICES=7 names none of those"),
        (lambda patch: None, "CUDA finds no device"),
    ],
)
def test_an_installed_gpu_that_is_not_used_is_explained_once(installed, monkeypatch, capsys, change, reason) -> None:
    change(monkeypatch)
    assert not use_gpu("auto")
    assert not use_gpu("auto")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("note: an NVIDIA GPU is installed, but the CPU is used; ")
    assert reason in line
    with pytest.raises(InputError, match="--device cuda: no CUDA GPU is visible; .*, or use --device cpu") as caught:
        use_gpu("cuda")
    assert reason in str(caught.value)


def test_who_asks_for_the_cpu_or_has_no_gpu_hears_nothing(installed, monkeypatch, capsys) -> None:
    assert not use_gpu("cpu")
    monkeypatch.setattr(machine, "NVIDIA_FILES", ())
    monkeypatch.setenv("PATH", "")
    assert not use_gpu("auto")
    assert capsys.readouterr().out == ""
    with pytest.raises(InputError, match="no CUDA GPU is visible; check CUDA_VISIBLE_DEVICES, or use --device cpu"):
        use_gpu("cuda")
