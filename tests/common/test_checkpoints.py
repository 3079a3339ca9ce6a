"""Checkpoints: safe to load, never half-written."""

import os
from collections import OrderedDict

import pytest
import torch

from utils.common.checkpoints import load_checkpoint, save_checkpoint
from utils.common.errors import InputError
from utils.common.files import replacing, sha256_of


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


def test_equal_contents_are_equal_bytes(tmp_path) -> None:
    """Whatever shares an object, and whichever file it is written to."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.BatchNorm3d(2))
    name = "".join(["train/", "loss"])  # another object than the literal
    content = {"state_dict": network.state_dict(), "history": [{"train/loss": 1.0}, {name: 2.0}], "best": (True, 0.5)}
    save_checkpoint(tmp_path / "a.pt", content)
    for file in ("b.pt", "c.pt"):  # read and written again, and read and written again
        content = load_checkpoint(tmp_path / "a.pt")
        save_checkpoint(tmp_path / file, content)
        assert sha256_of(tmp_path / file) == sha256_of(tmp_path / "a.pt")
    assert content["history"] == [{"train/loss": 1.0}, {"train/loss": 2.0}]
    assert content["best"] == (True, 0.5)
    assert torch.equal(content["state_dict"]["0.weight"], network[0].weight)
