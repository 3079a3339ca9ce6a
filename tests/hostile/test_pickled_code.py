"""Files that run code when they are unpickled: every loader refuses them, and nothing runs."""

import ast
import collections
import importlib
import io
import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.bad_input.harness import Case, check, make_study, run_case
from tests.conftest import ROOT
from utils.common.files import sha256_of

COMMAND = "touch harmed"  # in the current folder, which each test looks through afterwards


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __call__(self) -> None:
        """Only so that it may stand for a function."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def direct() -> object:
    return Call(os.system, COMMAND)


def nested() -> object:
    """The function is itself made by unpickling."""
    return Call(Call(getattr, Call(importlib.import_module, "os"), "system"), COMMAND)


def evaluated() -> object:
    return Call(eval, f"__import__('os').system({COMMAND!r})")


def in_a_tensor() -> object:
    """An argument of the function that rebuilds a tensor, which is allowed."""
    return Call(torch._utils._rebuild_tensor_v2, Call(os.system, COMMAND), 0, (1,), (1,), False, {})


def in_a_dictionary() -> object:
    return collections.OrderedDict(weight=direct())


PAYLOADS = [direct, nested, evaluated, in_a_tensor, in_a_dictionary]


def save_zipped(content: object, path: Path) -> None:
    torch.save(content, path)


def save_legacy(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def save_pickled(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def save_pickled_as_text(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=0))


def save_tar(content: object, path: Path) -> None:
    """The oldest format of torch."""
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle", "sys_info"):
            data = pickle.dumps(content)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


FORMATS = [save_zipped, save_legacy, save_pickled, save_pickled_as_text, save_tar]


def save_objects(content: object, path: Path) -> None:
    array = np.empty(2, dtype=object)
    array[:] = [content, content]
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=True)


def save_archive_of_objects(content: object, path: Path) -> None:
    array = np.empty(2, dtype=object)
    array[:] = [content, content]
    with path.open("wb") as file:
        np.savez(file, subject_id=array)


FIRST, TABLE = Path("runs/first_stage/best.pt"), Path("runs/first_stage/train_discretized_age.npy")
GIVEN = ["--checkpoint", "bad.pt"]
READERS = {  # where a checkpoint is read: the script, its flags, and the file
    "test of the first stage": ("test_first_stage.py", GIVEN, "bad.pt"),
    "test of the second stage": ("test_second_stage.py", GIVEN, "bad.pt"),
    "first stage of the test": ("test_second_stage.py", ["--first_stage_checkpoint", "bad.pt"], "bad.pt"),
    "first stage of the training": ("train_second_stage.py", [], FIRST),
    "initial weights": ("train_first_stage.py", ["--initial_weights", "bad.pt"], "bad.pt"),
    "sorter": ("train_first_stage.py", ["--ranking", "sodeep", "--sorter", "bad.pt"], "bad.pt"),
    "interrupted run": ("train_first_stage.py", ["--output_dir", "old", "--resume"], "old/last.pt"),
    "leakage": (
        "analyse_brain_age_gap.py", ["--predictions", "ages.csv", "--checkpoints", "bad.pt"], "bad.pt",
    ),
}  # fmt: skip
TABLES = {
    "training of the second stage": ("train_second_stage.py", [], TABLE),
    "test of the second stage": ("test_second_stage.py", ["--discretized_age_file", "bad.npy"], "bad.npy"),
}


@pytest.fixture(scope="module")
def clean_study(synthetic_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "study"
    make_study(folder, synthetic_cohort)
    (folder / "old").mkdir()
    rows = [f"s{number},{age},{age + number % 5}" for number, age in enumerate(range(20, 80, 3))]
    (folder / "ages.csv").write_text("\n".join(["subject_id,age,brain_age", *rows]))
    return folder


@pytest.fixture
def study(clean_study: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean_study, tmp_path / "study"))


def refuses(script: str, flags: list[str], said: str, make: Callable[[], object], study: Path, capsys) -> None:
    """Run a script in a copy of the study; it must say so, and nothing else may happen."""
    case = Case("exploit", script, flags, said, make)
    with pytest.MonkeyPatch.context() as monkeypatch:
        check(case, run_case(case, study, monkeypatch, capsys))
    assert not list(study.rglob("harmed"))


@pytest.mark.parametrize("payload", PAYLOADS)
def test_the_exploits_work(payload, tmp_path, monkeypatch) -> None:
    """Unpickled without care, each of them runs its command."""
    monkeypatch.chdir(tmp_path)
    try:
        list(pickle.loads(pickle.dumps([payload()])))
    except (AttributeError, TypeError):  # after the command has run, torch misses the storage of its tensor
        assert payload is in_a_tensor
    assert (tmp_path / "harmed").exists()


@pytest.mark.parametrize("reader", READERS)
def test_a_checkpoint_never_runs_code(reader, study, capsys) -> None:
    script, flags, name = READERS[reader]
    for payload in PAYLOADS:
        for save in FORMATS:
            content = {"state_dict": {"weight": payload()}, "network": payload(), "sorter": payload()}
            refuses(script, flags, f"{name}: ", lambda c=content, s=save: s(c, Path(name)), study, capsys)


@pytest.mark.parametrize("reader", TABLES)
def test_a_table_of_ages_never_runs_code(reader, study, capsys) -> None:
    script, flags, name = TABLES[reader]
    for payload in PAYLOADS:
        for save in (save_objects, save_archive_of_objects, *FORMATS):
            refuses(script, flags, f"{name}: ", lambda p=payload, s=save: s(p(), Path(name)), study, capsys)


@pytest.mark.parametrize("save", FORMATS)
def test_weights_never_run_code(save, study, capsys) -> None:
    """Even if the manifest has the checksum of the bad file."""

    def make() -> None:
        path, manifest = Path("weights/member_1_first_stage.safetensors"), Path("weights/weights.json")
        save({"weight": direct()}, path)
        content = json.loads(manifest.read_text())
        content["sha256"][path.name] = sha256_of(path)
        manifest.write_text(json.dumps(content))

    refuses("predict.py", [], "member_1_first_stage.safetensors: cannot be read", make, study, capsys)


def test_a_model_that_torchscript_saved_is_refused(study, capsys) -> None:
    def make() -> None:
        torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), "bad.pt")

    refuses("test_first_stage.py", GIVEN, "bad.pt: ", make, study, capsys)


LOADERS = {"load": {"torch": ("weights_only", True), "np": ("allow_pickle", False)}}
FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
BUILTINS, METHODS = {"eval", "exec"}, {"system", "popen", "read_pickle"}


def test_no_other_loader_exists() -> None:
    """Each call of torch.load and np.load says that it runs no code; nothing else unpickles or starts a shell."""
    paths = [
        *ROOT.glob("*.py"),
        *(path for name in ("model", "utils", "benchmarks") for path in (ROOT / name).rglob("*.py")),
    ]
    loads = 0
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not FORBIDDEN & {str(name).split(".")[0] for name in names}, path
            if not isinstance(node, ast.Call):
                continue
            given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
            assert not given.get("shell"), path
            if isinstance(node.func, ast.Name):
                assert node.func.id not in BUILTINS, path
            if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
                owner, name = node.func.value.id, node.func.attr
                assert name not in METHODS, path
                if name in LOADERS and owner in LOADERS[name]:
                    flag, value = LOADERS[name][owner]
                    assert given.get(flag) is value, f"{path}, line {node.lineno}"
                    loads += 1
    assert loads >= 3
