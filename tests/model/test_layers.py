"""Layers that compute in another way what the plain layers compute."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from model.layers import AsymmetricConv3d, BatchNorm3d, ScaleDenseBlock, patch_moments
from model.scaledense import NetworkConfig, ScaleDense


def channels_last(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    batch, channels, *size = shape
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(batch, *size, channels, generator=generator, dtype=dtype) - 2).permute(0, 4, 1, 2, 3)


def randomized(module: nn.Module) -> nn.Module:
    """Give batch norms weights and statistics that are not those of the start."""
    torch.manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm3d):
            nn.init.normal_(part.weight, 1, 0.3)
            nn.init.normal_(part.bias)
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
    return module


def plain(block: ScaleDenseBlock, x: torch.Tensor) -> torch.Tensor:
    """What the block is by definition, one torch layer after the other."""
    first, norm, _, second, norm_again, _, excite, pool = block
    for layer, outer in ((first, norm), (second, norm_again)):
        branches = [
            functional.batch_norm(conv(x), None, None, bn.weight, bn.bias, True, 0.0, bn.eps)
            for conv, bn in layer.branches
        ]
        x = functional.elu(
            functional.batch_norm(sum(branches), None, None, outer.weight, outer.bias, True, 0.0, outer.eps)
        )
    return pool(x * excite.gate(x.mean((2, 3, 4)))[:, :, None, None, None])


@pytest.mark.parametrize(
    ("shape", "wide"),
    [
        ((4, 8, 6, 5, 4), True),
        ((3, 5, 5, 7, 3), True),
        ((2, 64, 3, 4, 5), True),
        ((3, 8, 3, 3, 3), False),  # 81 voxels and 128 / 8 have no common divisor
        ((2, 100, 3, 4, 3), False),
        ((2, 200, 3, 4, 3), False),
    ],
)
def test_batch_norm_for_few_channels_last(shape, wide) -> None:
    x = channels_last(*shape).requires_grad_()
    own, torchs = randomized(BatchNorm3d(shape[1]).double()), nn.BatchNorm3d(shape[1]).double()
    torchs.load_state_dict(own.state_dict())
    outputs = own(x), torchs(x)
    direction = torch.randn_like(x)
    gradients = [
        torch.autograd.grad((y * direction).sum(), [x, *m.parameters()])
        for y, m in zip(outputs, (own, torchs), strict=True)
    ]
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(own.state_dict(), torchs.state_dict())
    assert ("WideBatchNorm" in type(outputs[0].grad_fn).__name__) == wide


def test_batch_norm_keeps_its_digits_in_bfloat16() -> None:
    x = channels_last(4, 8, 16, 16, 16, dtype=torch.float32) + 20
    own, torchs = BatchNorm3d(8), nn.BatchNorm3d(8)
    torch.testing.assert_close(own(x.bfloat16()).float(), torchs(x.bfloat16().float()), atol=0.02, rtol=0.02)
    torch.testing.assert_close(own.running_var, torchs.running_var, rtol=1e-3, atol=0)


def test_patch_moments() -> None:
    volumes = channels_last(2, 1, 5, 6, 4)
    patches = functional.pad(volumes[:, 0], (1,) * 6).unfold(1, 3, 1).unfold(2, 3, 1).unfold(3, 3, 1).reshape(-1, 27)
    mean, covariance = patch_moments(volumes)
    torch.testing.assert_close(mean, patches.mean(0))
    torch.testing.assert_close(covariance, torch.cov(patches.T, correction=0))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_block_computes_what_its_layers_compute(channels) -> None:
    """Values, gradients and running statistics, in float64."""
    block = randomized(ScaleDenseBlock(channels, 6).double())
    x = channels_last(3, channels, 9, 8, 7).requires_grad_(channels > 1)
    expected = plain(block, x)
    output = block(x)
    torch.testing.assert_close(output, expected)
    direction = torch.randn_like(output)
    parameters = [*block.parameters()] + [x] * (channels > 1)
    torch.testing.assert_close(
        torch.autograd.grad((output * direction).sum(), parameters),
        torch.autograd.grad((expected * direction).sum(), parameters),
    )  # fmt: skip
    image_alone, layer_by_layer = copy.deepcopy(block), copy.deepcopy(block)
    image_alone(x.detach())
    layer_by_layer(x.detach().requires_grad_())  # an input with a gradient takes the general way
    torch.testing.assert_close(image_alone.state_dict(), layer_by_layer.state_dict())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_a_folded_block_equals_the_block(dtype, tolerance) -> None:
    block = randomized(ScaleDenseBlock(4, 8).to(dtype)).eval()
    x = channels_last(2, 4, 9, 8, 10, dtype=dtype)
    with torch.no_grad():
        expected, folded = block(x), block.folded()(x)
    assert (folded - expected).norm() / expected.norm() < tolerance
    assert not any(isinstance(part, nn.BatchNorm3d | AsymmetricConv3d) for part in block.folded().modules())


@pytest.mark.parametrize("model", ["scaledense", "scaledense_paper"])
def test_a_folded_network_equals_the_network(model) -> None:
    network = randomized(ScaleDense(NetworkConfig(1, model, True, (26, 28, 27), 3, 4, 50.0, 20.0)))
    nn.init.normal_(network.output_layer[-1].weight)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    volumes, sex = channels_last(3, 1, 26, 28, 27, dtype=torch.float32), torch.tensor([0, 1, 1])
    folded = network.train().folded()
    assert not folded.training
    with torch.no_grad():
        torch.testing.assert_close(folded(volumes, sex), network.eval()(volumes, sex), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
