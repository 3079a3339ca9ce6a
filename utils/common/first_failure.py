"""The first failure of several processes: it alone is reported, and all of them end with its status."""

import os
import sys
import threading
from contextlib import suppress
from datetime import timedelta
from typing import Any, NoReturn

from utils.common.log_file import LOGGER

FOREVER = timedelta(days=3650)
KEY = "first failure"  # in the store
ATTEMPT = "TSAN_ATTEMPT"  # variable with which `utils.common.launch` tells the processes that belong together


def started_by_torchrun() -> bool:
    """Tell whether this process belongs to a group, be it of one."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()


def rank() -> int:
    """Return which of several processes this is, before they are connected, too."""
    return int(os.environ.get("RANK", "0"))


def own_store() -> Any:
    """Connect to torchrun's store, which lives before and after the group of processes; None without torchrun.

    Each attempt has names of its own there. Otherwise processes that torchrun
    starts anew, because one has died, would find the addresses of the dead.
    torchrun's own number of the attempt differs between machines: only that
    of the dead process counts.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    from torch import distributed  # imported here, so that --help answers at once

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = distributed.TCPStore(address, port, is_master=False)  # type: ignore[attr-defined]
    attempt = os.environ.get(ATTEMPT, os.environ["TORCHELASTIC_RESTART_COUNT"])  # of torchrun without our launcher
    return distributed.PrefixStore(f"attempt {attempt}", store)  # type: ignore[attr-defined]


def end_with_the_first() -> None:
    """From now on, end this process as soon as another one fails: it may wait for that one in a collective for ever."""
    store = own_store()
    if store is not None:
        threading.Thread(target=_wait_and_end, args=(store,), daemon=True).start()


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
    with suppress(RuntimeError):  # the store ends with the process of torchrun that holds it
        store = own_store()
        if store is not None:
            first, its_status = store.compare_set(KEY, "", f"{rank()} {status}").decode().split()
            return None if int(first) == rank() else int(its_status)
    return None


def leave(status: int) -> NoReturn:
    """End one of several processes at once; those that talk over the network may hang at a usual end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _wait_and_end(store: Any) -> None:
    with suppress(RuntimeError):
        store.wait([KEY], FOREVER)
        first, status = store.get(KEY).decode().split()
        if int(first) != rank():
            LOGGER.error("process %s has failed, and says why on the screen", first)
            leave(int(status))
