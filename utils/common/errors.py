"""Problems that the user can solve, and how they are reported."""

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

MOST_PROBLEMS_SHOWN = 20


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


def ignore_interrupts(_worker: int = 0) -> None:
    """Ignore Ctrl-C in a worker; the main process ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_command(main: Callable[[], None]) -> None:
    """Run an entry point; on an `InputError`, print it and exit with status 2."""
    try:
        main()
    except InputError as error:
        if os.environ.get("RANK", "0") != "0":  # of several processes, the first speaks
            sys.exit(2)
        lines = error.problems
        if len(lines) == 1:
            print(f"error: {lines[0]}", file=sys.stderr)
        else:
            print(f"error: {len(lines)} problems were found:", file=sys.stderr)
            for line in lines[:MOST_PROBLEMS_SHOWN]:
                print(f"  - {line}", file=sys.stderr)
            if len(lines) > MOST_PROBLEMS_SHOWN:
                print(f"  ... and {len(lines) - MOST_PROBLEMS_SHOWN} more", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        print(
            f"error: the package {error.name} is not installed for {sys.executable}; install requirements.txt there "
            "(for preprocess.py requirements-preprocess.txt too) with -m pip install -r, or run bash bash_demo.sh, or "
            "activate the environment that has it",
            file=sys.stderr,
        )
        sys.exit(2)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        print(
            "error: the GPU has too little memory; lower BATCH_SIZE (--batch_size) or set "
            "ACTIVATION_CHECKPOINTING=true (--activation_checkpointing true)",
            file=sys.stderr,
        )
        sys.exit(2)
    except MemoryError:
        print("error: this machine has too little memory for that; use fewer subjects at a time", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror}; free some space, change the permissions, or use another folder", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; start the same command again to go on (a training with --resume)", file=sys.stderr)
        sys.exit(130)
