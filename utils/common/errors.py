"""Problems that the user can solve, and how they are reported."""

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import NoReturn

from utils.common.choices import Shard
from utils.common.first_failure import claim, end_with_the_first, leave, rank, started_by_torchrun
from utils.common.interruption import Interruption, interrupt, on_stop_signals, outlive_signals
from utils.common.log_file import LOGGER, recorded
from utils.common.torch_errors import explain, is_lost_process

MOST_PROBLEMS_SHOWN = 20
CONTROL = r"[\x00-\x09\x0b-\x1f\x7f-\x9f]"  # a file's name may hold them; a terminal obeys
MOST_NAMES_SHOWN = 10
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)


class InputError(Exception):
    """A problem that the user can solve.

    Parameters
    ----------
    problems : str or sequence of str
        One line for each problem: what was found, where, and what to do about it.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


def list_some(names: Sequence[str]) -> str:
    """Join names by commas; after ten of them, count the rest."""
    rest = f" and {len(names) - MOST_NAMES_SHOWN} more" if len(names) > MOST_NAMES_SHOWN else ""
    return ", ".join(names[:MOST_NAMES_SHOWN]) + rest


def shortened(lines: Sequence[str]) -> list[str]:
    """Return the first lines, and a count of the rest."""
    rest = len(lines) - MOST_PROBLEMS_SHOWN
    return [*lines[:MOST_PROBLEMS_SHOWN], *([f"... and {rest} more"] if rest > 0 else [])]


@contextmanager
def user_errors(where: str = "") -> Iterator[None]:
    """Turn a `ValueError` about a user's choice into an `InputError`.

    Parameters
    ----------
    where : str
        The flag or file that the value came from; put before the message.
    """
    try:
        yield
    except ValueError as error:
        raise InputError(f"{where}: {error}" if where else str(error)) from error


def run_command(main: Callable[[], None], several: bool = False) -> None:
    """Run an entry point; report a problem that the user can solve, and exit with status 2.

    A signal that ends it gives the status 128 plus its number.

    Parameters
    ----------
    main : callable
    several : bool
        Whether several processes may run it together, started by torchrun.
        The first one prints what is to be printed, and logs it.
    """
    if started_by_torchrun():
        end_with_the_first()
    with _silent() if rank() else recorded():
        _run(main, several)


@contextmanager
def _silent() -> Iterator[None]:
    """Print nothing: the first of several processes does."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def _run(main: Callable[[], None], several: bool) -> None:
    """Run an entry point, and explain how it ends."""
    try:
        with on_stop_signals(interrupt):
            if started_by_torchrun() and not several:
                raise InputError(f"{Path(sys.argv[0]).name} runs in one process; start it without torchrun")
            main()
    except Interruption as stop:
        fail([str(stop)], stop.status)
    except Exception as error:
        lines = _explain(error)
        if lines:
            fail(lines, status=1 if is_lost_process(error) else 2)  # the user has nothing to solve
        if not started_by_torchrun():
            raise
        fail([f"rank {rank()}:", *traceback.format_exc().splitlines()], status=1)


def status_of_scans(count: int, doubtful: int, failed: int, strict: bool, shard: Shard) -> int:
    """Return the exit status of a command that has done its work, and tells in a table what became of each scan.

    Parameters
    ----------
    count, doubtful, failed : int
        Scans in all, and of each kind.
    strict : bool
        Whether a doubtful or failed scan gives 1, too.
    shard : Shard
        Which part of the scans they are.

    Returns
    -------
    int
        0: what depends on the results can go on. 1: no scan has a result; one of several parts may have only
        a bad scan, which must not stop what waits for all of them.
    """
    nothing = count > 0 and failed == count and shard.parts == 1
    return int(nothing or (strict and doubtful + failed > 0))


def fail(lines: Sequence[str], status: int = 2) -> NoReturn:
    """Print why the command fails, and end it; of several processes, the first that fails does, and ends all.

    Parameters
    ----------
    lines : sequence of str
        If they begin with ``error:``, the number of the process is added.
    status : int
    """
    if started_by_torchrun():
        outlive_signals()  # torchrun sends one to the others as soon as one process has ended
        earlier = claim(status)
        if earlier is not None:
            leave(earlier)
        lines = [re.sub("^error: ", f"error: rank {rank()}: ", lines[0]), *lines[1:]]
    for line in lines:
        LOGGER.error("%s", line)
    print(re.sub(CONTROL, lambda found: repr(found[0])[1:-1], "\n".join(lines)), file=sys.stderr)
    if started_by_torchrun():
        leave(status)
    sys.exit(status)


def _explain(error: Exception) -> list[str]:
    """Return what to tell the user; nothing for an error of the program itself."""
    if isinstance(error, InputError):
        if error.problems[0].startswith("Caught InputError in DataLoader worker"):  # torch adds a traceback
            return [f"error: {error.problems[0].rpartition('InputError: ')[2].strip()}"]
        if len(error.problems) == 1:
            return [f"error: {error.problems[0]}"]
        lines = shortened([f"- {line}" for line in error.problems])
        return [f"error: {len(error.problems)} problems were found:", *(f"  {line}" for line in lines)]
    if isinstance(error, ModuleNotFoundError):
        return [
            f"error: the package {error.name} is not installed for {sys.executable}; install requirements.txt there "
            "(for preprocess.py requirements-preprocess.txt, too) with -m pip install -r, run bash bash_demo.sh, or "
            "activate the environment that has it"
        ]
    if meaning := explain(error):
        return [f"error: {meaning}"]
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        if error.filename is None and error.errno == errno.ENOSPC:  # of a lock between processes, for instance
            return [f"error: {error.strerror}; free some space, also in /dev/shm (of a container, with --shm-size)"]
        where = f"{error.filename}: " if error.filename else ""
        return [f"error: {where}{error.strerror}; free some space, change the permissions, or use another folder"]
    return []
