"""Checkpoints: safe to load, never half-written."""

import os
from argparse import Namespace
from collections import OrderedDict

import pytest
import torch

from utils.common.checkpoints import (
    data_settings,
    describe_checkpoint,
    load_checkpoint,
    save_checkpoint,
    seen_in_training,
)
from utils.common.errors import InputError
from utils.common.files import replacing, sha256_of
from utils.data.subjects import Subject


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_a_released_checkpoint_loads(tmp_path) -> None:
    released = {"epoch": 3, "arch": "ScaleDense", "state_dict": OrderedDict({"module.pre.0.bias": torch.ones(8)}),
                "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999)}]}}  # fmt: skip
    for zipped in (True, False):
        torch.save(released, tmp_path / "best.pth.tar", _use_new_zipfile_serialization=zipped)
        assert load_checkpoint(tmp_path / "best.pth.tar")["state_dict"]["module.pre.0.bias"].sum() == 8


def test_loading_never_runs_code(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "extra": Harmful()}, "bad.pt")
    with pytest.raises(InputError, match="without running code"):
        load_checkpoint(tmp_path / "bad.pt")
    assert not (tmp_path / "harmed").exists()


def test_other_files_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(InputError, match="is damaged"):
        load_checkpoint(tmp_path / "text.pt")
    save_checkpoint(tmp_path / "good.pt", {"state_dict": {"a": torch.ones(1000)}})
    (tmp_path / "cut.pt").write_bytes((tmp_path / "good.pt").read_bytes()[:2000])
    with pytest.raises(InputError, match="is damaged"):
        load_checkpoint(tmp_path / "cut.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match="has no 'state_dict'"):
        load_checkpoint(tmp_path / "list.pt")


def test_a_failed_write_leaves_the_old_file(tmp_path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"state_dict": {}})
    before = sha256_of(path)
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert sha256_of(path) == before
    assert list(tmp_path.iterdir()) == [path]


def test_subjects_of_the_training_are_told(tmp_path, capsys) -> None:
    subjects = [Subject(name, tmp_path) for name in ("a", "b", "c", "sub-1_ses-2")]
    checkpoint = {"train_subjects": ["b", "sub-1_ses-1"], "valid_subjects": ["c"]}
    assert seen_in_training(subjects, tmp_path / "best.pt", checkpoint).tolist() == [False, True, False, True]
    shown = capsys.readouterr().out
    assert "2 of 4 subjects, such as b, were used to train" in shown
    assert "1 of 4 subjects, such as c, were used to choose the epoch of" in shown
    assert seen_in_training(subjects[:1], tmp_path / "best.pt", checkpoint).tolist() == [False]
    assert capsys.readouterr().out == ""
    assert seen_in_training(subjects, tmp_path / "released.pth.tar", {}).all()


@pytest.mark.parametrize(
    ("keep", "scheduler", "chose"), [("last", "cosine", []), ("best", "cosine", ["b"]), ("last", "plateau", ["b"])]
)
def test_only_validation_subjects_that_chose_something_are_remembered(tmp_path, keep, scheduler, chose) -> None:
    args = Namespace(voxel_size=4, normalization="brain", age_interval=5, keep=keep, scheduler=scheduler)
    checkpoint = describe_checkpoint({}, args, [Subject("a", tmp_path)], [Subject("b", tmp_path)])
    assert checkpoint["valid_subjects"] == chose


def test_data_settings() -> None:
    assert data_settings({}, None) == (2, "brain")
    assert data_settings({}, "legacy") == (2, "legacy")
    own = {"voxel_size": 4, "normalization": "legacy"}
    assert data_settings(own, None) == (4, "legacy")
    with pytest.raises(ValueError, match="of an earlier version"):
        data_settings({"voxel_size": 4, "normalization": "local_sd"}, None)
    with pytest.raises(ValueError, match="leave the flag out"):
        data_settings(own, "brain")
