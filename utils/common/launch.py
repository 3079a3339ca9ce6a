"""Start a script in several processes: torchrun without its traceback, and with the status of the script.

python -m utils.common.launch [flags of torchrun] script [flags of the script]
"""

import logging
import os
import signal
import sys
from argparse import Namespace
from typing import Any
from uuid import uuid4

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # no stack of C++ where another machine ends first

from torch.distributed import run
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError

from utils.common.errors import InputError
from utils.common.first_failure import ATTEMPT
from utils.common.interruption import STOP_SIGNALS, Interruption, interrupt, on_stop_signals
from utils.common.own_address import own_address, wait_for

UNSOLVED = 2  # exit status of `utils.common.errors.run_command`
_torchs_start, _torchs_monitor = LocalElasticAgent._start_workers, LocalElasticAgent._monitor_workers
HINTS = {
    signal.SIGKILL: ", perhaps for want of memory; lower BATCH_SIZE or NUM_WORKERS",
    signal.SIGBUS: ", perhaps for want of shared memory; lower NUM_WORKERS, or give a container more by --shm-size",
}


def main() -> None:
    args = run.parse_args(sys.argv[1:])
    heard = [number.name for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores
    args.signals_to_handle = ",".join(heard)
    LocalElasticAgent._start_workers = _start  # type: ignore[method-assign]
    LocalElasticAgent._monitor_workers = _monitor  # type: ignore[method-assign]
    logging.disable(logging.ERROR)  # the processes say themselves why they end
    try:
        with on_stop_signals(interrupt):  # until processes run; then torchrun sets handlers of its own
            if args.rdzv_endpoint:
                _find_machine_0(args)
            run.run(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(UNSOLVED)
    except Interruption as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.status)
    except ChildFailedError as error:
        rank, failure = min(error.failures.items(), key=lambda item: _order(item[1]))
        if failure.exitcode < 0:  # otherwise the process has said why
            number = signal.Signals(-failure.exitcode)
            print(f"error: rank {rank}: was killed by {number.name}{HINTS.get(number, '')}", file=sys.stderr)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
    except RendezvousError as error:
        reason = str(error.__cause__ or "").partition("\n")[0]  # of a port that is taken, torch's sentence
        print(
            f"error: RENDEZVOUS: the machines do not reach each other at {args.rdzv_endpoint} "
            f"({type(error).__name__}{reason and f': {reason}'}); start them within an hour of each other, with the "
            "address of machine 0 and a port that is free there, again with --resume",
            file=sys.stderr,
        )
        sys.exit(1)
    except SignalException as stop:
        sys.exit(128 + stop.sigval)


def _find_machine_0(args: Namespace) -> None:
    """Say that it waits, choose the network interface, and wait until machine 0 answers."""
    settings = dict(part.split("=") for part in args.rdzv_conf.split(","))
    args.local_addr, interface = own_address(args.rdzv_endpoint.rpartition(":")[0])
    os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    print(f"waits for {args.nnodes} machines at {args.rdzv_endpoint}", file=sys.stderr, flush=True)
    if settings["is_host"] == "0":
        wait_for(args.rdzv_endpoint, float(settings["join_timeout"]))


def _start(agent: Any, group: Any) -> Any:
    """Start the processes as torchrun does, and tell all of them, on all machines, one name of this attempt."""
    os.environ[ATTEMPT] = group.store.compare_set("attempt", "", uuid4().hex).decode()  # the first machine's
    return _torchs_start(agent, group)


def _monitor(agent: Any, group: Any) -> Any:
    """Look after the processes as torchrun does, but start none anew after a problem that only the user can solve."""
    result = _torchs_monitor(agent, group)
    if any(failure.exitcode == UNSOLVED for failure in result.failures.values()):
        agent._remaining_restarts = 0
    return result


def _order(failure: ProcessFailure) -> tuple[int, bool, int]:
    """Put the cause before its effects: torchrun ends other processes by SIGTERM; they fail without a killed one."""
    return failure.timestamp, failure.exitcode == -signal.SIGTERM, failure.exitcode


if __name__ == "__main__":
    main()
