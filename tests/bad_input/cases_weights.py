"""Folders of weights."""

import json
import shutil
from pathlib import Path

from tests.bad_input.harness import Case

PREDICT = "predict.py"
FIRST = Path("weights/member_1_first_stage.safetensors")
MANIFEST = Path("weights/weights.json")


def change_manifest(**changes: object) -> None:
    content = json.loads(MANIFEST.read_text())
    MANIFEST.write_text(json.dumps({**content, **changes}))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


CASES = [
    Case("weights in a folder that does not exist", PREDICT, ["--weights_dir", "none"], "none/weights.json: no readable"),
    Case("weights without their manifest", PREDICT, [], "no readable manifest", lambda: MANIFEST.unlink()),
    Case(
        "weights whose manifest was cut off", PREDICT, [], "no readable manifest",
        lambda: MANIFEST.write_text(MANIFEST.read_text()[:100]),
    ),
    Case("weights whose manifest is no JSON", PREDICT, [], "no readable", lambda: MANIFEST.write_bytes(b"\xff\xfe\x00")),
    Case("weights of which a file is missing", PREDICT, [], "cannot be read", lambda: FIRST.unlink()),
    Case(
        "weights of which the typical volumes are missing", PREDICT, [], "typical_volumes.safetensors: cannot be read",
        lambda: Path("weights/typical_volumes.safetensors").unlink(),
    ),
    Case("weights with one bit flipped", PREDICT, [], "is not the file that", lambda: flip_a_bit(FIRST)),
    Case(
        "weights of which a file was cut off", PREDICT, [], "member_1_first_stage.safetensors: ",
        lambda: FIRST.write_bytes(FIRST.read_bytes()[:5000]),
    ),
    Case(
        "weights whose files were exchanged", PREDICT, [], "is not the file that",
        lambda: shutil.copy("weights/member_1_second_stage.safetensors", FIRST),
    ),
    Case("weights that promise more networks than there are", PREDICT, [], "member_2", lambda: change_manifest(members=9)),
    Case(
        "weights with a damaged description of their networks", PREDICT, [], "weights",
        lambda: change_manifest(networks={"first_stage": 1, "second_stage": {}}),
    ),
    Case(
        "weights for a scanner that they do not know", PREDICT, ["--scanner", "Hammersmith"],
        "--scanner Hammersmith: the weights were trained on scanners without names",
    ),
]  # fmt: skip
