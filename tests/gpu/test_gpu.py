"""What must hold on a CUDA GPU, with the default network at 2 mm; run by ``bash_check_gpu.sh``."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from model.batch_norm import synchronize
from model.building import make_network
from model.ranking import CascadeLoss, SoftRank
from model.scaledense import NetworkConfig, ScaleDense
from tests.conftest import ROOT, data_flags, run_script
from tests.training.helpers import same
from utils.data.images import brain_box, model_grid
from utils.evaluation.predicting import autocast
from utils.options.flags import settings_from
from utils.options.training import parse_training_flags
from utils.training.memory import estimate_memory
from utils.training.optimization import make_optimizer
from utils.training.settings import TrainingSettings
from utils.training.speed import speed_up

CONFIG = NetworkConfig(
    1, volume_shape=model_grid(2).shape, age_mean=50.0, age_sd=20.0, field_of_view=brain_box(2)
)  # the default network
SETTINGS = settings_from(TrainingSettings, parse_training_flags(1, []))
STEPS = 10
Outcome = tuple[list[float], float, torch.Tensor]  # losses of the steps, norm of the first gradient, ages after them


def batch_of(size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Smooth random volumes that get brighter with the age; sexes and ages, years."""
    generator = torch.Generator().manual_seed(0)
    age = torch.linspace(20, 80, size)
    coarse = torch.randn(size, 1, 12, 14, 12, generator=generator)
    volumes = torch.nn.functional.interpolate(coarse, CONFIG.volume_shape, mode="trilinear")
    volumes = volumes + (age[:, None, None, None, None] - 50) / 20
    strides = volumes[:, 0, ..., None].permute(0, 4, 1, 2, 3)  # channels last
    return strides.to(device), (torch.arange(size) % 2).to(device), age.to(device)


def train(
    device: torch.device, precision: str, fast: bool, fuse: str = "false", size: int = 4, steps: int = STEPS
) -> Outcome:
    """Take a few steps on one batch, with the layers that training uses on this device, or the plain ones."""
    network = make_network(CONFIG, 0).to(device, memory_format=torch.channels_last_3d).train()
    settings = replace(SETTINGS, fuse=fuse, learning_rate=1e-4)
    if fast:
        speed_up(network, settings, 0, device)
    optimizer, criterion = make_optimizer(network.parameters(), settings), CascadeLoss(ranker=SoftRank())
    volumes, sex, age = batch_of(size, device)
    generator, losses, norm = torch.Generator().manual_seed(0), [], 0.0
    for step in range(steps):
        with autocast(device, precision):
            brain_age = network(volumes, sex)
        loss = criterion(brain_age, age, generator)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        losses.append(loss.item())
        if step == 1:  # at the first one, only the last layer has gradients
            norm = torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None]).item()
        optimizer.step()
    with torch.no_grad():
        return losses, norm, network(volumes, sex).cpu()


def compare(figures: dict[str, Any], name: str, a: Outcome, b: Outcome) -> tuple[float, float, float]:
    """Return how much two trainings differ: first loss and gradient, relatively; ages after all steps, years."""
    loss = abs(a[0][1] - b[0][1]) / b[0][1]
    gradient = abs(a[1] - b[1]) / b[1]
    ages = (a[2] - b[2]).abs().max().item()
    figures[f"{name}: loss of step 2, relative"] = loss
    figures[f"{name}: gradient of step 2, relative"] = gradient
    figures[f"{name}: ages after {len(a[0])} steps, largest, years"] = ages
    return loss, gradient, ages


def check_alike(figures: dict[str, Any], name: str, a: Outcome, b: Outcome) -> None:
    """Hold two trainings in float32 equal but for rounding."""
    loss, gradient, _ = compare(figures, name, a, b)
    assert loss < 1e-4
    assert gradient < 1e-2


@pytest.fixture(scope="module")
def plain(device) -> Outcome:
    """Training with torch's own layers in float32 on the GPU."""
    return train(device, "float32", fast=False)


def test_the_gpu_trains_as_the_cpu_does(device, figures) -> None:
    gpu, cpu = (train(place, "float32", True, size=2, steps=2) for place in (device, torch.device("cpu")))
    check_alike(figures, "GPU and CPU, float32", gpu, cpu)


@pytest.mark.parametrize("fuse", ["false", "true"])
def test_fast_layers_train_as_the_plain_ones(device, figures, plain, fuse) -> None:
    fast = train(device, "float32", True, fuse)
    check_alike(figures, f"fast layers and plain ones, float32, fuse {fuse}", fast, plain)


@pytest.mark.parametrize("fuse", ["false", "true"])
def test_bfloat16_trains_as_float32(device, figures, plain, fuse) -> None:
    fast = train(device, "bfloat16", True, fuse)
    loss, gradient, _ = compare(figures, f"bfloat16 and float32, fuse {fuse}", fast, plain)
    assert loss < 0.02
    assert gradient < 0.2
    assert fast[0][-1] < 0.9 * fast[0][0]  # it learns


@pytest.mark.parametrize("shape", [(4, 8, 45, 54, 45), (0, 8, 45, 54, 45), (2, 200, 2, 3, 2)])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_synchronized_batch_norm_computes_what_torchs_does(device, tmp_path, precision, shape) -> None:
    """Values, gradients and running statistics, in a group of one process; also the part of one without scans."""
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/start", rank=0, world_size=1)
    try:
        own, torchs = (torch.nn.BatchNorm3d(shape[1], device=device) for _ in range(2))
        synchronize(own)
        x = (torch.randn(shape, device=device) * 3 + 5).to(precision, memory_format=torch.channels_last_3d)
        direction = torch.randn_like(x)
        outcomes = []
        for norm in (own, torchs) if len(x) else (own,):
            given = x.clone().requires_grad_()
            output = norm(given)
            gradients = torch.autograd.grad((output * direction).sum(), [given, norm.weight, norm.bias])
            outcomes.append([output, *gradients, norm.running_mean, norm.running_var])
    finally:
        torch.distributed.destroy_process_group()
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if precision == torch.float32 else {"rtol": 0.02, "atol": 0.05}
    for found, expected in zip(outcomes[0], outcomes[-1], strict=True):
        assert found.isfinite().all() or not len(x)
        torch.testing.assert_close(found, expected, equal_nan=True, **tolerance)  # type: ignore[arg-type]


