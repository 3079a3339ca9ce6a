"""Estimates of a call that was stopped, so that the next call goes on."""

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from utils.common.errors import InputError


class Journal:
    """A file that gets a line for each estimate, at once.

    Parameters
    ----------
    path : Path
    origin : mapping
        Where the estimates come from, plain values: weights, precision, device.

    Raises
    ------
    InputError
        On entering the context, if another call is writing the same results.

    Notes
    -----
    The key of an estimate tells its origin, and the scan's file with its size
    and time of modification: if any of them differs, it is not found again. A
    line that a killed process left incomplete is no JSON, and counts for nothing.
    """

    def __init__(self, path: Path, origin: Mapping[str, object]) -> None:
        self.path = path
        self.origin = dict(origin)
        self.estimates: dict[str, dict[str, Any]] = {}  # of earlier calls, by key

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise InputError(
                f"{self.path.parent}: another call is estimating into it; wait for it, or set another OUTPUT_DIR"
            ) from None
        except OSError:  # a file system without locks
            pass
        self._file.seek(0)
        for line in self._file:
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                self.estimates[entry.pop("key")] = entry
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file; remove it if the results have been written, and if nothing is in it."""
        if kind is None or self._file.tell() == 0:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def key_of(self, path: Path, sex: int) -> str:
        """Return the key of a scan's estimate; `sex` as in `utils.data.subjects.Subject`."""
        try:
            status = path.stat()
            stamp = [status.st_size, status.st_mtime_ns]
        except OSError:  # reading the scan says what is wrong
            stamp = []
        parts = {**self.origin, "scan": os.path.abspath(path), "stamp": stamp, "sex": sex}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def add(self, key: str, estimate: Mapping[str, Any]) -> None:
        """Write an estimate."""
        self._file.write("\n" + json.dumps({"key": key, **estimate}))  # ends an incomplete line of a killed process
        self._file.flush()
