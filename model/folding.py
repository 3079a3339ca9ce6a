"""Fold asymmetric layers and their batch norms into single convolutions."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from model.layers import AsymmetricConv3d, ScaleDenseBlock

Statistics = Callable[[torch.Tensor, torch.Tensor, nn.BatchNorm3d], tuple[torch.Tensor, torch.Tensor]]


class FoldedBlock(nn.Module):
    """A block for evaluation, with one 3x3x3 convolution for each asymmetric layer and its batch norms.

    In evaluation mode a batch norm multiplies by constants and adds others,
    and so does a sum of convolutions: computed once in float64, the result
    differs by rounding alone.

    Parameters
    ----------
    block : ScaleDenseBlock
    """

    def __init__(self, block: ScaleDenseBlock) -> None:
        super().__init__()
        self.convolution_1 = _fold(block.convolution_1, block.norm_1)
        self.convolution_2 = _fold(block.convolution_2, block.norm_2)
        self.excitation = copy.deepcopy(block.excitation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.elu(self.convolution_1(x), inplace=True)
        x = functional.elu(self.convolution_2(x), inplace=True)
        return functional.max_pool3d(x, 2) * self.excitation(x)


def _fold(layer: AsymmetricConv3d, norm: nn.BatchNorm3d) -> nn.Conv3d:
    """Make one convolution of an asymmetric layer and the batch norm behind it, as in evaluation mode."""

    def running(_: torch.Tensor, __: torch.Tensor, norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return norm.running_mean.double(), norm.running_var.double()

    branches: Any = layer.branches
    weight = branches[0].convolution.weight
    out_channels, in_channels = weight.shape[:2]
    kind = {"device": weight.device, "dtype": weight.dtype}
    folded: Any = nn.utils.skip_init(nn.Conv3d, in_channels, out_channels, 3, padding=1, **kind)
    with torch.no_grad():
        kernel, bias = merge(layer, norm, running, torch.float64)
        folded.weight.copy_(kernel)
        folded.bias.copy_(bias)
    return folded  # type: ignore[no-any-return]


def merge(
    layer: AsymmetricConv3d, norm: nn.BatchNorm3d, statistics: Statistics, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the 3x3x3 kernel and the bias that equal an asymmetric layer and the batch norm behind it.

    Parameters
    ----------
    layer : AsymmetricConv3d
    norm : BatchNorm3d
    statistics : callable
        Takes a kernel, its bias and the batch norm behind it; returns the
        mean and the variance of each channel with which it normalizes.
    dtype : torch.dtype
        In which to compute.
    """

    def absorb(kernel: torch.Tensor, bias: torch.Tensor, norm: nn.BatchNorm3d) -> tuple[torch.Tensor, torch.Tensor]:
        mean, variance = statistics(kernel, bias, norm)
        scale = norm.weight / torch.sqrt(variance + norm.eps)
        return kernel * scale[:, None, None, None, None], norm.bias + (bias - mean) * scale

    branches: Any = layer.branches
    kernel: Any = 0
    bias: Any = 0
    for branch in branches:
        weight = branch.convolution.weight
        missing = [(3 - size) // 2 for size in reversed(weight.shape[2:]) for _ in range(2)]
        part = functional.pad(weight.to(dtype), missing)
        part, part_bias = absorb(part, torch.zeros_like(part[:, 0, 0, 0, 0]), branch.norm)
        kernel, bias = kernel + part, bias + part_bias
    return absorb(kernel, bias, norm)
