"""Nothing needs a network, or tries to reach one: training, testing and prediction with sockets blocked."""

import shutil
import socket
from pathlib import Path

import pytest

from tests.bad_input.harness import SMALL, make_study

# Python reads a module of this name when it starts: it blocks sockets in the processes that the scripts start, too.
BLOCK = """
import os, socket

def refuse(*given, **options):
    with open(os.environ["NETWORK_LOG"], "a") as log:
        print(given[1:], file=log)
    raise OSError("no network in this test")

class Socket(socket.socket):
    def _guard(name):
        method = getattr(socket.socket, name)
        def guarded(self, *given):
            return method(self, *given) if self.family == socket.AF_UNIX else refuse(self, *given)
        return guarded

    connect, connect_ex, sendto = map(_guard, ("connect", "connect_ex", "sendto"))

socket.socket = Socket
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
"""


@pytest.fixture
def attempts(tmp_path, monkeypatch) -> Path:
    """Block sockets of the internet here and in child processes; return the file that lists the attempts."""
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(BLOCK)
    log = tmp_path / "attempts.txt"
    monkeypatch.setenv("NETWORK_LOG", str(log))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "blocked"))
    for name in ("socket", "getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, getattr(socket, name))  # so that they come back
    exec(compile(BLOCK, "sitecustomize.py", "exec"), {})
    return log


def test_the_block_works(attempts) -> None:
    with pytest.raises(OSError, match="no network in this test"), socket.socket(socket.AF_INET) as tried:
        tried.connect(("127.0.0.1", 9))
    with pytest.raises(OSError, match="no network in this test"):
        socket.create_connection(("example.org", 80))
    assert len(attempts.read_text().splitlines()) == 2


def test_no_script_tries_to_reach_a_network(synthetic_cohort, tmp_path, attempts, monkeypatch, run_here) -> None:
    make_study(tmp_path / "study", synthetic_cohort)
    monkeypatch.chdir(tmp_path / "study")
    shutil.rmtree("runs")
    short = ["--epochs", 1, "--num_workers", 1, "--output_dir"]
    run_here("train_first_stage.py", *SMALL["train_first_stage.py"], *short, "runs/first_stage")
    run_here("train_second_stage.py", *SMALL["train_second_stage.py"], *short, "runs/second_stage")
    run_here("test_second_stage.py", *SMALL["test_second_stage.py"], "--num_workers", 1)
    with pytest.raises(SystemExit) as stop:
        run_here("predict.py", *SMALL["predict.py"], "--num_workers", 1)
    assert stop.value.code == 0
    assert Path("predictions/predictions.csv").is_file()
    assert not attempts.exists(), attempts.read_text()
