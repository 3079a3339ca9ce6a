"""The layers for training on a CPU compute what the plain layers compute."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from model.batch_norm import WideBatchNorm3d
from model.cpu_layers import ImageBlock, patch_moments, use_cpu_layers
from model.layers import ScaleDenseBlock
from model.scaledense import NetworkConfig, ScaleDense
from tests.model.helpers import channels_last, randomized


@pytest.mark.parametrize(
    ("shape", "wide"),
    [
        ((4, 8, 6, 5, 4), True),
        ((3, 5, 5, 7, 3), True),
        ((2, 64, 3, 4, 5), True),
        ((8, 16, 1, 1, 1), True),  # a single row of 128 / 16 voxels
        ((3, 8, 3, 3, 3), False),  # 81 voxels and 128 / 8 have no common divisor
        ((2, 100, 3, 4, 3), False),
        ((2, 200, 3, 4, 3), False),
    ],
)
def test_batch_norm_for_few_channels_last(shape, wide) -> None:
    x = channels_last(*shape).requires_grad_()
    own, torchs = randomized(WideBatchNorm3d(shape[1]).double()), nn.BatchNorm3d(shape[1]).double()
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
    own, torchs = WideBatchNorm3d(8), nn.BatchNorm3d(8)
    torch.testing.assert_close(own(x.bfloat16()).float(), torchs(x.bfloat16().float()), atol=0.02, rtol=0.02)
    torch.testing.assert_close(own.running_var, torchs.running_var, rtol=1e-3, atol=0)


def test_patch_moments() -> None:
    volumes = channels_last(2, 1, 5, 6, 4)
    patches = functional.pad(volumes[:, 0], (1,) * 6).unfold(1, 3, 1).unfold(2, 3, 1).unfold(3, 3, 1).reshape(-1, 27)
    mean, covariance = patch_moments(volumes)
    torch.testing.assert_close(mean, patches.mean(0))
    torch.testing.assert_close(covariance, torch.cov(patches.T, correction=0))


@pytest.mark.parametrize("with_gradient", [False, True])
def test_a_block_on_the_image_alone(with_gradient) -> None:
    """Values, gradients and running statistics, in float64; an input with a gradient takes the general way."""
    block = randomized(ScaleDenseBlock(1, 6).double())
    own = copy.deepcopy(block)
    use_cpu_layers(own)
    assert type(own) is ImageBlock
    x = channels_last(3, 1, 9, 8, 7).requires_grad_(with_gradient)
    output, expected = own(x), block(x)
    torch.testing.assert_close(output, expected)
    direction = torch.randn_like(output)
    torch.testing.assert_close(
        torch.autograd.grad((output * direction).sum(), own.parameters()),
        torch.autograd.grad((expected * direction).sum(), block.parameters()),
    )  # fmt: skip
    torch.testing.assert_close(own.state_dict(), block.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(own.eval()(x), block.eval()(x))


@pytest.mark.parametrize("model", ["scaledense", "scaledense_paper"])
def test_a_network_on_a_cpu_is_the_same_network(model) -> None:
    """Names stay, and a training step computes the same, in float64."""
    network = randomized(ScaleDense(NetworkConfig(1, model, True, (20, 18, 22), 2, 4, 50.0, 20.0)).double())
    nn.init.normal_(network.output_layer[-1].weight)
    own = copy.deepcopy(network)
    use_cpu_layers(own)
    kinds = [type(part) for part in own.modules()]
    assert nn.BatchNorm3d not in kinds
    assert kinds.count(ImageBlock) == (model == "scaledense_paper")
    volumes, sex = channels_last(3, 1, 20, 18, 22), torch.tensor([0, 1, 1])
    outputs = []
    for one in (own, network):
        outputs.append(one.to(memory_format=torch.channels_last_3d)(volumes, sex))
        outputs[-1].square().sum().backward()
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(own.state_dict(), network.state_dict())
    torch.testing.assert_close(*([p.grad for p in one.parameters()] for one in (own, network)), rtol=1e-5, atol=1e-6)
    use_cpu_layers(own)  # twice is once
    assert [type(part) for part in own.modules()] == kinds
    assert not own.folded().training
