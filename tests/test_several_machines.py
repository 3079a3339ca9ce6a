"""Trainings on several machines, which are two launchers on this one, and trainings that lose a process."""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from tests.conftest import QUICK, ROOT, SMALL_NETWORK, VOXEL_SIZE, data_flags
from tests.training.helpers import same, states
from utils.common.interruption import Interruption
from utils.common.own_address import own_address

LAUNCH = 'set -eu; source "$0"; JOIN_TIMEOUT="${SHORT:-$JOIN_TIMEOUT}"; choose_launcher; exec "${launcher[@]}" "$@"'
PLAIN = {"PROCESSES": 1, "NODES": 1, "NODE_RANK": 0, "RENDEZVOUS": "", "MAX_RESTARTS": 0}


def launch(*command: object, **variables: object) -> "subprocess.Popen[str]":
    """Start a Python script as the bash scripts of training do."""
    own = {**PLAIN, **variables, "PYTHON": sys.executable, "OMP_NUM_THREADS": 1}
    return subprocess.Popen(
        ["bash", "-c", LAUNCH, str(ROOT / "bash_setup.sh"), *map(str, command)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **{name: str(value) for name, value in own.items()}},
    )  # fmt: skip


def outputs(*launchers: "subprocess.Popen[str]", status: int = 0) -> list[str]:
    """Wait for launchers; return what they print."""
    shown = [launcher.communicate(timeout=600)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [status] * len(launchers), "\n".join(shown)
    return shown


@pytest.fixture(scope="module")
def training(synthetic_cohort):
    """A short training but for its output folder."""
    splits = data_flags(synthetic_cohort, "train", "valid", "test")
    flags = [*splits, *SMALL_NETWORK, *QUICK, "--voxel_size", VOXEL_SIZE, "--warmup_epochs", 0]
    return ["train_first_stage.py", *flags, "--epochs", 4, "--batch_size", 2, "--output_dir"]


@pytest.fixture(scope="module")
def undisturbed(training, tmp_path_factory):
    """Its outcome in two processes on one machine."""
    folder = tmp_path_factory.mktemp("undisturbed")
    outputs(launch(*training, folder, PROCESSES=2))
    return states(folder)


def shown_launcher(**variables: object) -> "subprocess.CompletedProcess[str]":
    """Print the launcher that a bash script of training chooses."""
    own = {name: str(value) for name, value in {**PLAIN, **variables}.items()}
    return subprocess.run(
        ["bash", "-c", 'set -eu; source "$0"; choose_launcher; echo "${launcher[@]}"', str(ROOT / "bash_setup.sh")],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHON": sys.executable, **own},
    )  # fmt: skip


def test_one_process_is_a_plain_call_and_several_are_torchrun() -> None:
    assert shown_launcher().stdout.strip() == sys.executable
    one = shown_launcher(PROCESSES=2, MAX_RESTARTS=3).stdout
    assert "--nproc_per_node 2 --max_restarts 3" in one
    assert "--standalone" in one
    nodes = {"NODES": 2, "RENDEZVOUS": "127.0.0.1:29500"}
    for rank in (0, 1):
        several = shown_launcher(**nodes, NODE_RANK=rank).stdout
        assert "--nproc_per_node 1" in several
        assert "--nnodes 2 --rdzv_backend c10d" in several
        assert f"--rdzv_endpoint 127.0.0.1:29500 --rdzv_conf is_host={1 - rank}," in several
        assert "--standalone" not in several


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PROCESSES": "two"}, "PROCESSES=two: is no whole number"),
        ({"PROCESSES": 0}, "PROCESSES and NODES are at least 1"),
        ({"NODES": 2, "NODE_RANK": 2}, "NODE_RANK is 0 on the first machine"),
        ({"NODES": 2, "NODE_RANK": "PATH[$(touch harmed)]"}, "is no whole number"),
        ({"NODES": 2}, "RENDEZVOUS=: is no address and port"),
        ({"NODES": 2, "RENDEZVOUS": "gpu1"}, "RENDEZVOUS=gpu1: is no address and port"),
        ({"NODES": 2, "RENDEZVOUS": "gpu1:65536"}, "RENDEZVOUS=gpu1:65536: is no address and port"),
    ],
)
def test_wrong_variables_of_the_launcher_end_with_one_line_and_status_2(variables, message) -> None:
    result = shown_launcher(**variables)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (ROOT / "harmed").exists()


def test_a_machine_knows_by_which_address_and_interface_others_reach_it() -> None:
    assert own_address("127.0.0.1") == ("127.0.0.1", "lo")
    (shown,) = outputs(launch("no.py", NODES=2, RENDEZVOUS="no.such.machine.invalid:29500"), status=2)
    assert shown.startswith("error: RENDEZVOUS: no.such.machine.invalid cannot be reached (")
    assert len(shown.splitlines()) == 1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("rank", "status", "message"),
    [
        (0, 1, "the machines do not reach each other at {} (RendezvousTimeoutError)"),
        (1, 2, "nothing answers at {} within 1 s"),
    ],
)
def test_a_machine_that_does_not_come_is_told_in_one_line(rank, status, message) -> None:
    nodes = {"NODES": 2, "RENDEZVOUS": f"127.0.0.1:{free_port()}", "SHORT": 1}
    (shown,) = outputs(launch("no.py", **nodes, NODE_RANK=rank), status=status)
    waits, line = shown.splitlines()
    assert waits == f"waits for 2 machines at {nodes['RENDEZVOUS']}"
    assert line.startswith(f"error: RENDEZVOUS: {message.format(nodes['RENDEZVOUS'])}")


