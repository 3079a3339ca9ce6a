"""Fixtures of the checks on a GPU: the device, a small cohort at 2 mm, and the figures that the checks find."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import run_script
from utils.common.files import PROJECT
from utils.common.machine import usable_cores
from utils.common.provenance import describe_run

Figures = dict[str, Any]
OUTPUT = Path(os.environ.get("GPU_CHECK", PROJECT / "runs/gpu_check.json"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the checks of this folder, and skip them where there is no GPU."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("gpu")
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU is visible"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    from utils.common import distributed

    return distributed.start("cuda")


@pytest.fixture(scope="session")
def figures(device) -> Iterator[Figures]:
    """What the checks measured, by name; written to a file at the end."""
    found: Figures = {}
    yield found
    properties = torch.cuda.get_device_properties(device)
    card = {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cards": torch.cuda.device_count(),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
    }
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps({**describe_run(device), **card, "figures": found}, indent=2) + "\n")
    print(f"\n\n{torch.cuda.get_device_name(device)}, {card}")
    print("\n".join(f"{name:<72}{value:>12.4g}" for name, value in found.items()))
    print(f"written to {OUTPUT}")


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 simulated brains at 2 mm: train/, valid/, test/ and labels.csv."""
    folder = tmp_path_factory.mktemp("simulated") / "data"
    workers = min(16, usable_cores())
    run_script("make_demo_cohort.py", "--output_dir", folder, "--subjects", 24, "--num_workers", workers)
    return folder
