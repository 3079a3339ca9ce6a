"""What of the machine a process may use."""

import os

import pytest
import torch

from utils.common import machine
from utils.common.machine import usable_cores
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
