"""Bad input, one case for each kind: what is given, what is said about it, and that nothing else happens.

To add cases, write `tests/bad_input/cases_<topic>.py`: a docstring, whose first line becomes the heading in
`docs/bad_input.md`, and ``CASES``, a list of `Case`. Nothing else has to be registered. Then write the page anew::

    python -m pytest tests/bad_input --write_pages

Each case runs in a folder of its own, the current one, with what `make_study` puts there; so all paths are relative,
and the flags' defaults (``data/train``, ``runs/first_stage/best.pt``) name usable files. A case changes what it is
about, and gives only the flags that it needs; those of `SMALL` come before them.
"""

import hashlib
import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import QUICK, ROOT, SHORT, SMALL_NETWORK, VOXEL_SIZE
from tests.prediction.conftest import (
    AGE_INTERVAL,
    MANIFEST_ENTRIES,
    TYPICAL,
    prepared_scan,
    random_checkpoint,
)
from utils.common.errors import run_command
from utils.common.files import sha256_of
from utils.data.discretized_ages import write_discretized_ages
from utils.data.names import subject_id_of
from utils.prediction.weights import save_weights

PAGE = ROOT / "docs" / "bad_input.md"
HEAD = """# Bad input

What the scripts say about input that they cannot use. The tests write this page: `python -m pytest tests/bad_input
--write_pages` runs each command in a folder with a small study in it, and checks that it ends with this exit status,
this message and no traceback, and that no file was changed, or written where the status is 2. Flags that only make
the study small are left out here. A list of problems ends after 20 of them with the number of the others.
"""
WIDTH = 116
SMALL = {  # flags that come before those of a case: for the 8 mm grid, short, and no cache
    "train_first_stage.py": [*SMALL_NETWORK, "--voxel_size", VOXEL_SIZE, "--output_dir", "run", *QUICK, *SHORT],
    "train_second_stage.py": ["--output_dir", "run", *QUICK, *SHORT],
    "test_first_stage.py": QUICK,
    "test_second_stage.py": QUICK,
    "train_sorter.py": ["--steps", 1, "--device", "cpu"],
    "cross_validate.py": ["--scan_folder", "data/train", "--label_table", "data/labels.csv", "--num_workers", 0],
    "predict.py": ["--input", "prepared", "--weights_dir", "weights", *QUICK[:-2]],
    "prepare_dataset.py": ["--preprocessed", "prepared", "--label_table", "data/labels.csv", "--output_dir", "split"],
    "preprocess.py": ["--num_workers", 1],
    "make_demo_cohort.py": ["--output_dir", "cohort", "--subjects", 4, "--voxel_size", 8, "--num_workers", 1],
}


@dataclass(frozen=True)
class Case:
    """One kind of bad input.

    Parameters
    ----------
    kind : str
        What is wrong, in a few words; unique.
    script : str
        An entry point such as ``predict.py``, which runs in this process, or a bash script, which does not.
    flags : sequence of str
        After those of `SMALL`.
    said : str
        A part of the message.
    make : callable or None
        Makes the input in the current folder.
    status : int
        1: the scripts that take many scans report the bad ones and go on.
    variables : mapping of str to str
        Of the environment.
    patches : mapping of str to object
        Dotted names and what stands for them, where the machine of the tests lacks what a case needs.
    """

    kind: str
    script: str
    flags: Sequence[object]
    said: str
    make: Callable[[], object] | None = None
    status: int = 2
    variables: Mapping[str, str] = field(default_factory=dict)
    patches: Mapping[str, object] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """The command as a user would type it."""
        words = [*(f"{name}={_quoted(value)}" for name, value in self.variables.items())]
        words += ["bash" if self.script.endswith(".sh") else "python", self.script, *map(_quoted, self.flags)]
        return " ".join(words)


def _quoted(word: object) -> str:
    text = str(word)
    return text if text and not set(text) & set(" \t\n$`'\"\\;&|<>()*?!#~") else repr(text)


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    status: int
    stdout: str
    stderr: str
    before: Mapping[str, str]
    after: Mapping[str, str]

    @property
    def message(self) -> str:
        """What the user reads: the errors, or all for scripts that go on."""
        return self.stderr if self.status == 2 else self.stdout + self.stderr


def case_modules() -> Iterator[tuple[str, list[Case]]]:
    """Yield the heading and the cases of each module of cases."""
    package = importlib.import_module("tests.bad_input")
    for found in pkgutil.iter_modules(package.__path__):
        if found.name.startswith("cases_"):
            module = importlib.import_module(f"tests.bad_input.{found.name}")
            yield (module.__doc__ or "").splitlines()[0].rstrip("."), module.CASES


