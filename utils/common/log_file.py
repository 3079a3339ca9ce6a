"""The log file of a run: what it said, and when, with its command, versions and device; without progress bars.

The scripts tell a user what they do by `print`, and that stays what the
screen shows. `recorded` hands each line to the standard `logging`, too,
which keeps the lines in memory until `keep_log` names the folder. A run
that ends before its work has begun, because of wrong input, leaves no file.
"""

import logging
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any, TextIO

from utils.common.choices import WHOLE, Shard

LOGGER = logging.getLogger("tsan")
LOGGER.addHandler(logging.NullHandler())  # else logging would print errors a second time where no log is kept
FORMAT = "%(asctime)s %(process)d %(levelname)s %(message)s"
WARNED = r"WARNING: |[A-Z ]{4,}: "  # begins a line that warns, such as SECOND STAGE COLLAPSED: ...
MOST_LINES = 10_000  # kept in memory


class _Echo:
    """A text stream that passes everything on to the screen, and logs each whole line."""

    def __init__(self, screen: TextIO) -> None:
        self.screen = screen
        self.rest = ""

    def write(self, text: str) -> int:
        """Write to the screen."""
        *lines, self.rest = (self.rest + text).split("\n")
        for line in filter(str.strip, lines):
            level = logging.WARNING if re.match(WARNED, line) else logging.INFO
            LOGGER.log(level, "%s", line.removeprefix("WARNING: "))
        return self.screen.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.screen, name)


class _LogFile(logging.FileHandler):
    """A file that is appended to, as long as that works."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the name that logging gives it)
        """Go on: of a full disk the results tell, each with a message of its own."""

    def close(self) -> None:
        """Close the file; a full disk may lose its last line."""
        with suppress(OSError):
            super().close()


@contextmanager
def recorded() -> Iterator[None]:
    """Log what is printed on the standard output, Python's warnings, and how the run ends."""
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    LOGGER.addHandler(MemoryHandler(MOST_LINES, flushLevel=logging.CRITICAL + 1, flushOnClose=False))
    started, shown = time.monotonic(), warnings.showwarning

    def show(message: Any, category: Any, filename: str, lineno: int, *more: Any, **others: Any) -> None:
        LOGGER.warning("%s: %s (%s, line %d)", category.__name__, message, filename, lineno)
        shown(message, category, filename, lineno, *more, **others)

    warnings.showwarning = show
    status: object = 0
    try:
        with redirect_stdout(_Echo(sys.stdout)):  # type: ignore[type-var]
            yield
    except SystemExit as end:
        status = end.code or 0
        raise
    except BaseException:
        status = 1
        LOGGER.exception("an error of the program:")
        raise
    finally:
        LOGGER.info("exit status %s after %.1f s", status, time.monotonic() - started)
        warnings.showwarning = shown
        for handler in [own for own in LOGGER.handlers if isinstance(own, MemoryHandler | _LogFile)]:
            LOGGER.removeHandler(handler)
            handler.close()


def keep_log(folder: Path, device: Any = None, shard: Shard = WHOLE) -> None:
    """Write the log into a folder, ``<script>.log``, from now on; append to that of an earlier call.

    The first call of a run counts. Without `recorded`, as in all but the
    first of several processes, this does nothing.

    Parameters
    ----------
    folder : Path
        Of the run's results.
    device : torch.device, its name, or None
        On which networks run; None: the CPU.
    shard : Shard
        Parts of a job array write logs of their own.

    Raises
    ------
    OSError
        If the file cannot be opened.
    """
    memory = next((handler for handler in LOGGER.handlers if isinstance(handler, MemoryHandler)), None)
    if memory is None:
        return
    from utils.common.provenance import command_line, describe_run  # which need this module

    folder.mkdir(parents=True, exist_ok=True)
    part = f"_{shard.part}_of_{shard.parts}" if shard.parts > 1 else ""
    file = _LogFile(folder / f"{Path(sys.argv[0]).stem}{part}.log", encoding="utf-8", errors="backslashreplace")
    file.setFormatter(logging.Formatter(FORMAT))
    LOGGER.removeHandler(memory)
    LOGGER.addHandler(file)
    run = describe_run(device)
    LOGGER.info("TSAN %s, commit %s", run["software_version"], run["git_commit"] or "unknown")
    LOGGER.info("command: %s", command_line())
    LOGGER.info("folder: %s", Path.cwd())
    LOGGER.info("device: %s, processes: %d", run["device_name"], run["world_size"])
    LOGGER.info("versions: %s", ", ".join(f"{name} {version}" for name, version in run["versions"].items()))
    memory.setTarget(file)
    memory.flush()
    memory.close()
