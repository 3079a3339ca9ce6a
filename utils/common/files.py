"""Write files whole or not at all."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from utils.common.errors import InputError

PROJECT = Path(__file__).resolve().parents[2]  # the folder with the entry points, their bash scripts and weights/


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, once it is on the disk.

    Yields
    ------
    Path with the same suffix

    Raises
    ------
    OSError
        With the name of `path` and a number, if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid4().hex[:12]}.{path.name}")  # other hosts may have our process id
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # a crash of the machine, too, leaves the old file or the new one
        os.replace(temporary, path)
    except OSError as error:
        if error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of `replacing` that a killed process left in a folder that nobody else writes."""
    for path in folder.glob(".*"):
        if re.match(r"\.[0-9a-f]{12}\.", path.name):
            path.unlink(missing_ok=True)


def check_writable(folder: Path, *sources: Path | None) -> None:
    """Refuse a folder that could not be made or written, before hours of work.

    Parameters
    ----------
    folder : Path
        For results.
    *sources : Path or None
        Folders of scans, which results must not be mixed with.

    Raises
    ------
    InputError
        If the folder, or the nearest one above it, is a file or read-only,
        or if it is one of the sources.
    """
    if any(source and source.is_dir() and folder.is_dir() and folder.samefile(source) for source in sources):
        raise InputError(f"{folder}: is the folder of the scans; set another OUTPUT_DIR (--output_dir)")
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"{folder}: cannot be written ({nearest}); set another OUTPUT_DIR (--output_dir)")


def check_results(
    folder: Path, names: Sequence[str], overwrite: bool, *sources: Path | None, variable: str = "OUTPUT_DIR"
) -> None:
    """Refuse to replace the results of an earlier call, unless the user said so.

    Parameters
    ----------
    folder : Path
    names : sequence of str
        Files that the call would write there.
    overwrite : bool
    *sources : Path or None
        See `check_writable`.
    variable : str
        Of the bash script, which names the folder or file.

    Raises
    ------
    InputError
        If the folder cannot be written, or holds some of the files although `overwrite` is false.
    """
    check_writable(folder, *sources)
    held = [name for name in names if (folder / name).exists()]
    if held and not overwrite:
        raise InputError(
            f"{folder}: holds {', '.join(held)} already; set another {variable} (--{variable.lower()}), or "
            "OVERWRITE=true (--overwrite true) to replace what is there"
        )


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, default=str, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path, kind: type = dict) -> Any:
    """Read JSON of a kind, a dictionary or a list.

    Raises
    ------
    OSError, ValueError
        If there is none, or it is of another kind.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, kind):
        raise ValueError(f"it is no {kind.__name__}")
    return content


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