def test_a_port_that_is_taken_is_told() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        endpoint = f"127.0.0.1:{other.getsockname()[1]}"
        (shown,) = outputs(launch("no.py", NODES=2, RENDEZVOUS=endpoint), status=1)
    waits, problem = shown.splitlines()
    assert waits == f"waits for 2 machines at {endpoint}"
    assert "address already in use); " in problem


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_ends_the_wait_for_other_machines_without_a_traceback(rank) -> None:
    launcher = launch("no.py", NODES=2, RENDEZVOUS=f"127.0.0.1:{free_port()}", NODE_RANK=rank)
    assert launcher.stdout.readline().startswith("waits for 2 machines")
    launcher.send_signal(signal.SIGTERM)
    (rest,) = outputs(launcher, status=128 + signal.SIGTERM)
    assert rest == f"{Interruption(signal.SIGTERM)}\n"


def test_two_machines_train_what_one_does(training, undisturbed, tmp_path) -> None:
    nodes = {"NODES": 2, "RENDEZVOUS": f"127.0.0.1:{free_port()}"}
    shown = outputs(*(launch(*training, tmp_path, **nodes, NODE_RANK=rank) for rank in (0, 1)))
    assert sum("epoch   4/4" in text for text in shown) == 1  # one process reports
    assert same(states(tmp_path), undisturbed)


KILLER = """
import os, runpy, signal, sys
from utils.training.trainer import Trainer
train_step = Trainer.train_step
def die_or_train(trainer, *batch):
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if first and os.environ["RANK"] == "1" and (trainer.progress.epoch, trainer.progress.step) == (1, 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return train_step(trainer, *batch)
Trainer.train_step = die_or_train
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_killed_process_is_replaced_and_the_run_ends_as_it_would_have(training, undisturbed, tmp_path) -> None:
    (tmp_path / "killer.py").write_text(KILLER)
    (shown,) = outputs(launch(tmp_path / "killer.py", *training, tmp_path / "run", PROCESSES=2, MAX_RESTARTS=1))
    assert re.findall(r"epoch   (\d)/4", shown) == ["1", "2", "3", "4"]
    assert shown.count("note: a process has died, so all were started anew") == 1
    assert same(states(tmp_path / "run"), undisturbed)


LOST = """
import os, signal, sys
from pathlib import Path
from utils.common import distributed
from utils.common.errors import run_command
def main():
    died = Path(sys.argv[1], "died")
    first = not died.exists()
    distributed.start("cpu")
    distributed.barrier()
    if first:
        if distributed.rank() == 1:
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()  # does not notice it, as a process that waits for its GPU
    print("restarts:", *sorted(distributed.gather_objects(os.environ["TORCHELASTIC_RESTART_COUNT"])))
    distributed.stop()
run_command(main, several=True)
"""


def test_processes_find_each_other_anew_although_only_one_machine_has_seen_one_die(tmp_path) -> None:
    (tmp_path / "lost.py").write_text(LOST)
    nodes = {"NODES": 2, "RENDEZVOUS": f"127.0.0.1:{free_port()}", "MAX_RESTARTS": 1}
    shown = "".join(outputs(*(launch(tmp_path / "lost.py", tmp_path, **nodes, NODE_RANK=rank) for rank in (0, 1))))
    assert shown.count("restarts: 0 1") == 1  # no attempt was in vain
    assert "connection" not in shown


AGREEMENT = """
import json, os, sys
from pathlib import Path
from utils.common import distributed
from utils.common.errors import InputError
from utils.training import agreement
agreement.SHARING = 0.0
distributed.start("cpu")
rank, folder = distributed.rank(), Path(sys.argv[1])
def refused(check, *args):
    try:
        return check(*args)
    except InputError as error:
        return str(error)
(folder / "0").mkdir(exist_ok=True) if rank == 0 else None
distributed.barrier()
told = [
    refused(agreement.exists_for_all, folder / "0"),
    refused(agreement.exists_for_all, folder / "1"),
    refused(agreement.exists_for_all, folder / "0" if rank == 0 else folder / "1"),
    refused(agreement.check_agreement, {"--epochs": 3}),
    refused(agreement.check_agreement, {"--epochs": 3 + rank, "train_subjects": list(range(99 + rank))}),
]
Path(folder, f"told_{rank}.json").write_text(json.dumps(told))
distributed.stop()
"""


def test_processes_that_see_other_files_or_flags_all_say_so(tmp_path) -> None:
    (tmp_path / "agreement.py").write_text(AGREEMENT)
    outputs(launch(tmp_path / "agreement.py", tmp_path, PROCESSES=2))
    told = [(tmp_path / f"told_{rank}.json").read_text() for rank in (0, 1)]
    assert told[0] == told[1].replace(f"{tmp_path}/1: ", f"{tmp_path}/0: ")
    here, nowhere, differs, alike, other = json.loads(told[0])
    assert (here, nowhere, alike) == (True, False, None)
    assert re.search(r"exists for process 0 on .*, but does not exist for process 1 on .* storage that all", differs)
    assert re.search(r"--epochs differs: 3 in process 0 on .*, 4 in process 1 on ", other)
    assert re.search(r"train_subjects differs: 99 entries \(\w+\) in process 0 .*, 100 entries", other)
