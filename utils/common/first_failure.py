"""The first failure of several processes: it alone is reported, and all of them end with its status."""

import os
import sys
import threading
from contextlib import suppress
from datetime import timedelta
from typing import Any, NoReturn

FOREVER = timedelta(days=3650)


def started_by_torchrun() -> bool:
    """Tell whether this process is one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """Return which of several processes this is, before they are connected, too."""
    return int(os.environ.get("RANK", "0"))


def end_with_the_first() -> None:
    """From now on, end this process as soon as another one fails: it may wait for that one in a collective for ever."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        threading.Thread(target=_wait_and_end, args=(_connect(),), daemon=True).start()


def claim(status: int) -> int | None:
    """Claim to be the first of several processes that fails.

    Parameters
    ----------
    status : int
        Exit status that all processes shall end with.

    Returns
    -------
    int or None
        The status of the one that failed before; None if this process is
        the first, or if the others cannot be asked.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        with suppress(RuntimeError):  # the store ends with the process of torchrun that holds it
            first, its_status = _connect().compare_set(_key(), "", f"{rank()} {status}").decode().split()
            return None if int(first) == rank() else int(its_status)
    return None


def leave(status: int) -> NoReturn:
    """End one of several processes at once; those that talk over the network may hang at a usual end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _wait_and_end(store: Any) -> None:
    with suppress(RuntimeError):
        store.wait([_key()], FOREVER)
        first, status = store.get(_key()).decode().split()
        if int(first) != rank():
            leave(int(status))


def _connect() -> Any:
    """Connect to torchrun's store, which lives before and after the group of processes."""
    from torch import distributed  # imported here, so that --help answers at once

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return distributed.TCPStore(address, port, is_master=False)  # type: ignore[attr-defined]


def _key() -> str:
    return f"first failure of attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}"
