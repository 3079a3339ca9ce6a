"""Running scripts: logs, locks, shares of the GPUs, what is done already, what failed."""

import fcntl
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from utils.common.errors import InputError
from utils.common.interruption import Interruption, interrupt, on_stop_signals
from utils.data.subjects import Subject
from utils.prediction import script_runs
from utils.prediction.script_runs import Step, arguments_of_training, check_recorded, link_scans, run_chains, run_script


def test_variables_win_over_the_environment_and_flags_over_both(monkeypatch) -> None:
    monkeypatch.setenv("EPOCHS", "7")
    monkeypatch.setenv("FOLDS", "4")  # of a cross-validation
    arguments = arguments_of_training(1, ["--seed", "5"], EPOCHS=9)
    assert arguments[arguments.index("--epochs") + 1] == "9"
    assert arguments[arguments.index("--folds") + 1] == "0"
    assert arguments[-2:] == ["--seed", "5"]


def test_a_script_that_fails_shows_the_end_of_its_log(tmp_path) -> None:
    log = tmp_path / "logs" / "train.log"
    with pytest.raises(InputError, match=r"status 2; the end of .*train\.log:\n.*RECIPE=nowhere: no such file"):
        run_script(log, "bash_train_first_stage.sh", variables={"RECIPE": "nowhere"})


def test_a_script_that_still_runs_is_not_started_again(tmp_path) -> None:
    with (tmp_path / "train.log").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another call is running this script"):
            run_script(tmp_path / "train.log", "bash_train_first_stage.sh")


def test_links_of_other_people_are_refused(tmp_path) -> None:
    people = [Subject(name, tmp_path / f"{name}.nii") for name in ("a", "b")]
    link_scans(tmp_path / "train", people)
    link_scans(tmp_path / "train", people)
    with pytest.raises(InputError, match=r"train: holds b\.nii, too, of other folds"):
        link_scans(tmp_path / "train", people[:1])


def steps_of(root: Path, names: str, done: list[tuple[str, dict[str, str]]]) -> list[Step]:
    def step(name: str) -> Step:
        def run(variables: object) -> None:
            if name == "x":
                raise InputError("x failed")
            done.append((name, dict(variables)))  # type: ignore[call-overload]
            (root / name).touch()

        return Step(name, root / name, run)

    return [step(name) for name in names]


@pytest.mark.parametrize(
    ("visible", "jobs", "shares"),
    [
        ("0,1,2", 2, {"0,2", "1"}),
        ("0", 2, {"0"}),
        ("3,5", 1, {"3,5"}),
        ("", 2, {None}),  # the CPU, or every GPU: as the scripts decide
    ],
)
def test_jobs_share_the_gpus(tmp_path, monkeypatch, visible, jobs, shares) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    done: list[tuple[str, dict[str, str]]] = []
    run_chains([steps_of(tmp_path, name, done) for name in "abcdef"], jobs)
    assert {variables.get("CUDA_VISIBLE_DEVICES") for _, variables in done} <= shares
    assert sorted(name for name, _ in done) == list("abcdef")
    run_chains([steps_of(tmp_path, name, done) for name in "abcdef"], jobs)
    assert len(done) == 6  # nothing is done twice


def test_after_a_failure_nothing_more_is_started(tmp_path) -> None:
    done: list[tuple[str, dict[str, str]]] = []
    with pytest.raises(InputError, match="x failed"):
        run_chains([steps_of(tmp_path, names, done) for names in ("ab", "xc", "de")], 1)
    assert [name for name, _ in done] == ["a", "b"]


def test_scripts_that_run_are_told_of_a_signal(tmp_path) -> None:
    python = tmp_path / "python"
    python.write_text(
        f"#!/bin/sh\ntrap 'echo saved; exit 143' TERM\ntouch {tmp_path}/on\nwhile :; do sleep 0.02; done\n"
    )
    python.chmod(0o755)
    log = tmp_path / "train.log"
    step = Step("a", tmp_path / "a", lambda _: run_script(log, "bash_train_first_stage.sh", [], {"PYTHON": python}))

    def send_once_it_runs() -> None:
        while not (tmp_path / "on").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send_once_it_runs, daemon=True).start()
    with pytest.raises(Interruption, match="stopped by SIGTERM"), on_stop_signals(interrupt):
        run_chains([[step], steps_of(tmp_path, "b", [])], 1)
    assert log.read_text().endswith("saved\n")
    assert not (tmp_path / "b").exists()


def test_recorded_settings_must_not_change(tmp_path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("subject_id,age\n")
    path = tmp_path / "settings.json"
    flags = {"epochs": 3, "num_workers": 0}
    script_runs.check_recorded(path, table, [flags], {"--folds": 3})
    script_runs.check_recorded(path, table, [{**flags, "num_workers": 8}], {"--folds": 3})  # of the machine
    with pytest.raises(InputError, match=r"--folds was 3, is 2; --epochs of the first stage was 3, is 4"):
        script_runs.check_recorded(path, table, [{**flags, "epochs": 4}], {"--folds": 2})
    (tmp_path / "fold_1").mkdir()
    path.unlink()
    with pytest.raises(InputError, match=r"holds fold_1, but no settings\.json that says how it was made"):
        script_runs.check_recorded(path, table, [flags], {"--folds": 3})


def test_flags_that_came_with_a_newer_version_do_not_stop_what_was_begun_before(tmp_path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("subject_id,age\n")
    check_recorded(tmp_path / "settings.json", table, [{"epochs": 3}])
    check_recorded(tmp_path / "settings.json", table, [{"epochs": 3, "fuse": "auto"}])
    with pytest.raises(InputError, match="--epochs of the first stage was 3, is 4"):
        check_recorded(tmp_path / "settings.json", table, [{"epochs": 4}])
