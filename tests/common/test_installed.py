"""Which Python runs everything, and whether packages are installed there."""

import os
import re
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.conftest import ROOT
from utils.common.installed import lacking


def chosen(tmp_path: Path, **environment: object) -> str:
    """Return the PYTHON that the bash scripts take, in a copy of the project without .venv."""
    (tmp_path / "bash_setup.sh").write_text((ROOT / "bash_setup.sh").read_text())
    result = subprocess.run(
        ["bash", "-c", f'source "{tmp_path}/bash_setup.sh"; echo "$PYTHON"'], capture_output=True, text=True, check=True,
        env={"PATH": os.environ["PATH"]} | {key: str(value) for key, value in environment.items()},
    )  # fmt: skip
    return result.stdout.strip()


def test_a_given_python_comes_first_then_the_active_environment(tmp_path) -> None:
    conda = {"CONDA_PREFIX": "/conda/envs/tsan", "CONDA_DEFAULT_ENV": "tsan"}
    assert chosen(tmp_path, PYTHON="/own/python", VIRTUAL_ENV="/venv", **conda) == "/own/python"
    assert chosen(tmp_path, VIRTUAL_ENV="/venv", **conda) == "/venv/bin/python"
    assert chosen(tmp_path, **conda) == "/conda/envs/tsan/bin/python"
    assert chosen(tmp_path, CONDA_PREFIX="/conda", CONDA_DEFAULT_ENV="base") == "python3"
    own = tmp_path / ".venv/bin/python"
    own.parent.mkdir(parents=True)
    own.symlink_to(sys.executable)
    assert chosen(tmp_path, CONDA_PREFIX="/conda", CONDA_DEFAULT_ENV="base") == str(own)


def test_pins_are_compared_with_what_is_installed(tmp_path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text(f"# a comment\nnumpy=={version('numpy')}\ntorch=={version('torch').partition('+')[0]}\n")
    assert not lacking([file])
    file.write_text("numpy==0.1\nno_such-package==1.0  # why\n")
    assert lacking([file]) == ["numpy==0.1", "no_such-package==1.0"]


def set_up(tmp_path: Path, python: Path, requirements: str) -> subprocess.CompletedProcess[str]:
    """Set up an environment for requirements, in a copy of what the bash scripts need."""
    (tmp_path / "utils/common").mkdir(parents=True, exist_ok=True)
    for name in ("bash_setup.sh", "utils/common/installed.py"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "some.txt").write_text(requirements)
    script = f'set -euo pipefail; source "{tmp_path}/bash_setup.sh"; set_up_environment some.txt; echo "$PYTHON"'
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False,
        env={"PATH": os.environ["PATH"], "PYTHON": str(python)},
    )  # fmt: skip


def test_nothing_is_installed_into_a_python_of_the_system(tmp_path) -> None:
    system = Path(sys.base_prefix, "bin", "python3")
    if sys.prefix == sys.base_prefix or not system.exists():
        pytest.skip("the tests do not run in a virtual environment")
    result = set_up(tmp_path, system, "no_such_package==1.0\n")
    assert result.returncode == 2
    assert "lacks no_such_package==1.0" in result.stderr
    assert "nothing is installed there" in result.stderr
    assert set_up(tmp_path, system, "# nothing\n").returncode == 0


def test_a_given_environment_gets_what_it_lacks(tmp_path) -> None:
    venv.create(tmp_path / "own", with_pip=False)
    python = tmp_path / "own/bin/python"
    pip = next((tmp_path / "own/lib").glob("python3*")) / "site-packages/pip"  # one that notes what it is to install
    pip.mkdir(parents=True)
    (pip / "__main__.py").write_text("import sys; print(*sys.argv[1:])")
    result = set_up(tmp_path, python, "no_such_package==1.0\n")
    assert result.returncode == 0, result.stderr
    assert f"install --quiet --disable-pip-version-check -r {tmp_path}/some.txt\n{python}\n" in result.stdout
    assert result.stderr == f"installs what some.txt pin, for {python}; this takes minutes\n"
    nothing = set_up(tmp_path, python, "")
    assert (nothing.stdout, nothing.stderr) == (f"{python}\n", "")


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-cpu.lock"])
def test_locks_hold_every_pin_with_its_hashes(lock) -> None:
    text = (ROOT / lock).read_text()
    for file in ("requirements.txt", "requirements-preprocess.txt"):
        for pin in re.findall(r"^\S+==\S+", (ROOT / file).read_text(), re.M):
            name, _, number = pin.partition("==")
            same_name = re.escape(name).replace("_", "[-_]")  # locks normalize names
            found = re.search(
                rf"^{same_name}=={re.escape(number)}( ;.*)? \\\n +--hash=sha256:[0-9a-f]{{64}}", text, re.M | re.I
            )
            assert found, f"{lock} lacks {pin}: make it anew, as its first lines say"
