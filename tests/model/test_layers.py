"""A block computes what its layers compute by definition."""

import copy

import pytest
import torch
from torch.nn import functional

from model.layers import ScaleDenseBlock, recompute
from tests.model.helpers import channels_last, randomized


def plain(block: ScaleDenseBlock, x: torch.Tensor) -> torch.Tensor:
    """The block in training mode, one function of torch after the other."""
    for layer, outer in ((block.convolution_1, block.norm_1), (block.convolution_2, block.norm_2)):
        branches = [
            functional.batch_norm(
                branch.convolution(x), None, None, branch.norm.weight, branch.norm.bias, True, 0.0, branch.norm.eps
            )
            for branch in layer.branches
        ]
        x = functional.elu(
            functional.batch_norm(sum(branches), None, None, outer.weight, outer.bias, True, 0.0, outer.eps)
        )
    excitation = block.excitation
    weights = torch.sigmoid(excitation.expand(functional.relu(excitation.reduce(x.mean((2, 3, 4))))))
    return functional.max_pool3d(x * weights[:, :, None, None, None], 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_block_computes_what_its_layers_compute(channels) -> None:
    """Values and gradients, in float64."""
    block = randomized(ScaleDenseBlock(channels, 6).double())
    x = channels_last(3, channels, 9, 8, 7).requires_grad_()
    expected, output = plain(block, x), block(x)
    torch.testing.assert_close(output, expected)
    direction = torch.randn_like(output)
    inputs = [*block.parameters(), x]
    torch.testing.assert_close(
        torch.autograd.grad((output * direction).sum(), inputs),
        torch.autograd.grad((expected * direction).sum(), inputs),
    )  # fmt: skip


def test_a_recomputed_block_counts_a_batch_once() -> None:
    """Output, gradients and running statistics are those of the block."""
    block = randomized(ScaleDenseBlock(2, 4).double())
    again, x = copy.deepcopy(block), channels_last(2, 2, 6, 6, 6)
    outputs = block(x), recompute(again, x)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(*outputs, rtol=0, atol=0)
    torch.testing.assert_close([p.grad for p in again.parameters()], [p.grad for p in block.parameters()])
    torch.testing.assert_close(again.state_dict(), block.state_dict(), rtol=0, atol=0)
    assert again.norm_1.num_batches_tracked == 1
