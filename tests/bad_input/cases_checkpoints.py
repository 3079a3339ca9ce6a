"""Checkpoints, and tables of the first stage's ages."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.building import make_network
from model.scaledense import NetworkConfig
from tests.bad_input.harness import Case

FIRST, SECOND = Path("runs/first_stage/best.pt"), Path("runs/second_stage/best.pt")
TABLE = Path("runs/first_stage/train_discretized_age.npy")
TEST_FIRST, TEST_SECOND, TRAIN_SECOND = "test_first_stage.py", "test_second_stage.py", "train_second_stage.py"
BAD = ["--checkpoint", "bad.pt"]


def change_checkpoint(**changes: Any) -> None:
    """Write the first stage's checkpoint with other entries; those of ``network`` are added to its own."""
    content = torch.load(FIRST, weights_only=True)
    changes["network"] = {**content["network"], **changes.get("network", {})}
    torch.save({**content, **changes}, "bad.pt")


def change_weights(value: float) -> None:
    content = torch.load(FIRST, weights_only=True)
    content["state_dict"]["output_layer.1.bias"].fill_(value)
    torch.save(content, "bad.pt")


def network() -> torch.nn.Module:
    return make_network(NetworkConfig(1, "scaledense_paper", True, (23, 27, 23), 3, 4), 0)


def change_table(name: str, value: object, rows: Any = slice(None)) -> None:
    table = np.load(TABLE, allow_pickle=False)
    table[name][rows] = value
    np.save(TABLE, table)


class Harmful:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> object:
        return os.mkdir, ("harmed",)


def save_objects() -> None:
    table = np.empty(12, dtype=object)
    table[:] = [Harmful()] * 12
    np.save(TABLE, table, allow_pickle=True)


def checkpoint(kind: str, said: str, make: Any) -> Case:
    """A file ``bad.pt`` in place of the first stage's checkpoint."""
    return Case(kind, TEST_FIRST, BAD, said, make)


def ages(kind: str, said: str, make: Any) -> Case:
    """Another table of the first stage's ages for the training subjects."""
    return Case(kind, TRAIN_SECOND, [], said, make)


