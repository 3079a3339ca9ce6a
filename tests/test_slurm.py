"""The job scripts of slurm/, run with stand-ins for srun and scontrol."""

import csv
import os
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.conftest import QUICK, ROOT, SMALL_NETWORK, VOXEL_SIZE

JOBS = sorted(path for path in (ROOT / "slurm").glob("*.sh") if "#SBATCH" in path.read_text())
ARRAYS = ("preprocess", "predict", "cross_validate", "ablation")
# Runs its command once a machine, hands signals on, and ends with the highest status.
SRUN = r"""#!/usr/bin/env bash
echo "srun $*" >> "$CALLS"
while [[ "$1" == --* ]]; do shift; done
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do
  SLURM_NODEID=$node "$@" &
  tasks+=($!)
done
trap 'kill -USR1 "${tasks[@]}"' USR1
highest=0
for task in "${tasks[@]}"; do
  wait "$task"; status=$?
  while kill -0 "$task" 2>/dev/null; do wait "$task"; status=$?; done
  ((status > highest)) && highest=$status
done
echo "srun ended with $highest" >> "$CALLS"
exit "$highest"
"""
SCONTROL = r"""#!/usr/bin/env bash
echo "scontrol $*" >> "$CALLS"
[[ "$1 $2" != "show hostnames" ]] || printf '%s\n' 127.0.0.1 127.0.0.2
"""
PYTHON = r"""#!/usr/bin/env bash
name="$1"
[[ "$1" != -m ]] || name="$2"
printf '%s\0' "$SLURM_NODEID" "$CUDA_VISIBLE_DEVICES" "$@" > "$CALLS.${name##*/}.$SLURM_NODEID"
"""


@pytest.fixture
def cluster(tmp_path):
    """The environment of a job with one task on each machine."""
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "python": PYTHON}.items():
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1",
        "CALLS": str(tmp_path / "calls"), "CUDA_VISIBLE_DEVICES": "", "SLURM_NODEID": "0",
        "SLURM_JOB_ID": "123456", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "gpu[1-2]",
        "SLURM_CPUS_PER_TASK": "8",
    }  # fmt: skip


def start(job: str, environment: dict[str, str], *flags: object) -> "subprocess.Popen[str]":
    """Start a job script as Slurm does: a copy elsewhere, in the folder of the call."""
    copy = Path(environment["CALLS"]).with_name("slurm_script")
    copy.write_text((ROOT / "slurm" / f"{job}.sh").read_text())
    return subprocess.Popen(
        ["bash", str(copy), *map(str, flags)], env=environment, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def calls(environment: dict[str, str]) -> list[str]:
    path = Path(environment["CALLS"])
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_slurm_reads_its_options_before_the_first_command(job) -> None:
    lines = job.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    options = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert options
    assert max(options) < first
    for number in options:
        assert re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", lines[number])
    assert {"#SBATCH --requeue", "#SBATCH --open-mode=append", "#SBATCH --signal=B:USR1@120"} <= set(lines)
    assert job.stem in {*ARRAYS, "train"}


@pytest.mark.parametrize("job", ARRAYS)
def test_an_element_of_an_array_does_its_share(cluster, job, tmp_path) -> None:
    element = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "8", "PYTHON": str(tmp_path / "bin" / "python")}
    environment = {**cluster, **element, "OUTPUT_DIR": "/shared/results", "NUM_WORKERS": "5"}
    job_script = start(job, environment, "--device", "cpu")
    assert (job_script.communicate()[0], job_script.returncode) == ("", 0)
    (recorded,) = [path for path in tmp_path.glob("calls.*.0") if "installed" not in path.name]
    words = recorded.read_text().split("\0")[1:-1]
    given = dict(pairwise(words))
    assert (given["--shard"], given["--num_workers"], given["--device"]) == ("3/8", "5", "cpu")
    assert given["--output_dir"] == ("/shared/results/shard_3" if job == "predict" else "/shared/results")
    again = start(job, {**environment, "SLURM_ARRAY_TASK_MAX": "3", "SHARDS": "8"})
    assert (again.communicate()[0], again.returncode) == ("", 0)
    assert "--shard\x003/8\x00" in recorded.read_text()
    assert calls(environment) == []  # nothing is queued again


def test_a_training_on_two_machines_starts_one_launcher_on_each(cluster, tmp_path) -> None:
    environment = {**cluster, "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4", "CUDA_VISIBLE_DEVICES": "0,1,2,3",
                   "PYTHON": str(tmp_path / "bin" / "python"), "EPOCHS": "7"}  # fmt: skip
    job = start("train", environment, "second", "--seed", 3)
    assert (job.communicate()[0], job.returncode) == ("", 0)
    assert calls(environment) == [
        "scontrol show hostnames gpu[1-2]",
        "srun --cpus-per-task=8 bash slurm/on_node.sh bash_train_second_stage.sh --resume --seed 3",
        "srun ended with 0",
    ]
    for node in (0, 1):
        rank, gpus, *words = (tmp_path / f"calls.utils.common.launch.{node}").read_text().split("\0")[:-1]
        assert (rank, gpus) == (str(node), "0,1,2,3")
        given = dict(pairwise(words))
        assert (given["--nnodes"], given["--nproc_per_node"]) == ("2", "4")
        assert given["--rdzv_endpoint"] == "127.0.0.1:23456"
        assert given["--rdzv_conf"].startswith(f"is_host={1 - node},")
        assert str(ROOT / "train_second_stage.py") in words
        assert given["--epochs"] == "7"
        assert words[-3:] == ["--resume", "--seed", "3"]


def test_a_training_saves_before_its_time_is_up_and_goes_on_when_queued_again(
    cluster, synthetic_cohort, tmp_path
) -> None:
    run = tmp_path / "run"
    flags = [*QUICK, *SMALL_NETWORK, "--voxel_size", VOXEL_SIZE]
    environment = {**cluster, "DATA": str(synthetic_cohort), "OUTPUT_DIR": str(run), "SCHEDULER": "constant",
                   "WARMUP_EPOCHS": "0", "EPOCHS": "1000000"}  # fmt: skip
    job = start("train", environment, "first", *flags)
    assert job.stdout
    while not job.stdout.readline().startswith("epoch "):  # one epoch is done
        assert job.poll() is None
    job.send_signal(signal.SIGUSR1)
    rest = job.stdout.read()
    assert job.wait() == 128 + signal.SIGUSR1, rest
    assert "SIGUSR1: saves after this step and stops" in rest
    assert calls(environment)[-2:] == ["srun ended with 138", "scontrol requeue 123456"]
    done = torch.load(run / "last.pt", weights_only=True)["epoch"]
    again = start("train", {**environment, "EPOCHS": str(done + 1)}, "first", *flags)
    rest = again.communicate()[0]
    assert again.returncode == 0, rest
    assert calls(environment)[-1] == "srun ended with 0"  # and is not queued again
    with (run / "metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == done + 1


def test_a_stage_that_does_not_exist_ends_with_one_line(cluster) -> None:
    job = start("train", cluster, "third")
    assert job.communicate()[0] == "error: third: is no stage; give first or second\n"
    assert job.returncode == 2
