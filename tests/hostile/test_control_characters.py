"""Names that no terminal should print as they are: control sequences, and bytes that are no text."""

import os
from pathlib import Path

import pytest

from tests.prediction.conftest import MANIFEST_ENTRIES, TYPICAL, prepared_scan, random_checkpoint
from utils.common.errors import InputError, run_command
from utils.prediction.weights import save_weights

CLEAR = "\x1b[2J\x1b]0;owned\x07"  # clears the screen and renames the window


def test_a_message_sends_no_control_sequences_to_the_terminal(capsys) -> None:
    def main() -> None:
        raise InputError([f"{CLEAR}.nii: is empty\r; repeat it", "\x9b2J"])

    with pytest.raises(SystemExit):
        run_command(main)
    shown = capsys.readouterr().err
    assert all(character == "\n" or character.isprintable() for character in shown)
    assert r"\x1b[2J" in shown


def test_a_name_that_is_no_text_is_refused(tmp_path, monkeypatch, run_here) -> None:
    """Linux takes any bytes for a name; tables and pages are text."""
    monkeypatch.chdir(tmp_path)
    save_weights(
        Path("weights"), [[random_checkpoint(1, 1), random_checkpoint(2, 2)]], MANIFEST_ENTRIES, "# Card\n", TYPICAL
    )
    prepared_scan(Path("in", "sub-1.nii.gz"))
    os.rename(b"in/sub-1.nii.gz", b"in/sub-\xff.nii.gz")
    with pytest.raises(InputError, match="rename it"):
        run_here("predict.py", "--input", "in", "--weights_dir", "weights", "--num_workers", 0)
    assert not Path("predictions").exists()
