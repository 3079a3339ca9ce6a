"""What a training says first: its device, precision, batches, and the memory that it needs."""

from dataclasses import replace

import pytest
import torch

from model.scaledense import NetworkConfig
from tests.training.helpers import CPU, flags, small_network
from utils.common import distributed
from utils.data.images import brain_box, model_grid
from utils.options.flags import settings_from
from utils.training.memory import GIB, announce, estimate_memory
from utils.training.settings import TrainingSettings

GPU = torch.device("cuda")
SETTINGS = settings_from(TrainingSettings, flags("--batch_size", 16))
DEFAULT = NetworkConfig(1, volume_shape=model_grid(2).shape, field_of_view=brain_box(2))


@pytest.fixture
def gpu(monkeypatch) -> dict[str, float]:
    """A GPU with so much memory, GiB."""
    memory = {"free": 20.0, "total": 24.0, "reserved": 1.0}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA RTX A5000")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (memory["free"] * GIB, memory["total"] * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: memory["reserved"] * GIB)
    return memory


def told(capsys, device: torch.device, network=None, settings=SETTINGS) -> list[str]:
    announce(network or small_network(), settings, device)
    return capsys.readouterr().out.splitlines()


def test_a_training_on_a_cpu_says_so(capsys, monkeypatch) -> None:
    threads = torch.get_num_threads()
    assert told(capsys, CPU) == [f"trains on the CPU (threads: {threads}) in float32, with batches of 16"]
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    (line,) = told(capsys, CPU)
    assert line.endswith("with batches of 16 in each of 4 processes, 64 together")


def test_a_training_on_a_gpu_tells_its_memory(capsys, gpu) -> None:
    first, second = told(capsys, GPU)
    assert first == "trains on NVIDIA RTX A5000 in bfloat16, with batches of 16"
    assert second == "needs about 0.0 GiB of the GPU's memory; 21.0 of 24.0 GiB are free"


def test_too_little_memory_is_told_before_the_first_step(capsys, gpu) -> None:
    """The default network needs 8.4 GiB, with activation checkpointing 6.5."""
    network = small_network()
    network.config = DEFAULT
    gpu["free"] = 7.0
    assert "needs about 8.4 GiB" in told(capsys, GPU, network)[1]
    warning = told(capsys, GPU, network)[2]
    assert "BATCH_SIZE" in warning
    assert "ACTIVATION_CHECKPOINTING" in warning
    network.trunk.activation_checkpointing = True
    assert len(told(capsys, GPU, network)) == 2
    assert len(told(capsys, GPU, network, replace(SETTINGS, batch_size=32))) == 3


def test_the_estimate_grows_with_the_batch_and_the_precision() -> None:
    config = replace(small_network().config, volume_shape=(46, 54, 46))

    def peak(*how: object) -> float:
        return estimate_memory(config, *how)["peak"]

    assert peak(2, "float32") < peak(4, "float32") < 2 * peak(2, "float32")
    assert peak(4, "bfloat16") < peak(4, "float32")
    assert peak(4, "float32", True) < peak(4, "float32")


def test_what_is_counted_is_what_the_forward_pass_keeps() -> None:
    """Counted with the numbers themselves, on the CPU."""
    network, kept = small_network().train(), {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    volumes = torch.zeros(2, *network.config.volume_shape, 1).permute(0, 4, 1, 2, 3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(volumes, torch.zeros(2, dtype=torch.int64), torch.zeros(2))
    weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    real = sum(size for storage, size in kept.items() if storage not in weights)
    assert estimate_memory(network.config, 2, "float32")["activations"] == pytest.approx(real, rel=0.02)
    del output
