"""Checkpoints, and tables of the first stage's ages."""

from pathlib import Path

from tests.bad_input.harness import Case

FIRST, SECOND = Path("runs/first_stage/best.pt"), Path("runs/second_stage/best.pt")

CASES = [
    Case(
        "a checkpoint that does not exist", "test_first_stage.py", ["--checkpoint", "none.pt"],
        "none.pt: no such checkpoint; give the best.pt",
    ),
    Case(
        "a checkpoint that was cut off while it was copied", "test_first_stage.py", ["--checkpoint", "cut.pt"],
        "cut.pt: is no checkpoint, is damaged",
        lambda: Path("cut.pt").write_bytes(FIRST.read_bytes()[:2000]),
    ),
    Case(
        "a second stage's checkpoint where the first stage's is wanted", "test_first_stage.py",
        ["--checkpoint", SECOND], "holds a second stage; expected a first stage",
    ),
]  # fmt: skip
