"""Which layers and algorithms a training gets."""

import pytest
import torch

from model.batch_norm import WideBatchNorm3d, synchronize
from model.gpu_layers import FusedTrunk
from tests.training.helpers import CPU, flags, small_network
from utils.options.flags import settings_from
from utils.training import speed
from utils.training.settings import TrainingSettings
from utils.training.speed import FUSED_STEPS, speed_up

GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def faked_gpu(monkeypatch) -> None:
    """A GPU on which the compiler works; cuDNN's switches are set back afterwards."""
    monkeypatch.setattr(speed, "_problem_of_compiler", lambda device: "")
    for switch in ("benchmark", "deterministic"):
        monkeypatch.setattr(torch.backends.cudnn, switch, False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)


def sped_up(steps: int, *extra: str, device: torch.device = GPU):
    network = small_network()
    speed_up(network, settings_from(TrainingSettings, flags(*extra)), steps, device)
    return network


@pytest.mark.parametrize(
    ("extra", "steps", "fused"),
    [
        ((), FUSED_STEPS, True),
        ((), FUSED_STEPS - 1, False),
        (("--fuse", "true"), 1, True),
        (("--fuse", "false"), 10**6, False),
        (("--deterministic", "true"), 10**6, False),
    ],
)
def test_long_trainings_are_fused(extra, steps, fused) -> None:
    assert (type(sped_up(steps, *extra).trunk) is FusedTrunk) == fused


def test_a_missing_compiler_is_named_and_not_needed(monkeypatch, capsys) -> None:
    monkeypatch.setattr(speed, "_problem_of_compiler", lambda device: "InvalidCxxCompiler: no C++ compiler")
    assert type(sped_up(10**6).trunk) is not FusedTrunk
    assert "no C++ compiler" in capsys.readouterr().out


def test_synchronized_batch_norm_is_not_fused(capsys) -> None:
    network = small_network()
    synchronize(network)
    speed_up(network, settings_from(TrainingSettings, flags("--fuse", "true")), 1, GPU)
    assert type(network.trunk) is not FusedTrunk
    assert "batch norm goes over several processes (--sync_batch_norm)" in capsys.readouterr().out


def test_the_compiler_is_tried(monkeypatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(torch, "compile", lambda function: lambda x: 1 / 0)
    assert speed._problem_of_compiler(CPU) == "ZeroDivisionError: division by zero"


def test_deterministic_training_leaves_out_what_may_differ() -> None:
    sped_up(1, "--precision", "float32")
    assert torch.backends.cudnn.benchmark
    sped_up(1)  # bfloat16
    assert not torch.backends.cudnn.benchmark
    sped_up(1, "--precision", "float32", "--deterministic", "true")
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert speed.os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_cpu_gets_its_own_layers() -> None:
    network = sped_up(10**6, device=CPU)
    assert any(isinstance(part, WideBatchNorm3d) for part in network.modules())
    assert type(network.trunk) is not FusedTrunk