CASES = [
    Case("a checkpoint that does not exist", TEST_FIRST, ["--checkpoint", "none.pt"], "none.pt: no such checkpoint"),
    checkpoint("a checkpoint that is a folder", "bad.pt: no such checkpoint", lambda: Path("bad.pt").mkdir()),
    checkpoint("a dangling link to a checkpoint", "bad.pt: no such", lambda: Path("bad.pt").symlink_to("gone.pt")),
    checkpoint(
        "a checkpoint that was cut off while it was copied", "bad.pt: is damaged, or of another kind",
        lambda: Path("bad.pt").write_bytes(FIRST.read_bytes()[:2000]),
    ),
    checkpoint("a checkpoint of zero bytes", "bad.pt: is damaged, or of another kind", lambda: Path("bad.pt").write_bytes(b"")),
    checkpoint(
        "a text file as a checkpoint", "bad.pt: is damaged, or of another kind", lambda: Path("bad.pt").write_text("epoch 3\n")
    ),
    checkpoint(
        "weights of this project as a checkpoint", "bad.pt: is damaged, or of another kind",
        lambda: shutil.copy("weights/member_1_first_stage.safetensors", "bad.pt"),
    ),
    checkpoint("a whole network, pickled", "without running code (model.scaledense.ScaleDense)", lambda: torch.save(network(), "bad.pt")),
    checkpoint(
        "a checkpoint that runs code when it is loaded", "without running code (posix.mkdir)",
        lambda: torch.save({"state_dict": {}, "x": Harmful()}, "bad.pt"),
    ),
    checkpoint(
        "weights without their settings", "bad.pt: has no 'state_dict'",
        lambda: torch.save(network().state_dict(), "bad.pt"),
    ),
    checkpoint(
        "a checkpoint of another project's network", "neither a checkpoint of this project",
        lambda: torch.save({"state_dict": {"conv1.weight": torch.zeros(64, 3, 7, 7)}, "epoch": 90}, "bad.pt"),
    ),
    checkpoint(
        "a checkpoint whose weights are those of another architecture", "its weights do not fit its network",
        lambda: change_checkpoint(network={"filters": 5}),
    ),
    checkpoint(
        "a checkpoint of a newer version", "newer version", lambda: change_checkpoint(network={"attention": True})
    ),
    checkpoint(
        "a checkpoint with a damaged description of its network", "bad.pt: ",
        lambda: change_checkpoint(network={"blocks": "three"}),
    ),
    checkpoint("a checkpoint without a usable grid", "bad.pt: ", lambda: change_checkpoint(voxel_size="eight")),
    checkpoint("a checkpoint of an unknown normalization", "bad.pt: ", lambda: change_checkpoint(normalization="z")),
    checkpoint("a checkpoint whose weights are not finite", "not finite", lambda: change_weights(np.nan)),
    Case(
        "a second stage's checkpoint where the first stage's is wanted", TEST_FIRST, ["--checkpoint", SECOND],
        "holds a second stage; expected a first stage",
    ),
    Case(
        "a first stage's checkpoint where the second stage's is wanted", TEST_SECOND, ["--checkpoint", FIRST],
        "holds a first stage; expected a second stage",
    ),
    Case(
        "a second stage on another first stage", TEST_SECOND, ["--first_stage_checkpoint", "bad.pt"],
        "was trained on the ages of another first stage", lambda: change_checkpoint(epoch=99),
    ),
    Case(
        "a second stage to be trained on a second stage", TRAIN_SECOND, ["--first_stage_checkpoint", SECOND],
        "holds a second stage; expected a first stage",
    ),
    Case(
        "initial weights of the other stage", "train_first_stage.py",
        ["--initial_weights", SECOND], "holds a second stage; expected a first stage",
    ),
    Case(
        "a checkpoint as a sorter", "train_first_stage.py",
        ["--ranking", "sodeep", "--sorter", FIRST], "is no sorter",
    ),
    Case(
        "a sorter that does not exist", "train_first_stage.py",
        ["--ranking", "sodeep", "--sorter", "none.pt"], "none.pt: no such sorter",
    ),
    Case(
        "a sorter as a checkpoint", TEST_FIRST, BAD, "bad.pt: ",
        lambda: torch.save({"sorter": {"model_type": "lstm"}, "state_dict": {}}, "bad.pt"),
    ),
    Case(
        "a run that goes on from a checkpoint of another kind", "train_first_stage.py",
        ["--resume"], "last.pt",
        lambda: (Path("run").mkdir(), shutil.copy(FIRST, "run/last.pt")),
    ),
    Case(
        "a run that goes on from a file that was cut off", "train_first_stage.py",
        ["--resume"], "run/last.pt: is damaged, or of another kind",
        lambda: (Path("run").mkdir(), Path("run/last.pt").write_bytes(FIRST.read_bytes()[:2000])),
    ),
    ages("no table of the first stage's ages", "no such table of discretized ages", lambda: TABLE.unlink()),
    ages("a table of ages with pickled objects", "not a readable .npy table", save_objects),
    ages("a table of ages that was cut off", "not a readable .npy table",
         lambda: TABLE.write_bytes(TABLE.read_bytes()[:300])),
    ages("a table of ages that is a text file", "not a readable .npy table", lambda: TABLE.write_text("sub-01 40\n")),
    ages("plain numbers as a table of ages", "not a table of discretized ages",
         lambda: np.save(TABLE, np.arange(12.0))),
    ages("a table of ages with too few rows", "lacks sub-12", lambda: np.save(TABLE, np.load(TABLE)[:-1])),
    ages("a table of ages of other subjects", "lacks sub-01",
         lambda: shutil.copy(TABLE.with_name("test_discretized_age.npy"), TABLE)),
    ages("a table of ages with a subject twice", "has sub-02 twice",
         lambda: change_table("subject_id", "sub-02", slice(2))),
    ages("a table of ages with NaN", "holds ages that are not finite", lambda: change_table("brain_age", np.nan, 3)),
    ages("a table of ages whose rounded ages are not those of its ages", "not the brain ages rounded",
         lambda: change_table("discretized_age", 500, 3)),
    ages("a table of ages of another first stage", "was made by another first stage",
         lambda: change_table("first_stage_sha256", "0" * 64)),
    ages("a table of ages of another interval", "made with an age interval of 10 years",
         lambda: change_table("age_interval", 10)),
]  # fmt: skip
