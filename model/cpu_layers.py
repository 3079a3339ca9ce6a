"""Layers that compute the same as those of `model.layers`, faster, in training on a CPU.

Nothing here is needed to understand the networks.
"""

import math
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from model.folding import merge
from model.layers import ScaleDenseBlock

COLUMNS = 128  # numbers that lie side by side before torch's batch norm is fast on a CPU


def use_cpu_layers(network: nn.Module) -> None:
    """Give the layers of a network on a CPU their faster forward passes; weights and names stay.

    Parameters
    ----------
    network : Module, changed in place
    """
    modules: list[Any] = list(network.modules())
    for part in modules:
        if type(part) is nn.BatchNorm3d:
            part.__class__ = WideBatchNorm3d
        elif type(part) is ScaleDenseBlock and part.in_channels == 1:
            part.__class__ = ImageBlock


class WideBatchNorm3d(nn.BatchNorm3d):
    """Batch norm that is faster than torch's in training, for few channels last.

    Notes
    -----
    With C channels last, torch's CPU kernel walks along C numbers at a time.
    Here k neighbouring voxels become k * C columns, whose statistics are
    computed side by side and then joined; nothing but rounding differs. k
    divides the number of voxels in the batch and is at most 128 / C.
    In evaluation, for k = 1 and for channels first it is torch's own.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        channels_last = x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last_3d)
        if not (self.training and channels_last and _neighbours(x) > 1):
            return super().forward(x)
        output, mean, variance = _WideBatchNorm.apply(x, self.weight, self.bias, self.eps)
        track(self, mean, variance, x.numel() // x.shape[1])
        return output  # type: ignore[no-any-return]


def track(norm: Any, mean: torch.Tensor, variance: torch.Tensor, size: int) -> None:
    """Move the running statistics of a batch norm towards those of a batch.

    Parameters
    ----------
    norm : BatchNorm3d of C channels
    mean, variance : (C,) tensors
        The variance divided by `size`, the number of voxels.
    """
    with torch.no_grad():
        norm.num_batches_tracked += 1
        weight = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean, weight)
        norm.running_var.lerp_(variance * (size / (size - 1)), weight)


class _WideBatchNorm(torch.autograd.Function):
    """Batch norm over (voxels / k, k * C) instead of (voxels, C) numbers."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> tuple[Any, ...]:
        rows, repeat = _widen(x)
        mean, variance = weight.new_zeros(2, rows.shape[1])
        torch.ops.aten.batch_norm_update_stats(rows, mean, variance, 1.0)  # gives the variance over size - 1
        variance *= (len(rows) - 1) / len(rows)
        means = mean.view(repeat, -1)
        mean, variance = means.mean(0), variance.view(repeat, -1).mean(0) + means.var(0, correction=0)
        output = torch.empty_like(x)
        _scale(rows, weight, bias, mean, variance, eps, _widen(output)[0])
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return output, mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple[Any, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        rows, repeat = _widen(x)
        change = torch.empty_like(x)
        change_rows = _widen(change)[0]
        gradient_rows = _widen(gradient.contiguous(memory_format=torch.channels_last_3d))[0]
        wide = [part.repeat(repeat) for part in (weight, mean, variance)]
        constant_part, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient_rows, rows, *wide, None, None, False, ctx.eps, [True, True, True]
        )
        of_weight, of_bias = of_weight.view(repeat, -1).sum(0), of_bias.view(repeat, -1).sum(0)
        inverse = torch.rsqrt(variance + ctx.eps)
        size = x.numel() // x.shape[1]
        # What flows through the statistics: for each channel a line in x.
        slope, height = -weight * inverse * of_weight / size, -weight * inverse * of_bias / size
        _scale(rows, slope, height, mean, variance, ctx.eps, change_rows)
        change_rows += constant_part
        return change, of_weight, of_bias, None


def _neighbours(x: torch.Tensor) -> int:
    """Return how many voxels of (B, C, D, H, W) go side by side."""
    channels = x.shape[1]
    return math.gcd(x.numel() // channels, max(1, COLUMNS // channels))


def _widen(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """View (B, C, D, H, W) channels last as (voxels / k, k * C); return that and k."""
    repeat = _neighbours(x)
    return x.permute(0, 2, 3, 4, 1).reshape(-1, repeat * x.shape[1]), repeat


def _scale(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor,
           eps: float, output: torch.Tensor) -> None:  # fmt: skip
    """Write (rows - mean) / sqrt(variance + eps) * weight + bias, of C channels each, to output."""
    repeat = rows.shape[1] // len(weight)
    wide = [part.repeat(repeat) for part in (weight, bias, mean, variance)]
    unused = weight.new_empty(0), weight.new_empty(0)
    torch.ops.aten.native_batch_norm.out(
        rows, *wide, False, 0.0, eps, out=output, save_mean=unused[0], save_invstd=unused[1]
    )


class ImageBlock(ScaleDenseBlock):
    """A first block, whose input is the image: one convolution in place of its first asymmetric layer.

    Notes
    -----
    The output of a convolution is linear in the 27 voxels around each voxel.
    With their mean m and covariance S over the batch, an output of kernel k
    has mean k.m and variance k.S.k. So every batch norm of the layer is known
    before anything is convolved, and the layer becomes one convolution, in
    about a quarter of the time and memory. Only rounding differs.
    """

    def convolve_1(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or x.requires_grad:
            return super().convolve_1(x)
        with torch.autocast(x.device.type, enabled=False):
            mean, covariance = patch_moments(x)

            def of_the_batch(kernel: torch.Tensor, bias: torch.Tensor, norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
                rows = kernel.flatten(1)
                batch_mean, batch_variance = rows @ mean + bias, ((rows @ covariance) * rows).sum(1)
                track(norm, batch_mean, batch_variance, x[:, 0].numel())
                return batch_mean, batch_variance

            kernel, bias = merge(self.convolution_1, self.norm_1, of_the_batch, x.dtype)
        return functional.conv3d(x, kernel, bias, padding=1)


def patch_moments(volumes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute mean and covariance of the 27 voxels around a voxel, beyond the edge zero.

    Parameters
    ----------
    volumes : (B, 1, D, H, W) float tensor

    Returns
    -------
    mean : (27,) float tensor
    covariance : (27, 27) float tensor
        Over all voxels of the batch, divided by their number.
    """
    depth, height, width = volumes.shape[2:]
    with torch.no_grad():
        padded = functional.pad(volumes[:, 0], (1,) * 6)
        center = padded.mean()  # subtracted before squaring, which keeps the digits of the covariance
        total: Any = 0
        products: Any = 0
        for volume in padded - center:
            patches = torch.stack(
                [volume[i : i + depth, j : j + height, k : k + width] for i, j, k in product(range(3), repeat=3)]
            ).flatten(1)
            total = total + patches.sum(1)
            products = products + patches @ patches.T
        size = volumes[:, 0].numel()
        mean = total / size
        return mean + center, products / size - mean.outer(mean)
