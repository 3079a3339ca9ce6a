"""What all processes of a training must share, on one machine and on several."""

import hashlib
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils.common import distributed
from utils.common.errors import InputError
from utils.common.files import PROJECT

SHARING = 120.0  # s until a machine sees what another has written; NFS hides new files for up to a minute
LONGEST = 40  # letters of a value that is shown


def restarted() -> bool:
    """Tell whether torchrun has started these processes anew, because one of them had died.

    Machines count restarts differently: only that of the dead process counts each.
    """
    return any(distributed.gather_objects(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"))


def exists_for_all(path: Path) -> bool:
    """Tell whether a file exists; the first process decides, and all others wait until they see the same.

    Raises
    ------
    InputError
        On every process, if the machine of one does not share the folder.
    """
    exists = distributed.gather_objects(path.exists())[0]
    deadline = time.monotonic() + SHARING
    while path.exists() != exists and time.monotonic() < deadline:
        time.sleep(0.5)
    seen = distributed.gather_objects((socket.gethostname(), path.exists()))
    for rank, (host, own) in enumerate(seen):
        if own != exists:
            raise InputError(
                f"{path}: {'exists' if exists else 'does not exist'} for process 0 on {seen[0][0]}, but "
                f"{'exists' if own else 'does not exist'} for process {rank} on {host}; put OUTPUT_DIR (--output_dir) "
                "on storage that all machines share"
            )
    return exists


def check_agreement(facts: Mapping[str, Any]) -> None:
    """Refuse processes that would compute different things without anybody noticing.

    Parameters
    ----------
    facts : mapping of plain values
        What must be the same in all processes, by name; the versions of torch and of the code are added.

    Raises
    ------
    InputError
        On every process, if something differs.
    """
    if distributed.world_size() == 1:
        return
    own = {name: _shown(value) for name, value in facts.items()}
    own |= {"torch": torch.__version__, "the code in model/ and utils/": _digest_of_code()}
    everyone = distributed.gather_objects((socket.gethostname(), own))
    problems = []
    for name in dict.fromkeys(name for _, theirs in everyone for name in theirs):
        values: dict[str, str] = {}
        for rank, (host, theirs) in enumerate(everyone):
            values.setdefault(theirs.get(name, "missing"), f"process {rank} on {host}")
        if len(values) > 1:
            found = ", ".join(f"{value} in {where}" for value, where in values.items())
            problems.append(f"{name} differs: {found}; give all processes the same")
    if problems:
        raise InputError(problems)


def _shown(value: Any) -> str:
    """Return a value as text; one that is long is named by its length and its digest."""
    text = json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= LONGEST else f"{len(value)} entries ({_digest(text)})"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _digest_of_code() -> str:
    """Return a short name of the code that trains."""
    files = sorted(path for folder in ("model", "utils") for path in (PROJECT / folder).rglob("*.py"))
    return _digest("".join(f"{path.relative_to(PROJECT)}\n{path.read_text()}" for path in files))
