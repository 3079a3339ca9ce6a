"""Values that a shell could take for commands, through the bash scripts: they are names, and nothing else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bad_input.harness import make_study
from tests.conftest import QUICK, ROOT

NAME = "a b; $(touch harmed) `touch harmed` 'c' && touch harmed #"  # of a folder
COMMANDS = "PATH[$(touch harmed)]; `touch harmed`"


def bash(script: str, folder: Path, *flags: object, **variables: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / f"bash_{script}.sh"), *map(str, flags)], cwd=folder, capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
                          **{name: str(value) for name, value in variables.items()}},
    )  # fmt: skip


@pytest.fixture(scope="module")
def study(synthetic_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small study in a folder whose name looks like commands."""
    folder = tmp_path_factory.mktemp("shells")
    make_study(folder / "study", synthetic_cohort)
    (folder / "study").rename(folder / NAME)
    return folder


def test_commands_in_names_of_folders_are_not_run(study) -> None:
    place = study / NAME
    tested = bash(
        "test_second_stage", study, *QUICK[:4], DATA=f"{NAME}/data", CHECKPOINT=f"{NAME}/runs/second_stage/best.pt",
        FIRST_STAGE_CHECKPOINT=f"{NAME}/runs/first_stage/best.pt", OUTPUT_DIR=f"{NAME}/out", CACHE_FOLDER="",
    )  # fmt: skip
    assert tested.returncode == 0, tested.stderr
    assert (place / "out" / "predictions.csv").is_file()
    report = bash(
        "analyse_brain_age_gap", study, "--subject_id_column", "id $(touch harmed)", OUTPUT_DIR=f"{NAME}/report",
        PREDICTIONS=f"{NAME}/out/predictions.csv",
    )  # fmt: skip
    assert report.returncode == 2, report.stderr
    assert "Traceback" not in report.stderr
    assert not list(study.rglob("harmed"))


def test_commands_in_the_values_of_variables_are_not_run(study) -> None:
    """In each variable of a script, in turn: it is refused, or taken as a name."""
    shutil.copytree(study / NAME, study / "plain")
    for variable in ("BATCH_SIZE", "EPOCHS", "PROCESSES", "MODEL", "TRAIN_FOLDER", "OUTPUT_DIR", "RECIPE"):
        trained = bash("train_first_stage", study / "plain", "--voxel_size", 3, **{variable: COMMANDS})
        assert trained.returncode == 2, (variable, trained.stdout, trained.stderr)
        (line,) = trained.stderr.splitlines()
        assert line.startswith("error: "), variable
    assert not list(study.rglob("harmed"))


def test_variables_are_quoted_and_never_evaluated() -> None:
    for script in [*ROOT.glob("*.sh"), *ROOT.glob("slurm/*.sh"), ROOT / ".ci" / "run"]:
        text = script.read_text()
        assert "eval " not in text, script
        assert "bash -c" not in text, script