def test_the_folded_network_estimates_the_same(device, figures) -> None:
    network: Any = make_network(CONFIG, 0).to(device, memory_format=torch.channels_last_3d)
    torch.nn.init.normal_(network.output_layer[-1].weight, std=0.1)
    volumes, sex, _ = batch_of(8, device)
    with torch.no_grad():
        for _ in range(20):  # running statistics
            network.train()(volumes, sex)
        plain_ages = network.eval()(volumes, sex)
        folded: ScaleDense = network.folded().to(memory_format=torch.channels_last_3d)
        ages = folded(volumes, sex)
        cpu = folded.cpu()(volumes.cpu(), sex.cpu())
    figures["folded and plain, float32: largest, years"] = (ages - plain_ages).abs().max().item()
    figures["folded, GPU and CPU, float32: largest, years"] = (ages.cpu() - cpu).abs().max().item()
    assert plain_ages.std() > 0.01
    torch.testing.assert_close(ages, plain_ages, atol=1e-2, rtol=0)
    torch.testing.assert_close(ages.cpu(), cpu, atol=1e-2, rtol=0)


def test_memory_of_the_default_batch(device, figures) -> None:
    for precision in ("bfloat16", "float32"):
        estimate = estimate_memory(CONFIG, SETTINGS.batch_size, precision)["peak"] / 2**30
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        train(device, precision, fast=True, size=SETTINGS.batch_size, steps=3)
        peak = torch.cuda.max_memory_allocated() / 2**30
        figures[f"peak memory, batch of {SETTINGS.batch_size}, {precision}, GiB"] = peak
        figures[f"estimate of it, {precision}, GiB"] = estimate
        figures[f"reserved, {precision}, GiB"] = torch.cuda.max_memory_reserved() / 2**30
        assert peak < 1.3 * estimate


def training(cohort: Path, folder: Path, *flags: object) -> list[str]:
    """Return the command line of a short training on the simulated brains."""
    return [
        *data_flags(cohort, "train", "valid", "test"), "--output_dir", str(folder), "--epochs", "2",
        "--warmup_epochs", "1", "--batch_size", "8", "--num_workers", "2", "--cache_folder", "", *map(str, flags),
    ]  # fmt: skip


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "best.pt", weights_only=True)["state_dict"]


def test_resuming_after_sigkill_repeats_bit_for_bit(cohort, tmp_path, figures) -> None:
    for name in ("whole", "again"):
        run_script("train_first_stage.py", *training(cohort, tmp_path / name, "--deterministic", "true"))
    assert same(weights_of(tmp_path / "whole"), weights_of(tmp_path / "again"))
    cut = training(cohort, tmp_path / "cut", "--deterministic", "true")
    process = subprocess.Popen([sys.executable, str(ROOT / "train_first_stage.py"), *cut])
    last = tmp_path / "cut/last.pt"
    while not last.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    run_script("train_first_stage.py", *cut, "--resume")
    assert same(weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut"))
    figures["resumed after SIGKILL, equal bit for bit"] = 1


@pytest.mark.parametrize("processes", sorted({1, torch.cuda.device_count() or 1}))
def test_the_cascade_under_torchrun(cohort, tmp_path, figures, processes) -> None:
    """NCCL with one process, and with as many as there are cards: as without, in both stages and their tests."""
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(processes)))}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    first, second = tmp_path / "first", tmp_path / "second"
    ends = {"check": True, "cwd": ROOT, "env": env}
    size = ["--batch_size", str(8 // processes)]
    subprocess.run([*launcher, "train_first_stage.py", *training(cohort, first, *size)], **ends)  # type: ignore[call-overload]
    run_script("train_first_stage.py", *training(cohort, tmp_path / "alone"))
    errors = [pd.read_csv(folder / "metrics.csv")["train/mae"] for folder in (first, tmp_path / "alone")]
    figures[f"NCCL, {processes}, and no group: training MAE of epoch 2, years"] = abs(errors[0][1] - errors[1][1])
    assert errors[0][1] == pytest.approx(errors[1][1], rel=0.05)
    after = ["--first_stage_checkpoint", str(first / "best.pt")]
    flags = [part for part in training(cohort, second, *size) if part not in ("--test_folder", str(cohort / "test"))]
    subprocess.run([*launcher, "train_second_stage.py", *flags, *after], **ends)  # type: ignore[call-overload]
    tested = ["--label_table", str(cohort / "labels.csv"), "--test_folder", str(cohort / "test"), "--num_workers", "2"]
    ages = []
    for precision in ("float32", "bfloat16"):
        folder = tmp_path / precision
        run_script(
            "test_second_stage.py", "--checkpoint", second / "best.pt", *after, *tested, "--output_dir", folder,
            "--precision", precision,
        )  # fmt: skip
        ages.append(pd.read_csv(folder / "predictions.csv")["brain_age"].to_numpy())
    assert np.isfinite(ages).all()
    if processes == 1:
        figures["estimates in bfloat16 and float32: largest, years"] = float(np.abs(ages[0] - ages[1]).max())
