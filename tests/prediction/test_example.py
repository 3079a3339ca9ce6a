"""The known answer of ``bash_example.sh``, and that another brain does not give it."""

import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np

from tests.conftest import ROOT


def run_example(project: Path, output_dir: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(project / "bash_example.sh")], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHON": sys.executable, "OUTPUT_DIR": str(output_dir), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip


def test_the_example_has_the_expected_age_and_a_picture(tmp_path) -> None:
    result = run_example(ROOT, tmp_path / "out")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "WARNING" not in result.stdout + result.stderr
    *_, picture, answer = result.stdout.splitlines()
    assert answer.endswith("years, expected 23.79 +/- 0.05 years")
    assert Path(picture.removeprefix("picture: ")).stat().st_size > 10_000


def test_a_shifted_brain_has_another_age(tmp_path) -> None:
    project = tmp_path / "project"
    (project / "example").mkdir(parents=True)
    for path in ROOT.iterdir():
        if path.name not in ("example", ".venv", ".git"):
            (project / path.name).symlink_to(path)
    brain = nibabel.load(ROOT / "example" / "brain.nii.gz")
    shifted = np.roll(np.asarray(brain.dataobj), 1, axis=1)  # by 2 mm
    nibabel.save(nibabel.Nifti1Image(shifted, brain.affine, brain.header), project / "example" / "brain.nii.gz")
    result = run_example(project, tmp_path / "out")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "expected 23.79 +/- 0.05 years" in result.stdout
    assert "computes another age" in result.stderr
