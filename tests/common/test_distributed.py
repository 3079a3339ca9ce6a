"""Several processes compute what one computes."""

import os
import subprocess
import sys

import numpy as np
import torch

from model.ranking import CascadeLoss, SoftRank
from tests.conftest import QUICK, ROOT, SHORT, SMALL_NETWORK, VOXEL_SIZE, data_flags
from utils.common import distributed

WORKER = """
import sys
import torch
from model.ranking import CascadeLoss, SoftRank
from utils.common import distributed
distributed.start("cpu")
layer = torch.nn.Linear(3, 1)
torch.nn.init.ones_(layer.weight); torch.nn.init.zeros_(layer.bias)
x = torch.arange(27.0).reshape(9, 3).sin() * 30 + 50
share = distributed.Share(len(x), distributed.rank(), distributed.world_size())
own = x[share.own]
age = distributed.gather(own.mean(1), share.sizes)
assert torch.equal(age, x.mean(1))
parallel = distributed.wrap(layer)
ages = distributed.gather(parallel(own)[:, 0], share.sizes)
loss = CascadeLoss(ranker=SoftRank())(ages, age, torch.Generator().manual_seed(0))["loss"]
(loss * distributed.world_size()).backward()
norm = torch.nn.BatchNorm1d(3)
half = x[4 * distributed.rank():][:4]
norm.running_mean, norm.running_var = half.mean(0), half.var(0, correction=0)
distributed.average_statistics(norm)
assert distributed.gather_objects(distributed.rank()) == list(range(distributed.world_size()))
if distributed.rank() == 0:
    torch.save([layer.weight.grad, norm.running_mean, norm.running_var], sys.argv[1])
del parallel, ages, loss
distributed.stop()
"""


def torchrun(processes: int, *command: object) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes),
         *map(str, command)],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr


def test_gradients_of_two_processes_are_those_of_the_joint_batch(tmp_path) -> None:
    """The ranking and pair losses reach across processes, and so do running statistics."""
    (tmp_path / "worker.py").write_text(WORKER)
    torchrun(2, tmp_path / "worker.py", tmp_path / "grad.pt")
    layer = torch.nn.Linear(3, 1)
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    x = torch.arange(27.0).reshape(9, 3).sin() * 30 + 50  # nine do not divide evenly
    generator = torch.Generator().manual_seed(0)
    CascadeLoss(ranker=SoftRank())(layer(x)[:, 0], x.mean(1), generator)["loss"].backward()
    gradient, mean, variance = torch.load(tmp_path / "grad.pt")
    torch.testing.assert_close(gradient, layer.weight.grad, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(mean, x[:8].mean(0))
    torch.testing.assert_close(variance, x[:8].var(0, correction=0), rtol=1e-4, atol=1e-2)


def test_two_processes_train_and_estimate_every_subject(synthetic_cohort, tmp_path) -> None:
    torchrun(
        2, "train_first_stage.py", *data_flags(synthetic_cohort, "train", "valid", "test"), *SMALL_NETWORK, *QUICK,
        *SHORT, "--voxel_size", VOXEL_SIZE, "--batch_size", 2, "--output_dir", tmp_path / "run",
        "--cache_folder", tmp_path / "cache",
    )  # fmt: skip
    assert sorted(len(list(cache.iterdir())) for cache in (tmp_path / "cache").glob("*/")) == [5, 5, 12]
    for split, size in (("train", 12), ("valid", 5), ("test", 5)):
        table = np.load(tmp_path / "run" / f"{split}_discretized_age.npy")
        assert len(set(table["subject_id"].tolist())) == size
        assert np.isfinite(table["brain_age"]).all()


def test_one_process_needs_no_group() -> None:
    x = torch.ones(2, requires_grad=True)
    assert distributed.gather(x, [2]) is x
    assert distributed.gather_objects("a") == ["a"]
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    layer = torch.nn.Linear(1, 1)
    assert distributed.wrap(layer) is layer
