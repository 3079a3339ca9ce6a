"""What made a result."""

import subprocess
import sys
import tomllib

import pytest
import torch

from tests.conftest import ROOT
from utils.common.provenance import describe_run, software_version


def test_the_version_is_that_of_the_project() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert software_version() == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize("script", sorted(path.name for path in ROOT.glob("*.py")))
def test_each_script_tells_its_version(script) -> None:
    shown = subprocess.run(
        [sys.executable, ROOT / script, "--version"], capture_output=True, text=True, check=True, cwd=ROOT
    )  # fmt: skip
    assert shown.stdout == f"TSAN {software_version()}\n"


def test_a_machine_without_git_is_described_all_the_same(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert describe_run(torch.device("cpu"))["git_commit"] is None
