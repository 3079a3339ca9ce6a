"""The log file beside the results of a run."""

import subprocess
import sys
import warnings
from logging.handlers import MemoryHandler

import pytest

from tests.conftest import ROOT
from utils.common.choices import Shard
from utils.common.errors import InputError, run_command
from utils.common.log_file import LOGGER, _LogFile, keep_log
from utils.common.provenance import software_version


@pytest.fixture(autouse=True)
def command(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["scripts/train.py", "--name", "a b"])


def lines_of(path) -> list[str]:
    """Return level and message of each line."""
    return [line.split(" ", 3)[3] for line in path.read_text().splitlines()]


def test_the_log_has_what_the_screen_shows_and_the_screen_says_it_once(tmp_path, capsys) -> None:
    def main() -> None:
        print("note: before the folder is known")
        print("an epoch", end="")
        print(" in two parts")
        keep_log(tmp_path / "run")
        print("WARNING: 3 scans\n  and a second line\n")
        print("|#####|", end="\r", file=sys.stderr)  # as a progress bar does

    run_command(main)
    shown = capsys.readouterr()
    assert shown.out == (
        "note: before the folder is known\nan epoch in two parts\nWARNING: 3 scans\n  and a second line\n\n"
    )
    lines = lines_of(tmp_path / "run" / "train.log")
    assert lines[0].startswith(f"INFO TSAN {software_version()}, commit ")
    assert "INFO command: scripts/train.py --name 'a b'" in lines
    (device,) = (line for line in lines if line.startswith("INFO device: "))
    assert device.endswith("processes: 1")
    assert any(line.startswith("INFO versions: python 3.") for line in lines)
    assert lines[-5:-1] == [
        "INFO note: before the folder is known", "INFO an epoch in two parts", "WARNING 3 scans",
        "INFO   and a second line",
    ]  # fmt: skip
    assert lines[-1].startswith("INFO exit status 0 after ")


def test_the_log_tells_how_a_run_ends(tmp_path, capsys) -> None:
    def main(error: BaseException) -> None:
        keep_log(tmp_path)
        raise error

    for error, said in (
        (InputError("a.nii: is empty; repeat it"), ["ERROR error: a.nii: is empty; repeat it", "INFO exit status 2"]),
        (SystemExit(1), ["INFO exit status 1"]),
    ):
        with pytest.raises(SystemExit):
            run_command(lambda error=error: main(error))
        lines = lines_of(tmp_path / "train.log")
        assert [line.partition(" after")[0] for line in lines[-len(said) :]] == said
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: main(ZeroDivisionError("a bug")))
    text = (tmp_path / "train.log").read_text()
    assert "ZeroDivisionError: a bug" in text
    assert text.count("command: ") == 3  # calls append


def test_wrong_input_leaves_no_log(tmp_path, capsys) -> None:
    def main() -> None:
        raise InputError("labels.csv: no such table")

    with pytest.raises(SystemExit):
        run_command(main)
    assert list(tmp_path.iterdir()) == []
    assert [handler for handler in LOGGER.handlers if isinstance(handler, MemoryHandler | _LogFile)] == []


def test_a_warning_of_python_is_shown_and_logged(tmp_path) -> None:
    def main() -> None:
        keep_log(tmp_path)
        warnings.warn("it is old", FutureWarning, stacklevel=1)

    shown = []
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_, **__: shown.append(str(message))
        run_command(main)
    assert shown == ["it is old"]
    (line,) = (line for line in lines_of(tmp_path / "train.log") if line.startswith("WARNING"))
    assert line.startswith("WARNING FutureWarning: it is old (")


def test_only_the_first_process_writes_and_parts_of_an_array_do_not_share(tmp_path, monkeypatch) -> None:
    for part in (1, 2):
        run_command(lambda part=part: keep_log(tmp_path, shard=Shard(part, 2)))
    monkeypatch.setenv("RANK", "1")
    run_command(lambda: keep_log(tmp_path / "other"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train_1_of_2.log", "train_2_of_2.log"]


def test_a_log_that_cannot_be_written_does_not_end_a_run(tmp_path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def main() -> None:
        keep_log(tmp_path)
        monkeypatch.setattr(_LogFile, "flush", full)
        print("an epoch")

    run_command(main)


def test_without_a_log_an_error_is_said_once() -> None:
    code = "from utils.common.errors import fail; fail(['error: a.nii: is empty'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (2, "error: a.nii: is empty\n")