def make_study(folder: Path, cohort: Path) -> None:
    """Write a small study on the 8 mm grid: scans, labels, both stages' runs, weights, and one scan on the 2 mm grid.

    ``data/{train,valid,test}``, ``data/labels.csv``; ``runs/first_stage`` and ``runs/second_stage`` with ``best.pt``
    and the tables of discretized ages; ``weights``; ``prepared/sub-01.nii.gz``. The networks are not trained.
    """
    shutil.copytree(cohort, folder / "data")
    first, second = (random_checkpoint(stage, stage) for stage in (1, 2))
    for stage in ("first", "second"):
        (folder / "runs" / f"{stage}_stage").mkdir(parents=True)
    checkpoint = folder / "runs" / "first_stage" / "best.pt"
    torch.save(first, checkpoint)
    torch.save({**second, "first_stage_sha256": sha256_of(checkpoint)}, folder / "runs" / "second_stage" / "best.pt")
    for split in ("train", "valid", "test"):
        ids = sorted(subject_id_of(path.name) for path in (folder / "data" / split).iterdir())
        write_discretized_ages(
            checkpoint.with_name(f"{split}_discretized_age.npy"), ids, np.linspace(30, 70, len(ids)), AGE_INTERVAL,
            sha256_of(checkpoint), np.zeros(len(ids), bool),
        )  # fmt: skip
    save_weights(folder / "weights", [[first, second]], MANIFEST_ENTRIES, "# Card\n", TYPICAL)
    prepared_scan(folder / "prepared" / "sub-01.nii.gz")


def _files_in(folder: Path) -> dict[str, str]:
    """Return what each file and folder holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        kind = f"link to {os.readlink(path)}" if path.is_symlink() else "folder"
        if path.is_file() and os.access(path, os.R_OK):
            kind = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = kind
    return found


def run_case(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Outcome:
    """Make the input of a case, run its command, and return what happened."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr("utils.common.distributed.keep_freed_memory", lambda: None)
    for name, value in {"CUDA_VISIBLE_DEVICES": "", **case.variables}.items():
        monkeypatch.setenv(name, value)
    if case.make:
        case.make()
    for name, value in case.patches.items():
        monkeypatch.setattr(name, value)
    flags = list(map(str, [*SMALL.get(case.script, ()), *case.flags]))
    before = _files_in(folder)
    if case.script.endswith(".sh"):
        done = subprocess.run(
            ["bash", str(ROOT / case.script), *flags], capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        status, stdout, stderr = done.returncode, done.stdout, done.stderr
    else:
        monkeypatch.setattr(sys, "argv", [case.script, *flags])
        capsys.readouterr()
        main = importlib.import_module(case.script.removesuffix(".py").replace("/", ".")).main
        status = 0
        with warnings.catch_warnings(record=True) as caught:  # pytest would hide them from `capsys`
            try:
                run_command(main)
            except SystemExit as stop:
                status = stop.code if isinstance(stop.code, int) else 1
        stdout, stderr = capsys.readouterr()
        stderr += "".join(f"{warning.category.__name__}: {warning.message}\n" for warning in caught)
    return Outcome(status, *(_neutral(text, folder) for text in (stdout, stderr)), before, _files_in(folder))


def _neutral(text: str, folder: Path) -> str:
    """Replace the folders of this machine."""
    for path, name in ((folder.resolve(), "/home/me/study"), (folder, "/home/me/study"), (ROOT, "/home/me/tsan")):
        text = text.replace(str(path), name)
    return text


def check(case: Case, outcome: Outcome) -> None:
    """Hold what happened against what the case expects."""
    shown = outcome.stdout + outcome.stderr
    assert outcome.status == case.status, shown
    assert case.said in outcome.message
    assert "Traceback" not in shown
    kept = {path: content for path, content in outcome.after.items() if path in outcome.before}
    assert kept == outcome.before, "files were changed or removed"
    if case.status == 2:
        first, *others = outcome.stderr.splitlines()
        assert first.startswith("error: ")
        assert bool(others) == first.endswith("problems were found:"), "expected one message"
        assert all(line.startswith("  ") for line in others)
        assert outcome.after == outcome.before, "something was written"


def page_of(outcomes: Mapping[str, Outcome]) -> str:
    """Return the page that shows each case with its command, message and exit status."""
    parts = [HEAD]
    for heading, cases in case_modules():
        parts.append(f"## {heading}\n")
        for case in cases:
            outcome = outcomes[case.kind]
            command = _wrapped(f"$ {case.command}", " \\\n      ", WIDTH - 2)
            lines = [_wrapped(line, "\n    ", WIDTH) for line in outcome.message.strip().splitlines()]
            shown = "\n".join([command, *lines, f"[exit status {outcome.status}]"])
            parts.append(f"**{case.kind[0].upper()}{case.kind[1:]}**\n\n```text\n{shown}\n```\n")
    return "\n".join(parts)


def _wrapped(line: str, join: str, width: int) -> str:
    """Break a long line at blanks."""
    lines = textwrap.wrap(
        line, width - 6, break_long_words=False, break_on_hyphens=False, drop_whitespace=True,
        replace_whitespace=False, initial_indent="", expand_tabs=False,
    )  # fmt: skip
    return join.join(lines)
