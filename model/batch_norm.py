"""Batch norm over rows of voxels, and over the scans of several processes.

It computes what torch's batch norm computes. Nothing here is needed to
understand the networks.
"""

import math
from typing import Any

import torch
from torch import distributed, nn

COLUMNS = 128  # numbers that lie side by side before torch's batch norm is fast on a CPU
Size = int | torch.Tensor


def synchronize(network: nn.Module) -> None:
    """Make the batch norms of a network, in training, go over the scans of all processes.

    Parameters
    ----------
    network : Module, changed in place
    """
    norms: list[Any] = [part for part in network.modules() if isinstance(part, nn.BatchNorm3d)]
    for norm in norms:
        norm.__class__ = WideBatchNorm3d
        norm.synchronized = True


def is_synchronized(network: nn.Module) -> bool:
    """Tell whether a network's batch norms go over the scans of all processes."""
    return any(getattr(part, "synchronized", False) for part in network.modules())


class WideBatchNorm3d(nn.BatchNorm3d):
    """Batch norm that is faster than torch's in training, for few channels last, and may go over several processes.

    Notes
    -----
    With C channels last, torch's CPU kernel walks along C numbers at a time.
    Here k neighbouring voxels become k * C columns, whose statistics are
    computed side by side and then joined; nothing but rounding differs. k
    divides the number of voxels in the batch and is at most 128 / C.
    In evaluation it is torch's own. So it is for k = 1 and for channels
    first, unless it is synchronized.

    A synchronized one normalizes by the statistics of all processes' scans;
    a process may have none. torch's ``SyncBatchNorm`` works on a GPU alone.
    """

    synchronized = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        channels_last = x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last_3d)
        if not (self.training and (self.synchronized or (channels_last and _neighbours(x) > 1))):
            return super().forward(x)
        x = x.contiguous(memory_format=torch.channels_last_3d)
        with torch.no_grad():
            mean, variance = _moments(x.detach())
            size: Size = x.numel() // x.shape[1]
            if self.synchronized:
                mean, variance, size = join_moments(mean, variance, size)
            track(self, mean, variance, size)
        return _WideBatchNorm.apply(x, self.weight, self.bias, mean, variance, size, self.eps)  # type: ignore[no-any-return]


def track(norm: Any, mean: torch.Tensor, variance: torch.Tensor, size: Size) -> None:
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


def join_moments(
    mean: torch.Tensor, spread: torch.Tensor, size: Size
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the moments of all processes' numbers from those of each.

    Parameters
    ----------
    mean : (C,) float tensor
    spread : (C,) or (C, C) float tensor
        Variance or covariance, divided by `size`.
    size : int
        How many numbers a process has; with none, its moments count for nothing.

    Returns
    -------
    mean, spread : as given
    size : () float64 tensor
        Of all processes.
    """

    def squared(mean: torch.Tensor) -> torch.Tensor:
        return mean.square() if spread.ndim == 1 else mean.outer(mean)

    own = mean.double()  # in which mean squares keep the digits of the variance
    sums = torch.cat([own.new_ones(1), own, (spread + squared(own)).flatten()]) * size
    distributed.all_reduce(sums)
    total, joint = sums[0], sums[1:] / sums[0]
    joint_mean, joint_square = joint[: len(mean)], joint[len(mean) :].view_as(spread)
    return joint_mean.to(mean), (joint_square - squared(joint_mean)).to(spread), total


class _WideBatchNorm(torch.autograd.Function):
    """Batch norm over (voxels / k, k * C) instead of (voxels, C) numbers."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor,
        size: Size, eps: float,
    ) -> torch.Tensor:  # fmt: skip
        output = torch.empty_like(x)
        _scale(_widen(x)[0], weight, bias, mean, variance, eps, _widen(output)[0])
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.size, ctx.eps = size, eps
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, weight, mean, variance = ctx.saved_tensors
        rows, repeat = _widen(x)
        change = torch.empty_like(x)
        change_rows = _widen(change)[0]
        gradient_rows = _widen(gradient.contiguous(memory_format=torch.channels_last_3d))[0]
        constant_part, own = gradient_rows, weight.new_zeros(2, len(weight))
        if len(rows):  # torch's kernel crashes without
            wide = [part.repeat(repeat) for part in (weight, mean, variance)]
            unused = weight.new_empty(0)  # CUDA does not take None for it
            constant_part, *sums = torch.ops.aten.native_batch_norm_backward(
                gradient_rows, rows, *wide, unused, unused, False, ctx.eps, [True, True, True]
            )
            own = torch.stack(sums).view(2, repeat, -1).sum(1)
        joint = own
        if isinstance(ctx.size, torch.Tensor):  # the statistics are of all processes, and so is what flows through them
            joint = own.clone()
            distributed.all_reduce(joint)
        # What flows through the statistics: for each channel a line in x.
        slope, height = -weight * torch.rsqrt(variance + ctx.eps) * (joint / ctx.size).to(weight)
        _scale(rows, slope, height, mean, variance, ctx.eps, change_rows)
        change_rows += constant_part
        return change, *own, None, None, None, None


def _neighbours(x: torch.Tensor) -> int:
    """Return how many voxels of (B, C, D, H, W) go side by side."""
    channels = x.shape[1]
    return math.gcd(x.numel() // channels, max(1, COLUMNS // channels))


def _widen(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """View (B, C, D, H, W) channels last as (voxels / k, k * C); return that and k."""
    repeat = _neighbours(x)
    return x.permute(0, 2, 3, 4, 1).reshape(-1, repeat * x.shape[1]), repeat


def _moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance of each channel; 0 for no voxels."""
    rows, repeat = _widen(x)
    mean, variance = rows.new_zeros(2, rows.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
    if len(rows):
        mean, variance = torch.ops.aten.batch_norm_update_stats(rows, mean, variance, 1.0)
    means = mean.view(repeat, -1)
    return means.mean(0), variance.view(repeat, -1).mean(0) + means.var(0, correction=0)


def _scale(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor,
           eps: float, output: torch.Tensor) -> None:  # fmt: skip
    """Write (rows - mean) / sqrt(variance + eps) * weight + bias, of C channels each, to output."""
    repeat = rows.shape[1] // len(weight)
    wide = [part.repeat(repeat) for part in (weight, bias, mean, variance)]
    unused = weight.new_empty(0), weight.new_empty(0)
    torch.ops.aten.native_batch_norm.out(
        rows, *wide, False, 0.0, eps, out=output, save_mean=unused[0], save_invstd=unused[1]
    )
