"""The layers for training on a GPU compute what the plain layers compute; shown on a CPU."""

import pytest
import torch
from torch import nn

import model.gpu_layers
from model.gpu_layers import ColumnConv3d, FusedTrunk, convolve_columns, use_gpu_layers
from model.scaledense import NetworkConfig, ScaleDense

CONFIG = NetworkConfig(1, volume_shape=(20, 22, 21), blocks=1, filters=2)


@pytest.mark.parametrize(("size", "padding", "dilation"), [(7, 1, 2), (3, 1, 1), (5, 0, 3)])
def test_columns_give_the_same_convolution(size, padding, dilation) -> None:
    layer = nn.Conv3d(1, 4, size, padding=padding, dilation=dilation).double()
    x = torch.randn(2, 1, 17, 18, 19, dtype=torch.float64)
    outputs = layer(x), convolve_columns(x, layer)
    torch.testing.assert_close(*outputs)
    direction = torch.randn_like(outputs[0])
    torch.testing.assert_close(*(torch.autograd.grad((y * direction).sum(), layer.parameters()) for y in outputs))


def test_columns_are_for_low_precision(monkeypatch) -> None:
    used = []
    monkeypatch.setattr(model.gpu_layers, "convolve_columns", lambda x, layer: used.append(x) or x)
    layer, x = ColumnConv3d(1, 2, 3), torch.randn(1, 1, 5, 5, 5)
    assert layer(x).shape == (1, 2, 3, 3, 3)
    assert not used
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
    assert len(used) == 1


def test_names_and_estimates_stay() -> None:
    plain, fast = ScaleDense(CONFIG), ScaleDense(CONFIG)
    use_gpu_layers(fast, fuse=True)
    fast.load_state_dict(plain.state_dict())
    assert type(fast.trunk) is FusedTrunk
    volumes, sex = torch.randn(2, 1, 20, 22, 21), torch.tensor([0, 1])
    torch.testing.assert_close(fast.eval()(volumes, sex), plain.eval()(volumes, sex))
    assert torch.isfinite(fast.folded()(volumes, sex)).all()


def test_full_batches_in_training_are_fused_alone(monkeypatch) -> None:
    """An epoch's last batch, recalibration and evaluation would cost the compiler's minute again."""
    fused = []

    def run(trunk, volumes):
        fused.append(len(volumes))
        return super(FusedTrunk, trunk).forward(volumes)

    monkeypatch.setattr(model.gpu_layers, "_fused", lambda: run)
    network = ScaleDense(CONFIG)
    use_gpu_layers(network, fuse=True)
    trunk = network.trunk
    with torch.no_grad():
        trunk(torch.randn(4, 1, 20, 22, 21))
    for size in (3, 2, 3):
        trunk(torch.randn(size, 1, 20, 22, 21))
    network.eval()
    trunk(torch.randn(3, 1, 20, 22, 21))
    assert fused == [3, 3]


def test_recomputed_blocks_are_not_fused() -> None:
    network = ScaleDense(CONFIG)
    network.trunk.activation_checkpointing = True
    use_gpu_layers(network, fuse=True)
    assert type(network.trunk) is not FusedTrunk
