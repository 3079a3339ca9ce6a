"""The layers from which both ScaleDense networks are made."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

Statistics = Callable[[torch.Tensor, torch.Tensor, "BatchNorm3d"], tuple[torch.Tensor, torch.Tensor]]


COLUMNS = 128  # numbers that lie side by side before torch's batch norm is fast on a CPU


class BatchNorm3d(nn.BatchNorm3d):
    """Batch norm that is faster than torch's in training on a CPU, for few channels last.

    Notes
    -----
    With C channels last, torch's CPU kernel walks along C numbers at a time.
    Here k neighbouring voxels become k * C columns, whose statistics are
    computed side by side and then joined; nothing but rounding differs. k
    divides the number of voxels in the batch and is at most 128 / C.
    Elsewhere, and for k = 1, it is torch's own batch norm.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        last = x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last_3d)
        on_cpu = x.device.type == "cpu" and not torch.compiler.is_compiling()
        if not (self.training and on_cpu and last and _neighbours(x) > 1):
            return super().forward(x)
        output, mean, variance = _WideBatchNorm.apply(x, self.weight, self.bias, self.eps)
        self.track(mean, variance, x.numel() // x.shape[1])
        return output

    def track(self, mean: torch.Tensor, variance: torch.Tensor, size: int) -> None:
        """Move the running statistics towards those of a batch.

        Parameters
        ----------
        mean, variance : (C,) tensors
            The variance divided by `size`, the number of voxels.
        """
        own: Any = self  # torch declares its statistics as optional
        with torch.no_grad():
            own.num_batches_tracked += 1
            weight = 1 / own.num_batches_tracked if own.momentum is None else own.momentum
            own.running_mean.lerp_(mean, weight)
            own.running_var.lerp_(variance * (size / (size - 1)), weight)


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


class AsymmetricConv3d(nn.Module):
    """Sum a 3x3x3 convolution and one convolution along each axis.

    Each branch keeps the size of the volume and has a batch norm of its own.

    Parameters
    ----------
    in_channels, out_channels : int

    References
    ----------
    Ding et al., "ACNet: Strengthening the kernel skeletons for powerful CNN
    via asymmetric convolution blocks", ICCV 2019; Cheng et al. 2021, section
    III-B.
    """

    KERNEL_SIZES = ((3, 3, 3), (1, 1, 3), (3, 1, 1), (1, 3, 1))

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(in_channels, out_channels, size, padding="same", bias=False),
                BatchNorm3d(out_channels),
            )
            for size in self.KERNEL_SIZES
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *others = self.branches
        total = first(x)
        for branch in others:
            total += branch(x)
        return total


class SqueezeExcitation(nn.Module):
    """Compute a weight for each channel by a gate that sees the means of all channels.

    Parameters
    ----------
    channels : int
    reduction : int
        The gate's hidden layer has ``channels // reduction`` units, at least
        one.

    References
    ----------
    Hu, Shen and Sun, "Squeeze-and-excitation networks", CVPR 2018.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.gate = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def weights(self, x: torch.Tensor) -> torch.Tensor:
        """Return the positive weights of the channels of x, (B, C, 1, 1, 1)."""
        # A sum's gradient needs no memory of its own and leaves the channels last, if it has the type of x;
        # a mean's does neither, and autocast would make the sum float32.
        with torch.autocast(x.device.type, enabled=False):
            mean = x.sum((2, 3, 4)) / x[0, 0].numel()
        return self.gate(mean)[:, :, None, None, None]


class ScaleDenseBlock(nn.Sequential):
    """Two asymmetric convolutions, squeeze-excitation and 2x2x2 max pooling.

    Maps (B, in_channels, D, H, W) to (B, out_channels, D//2, H//2, W//2).

    Notes
    -----
    Pooling comes before the gate: the gate is positive, so that the largest
    of eight products is the product with the largest.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            AsymmetricConv3d(in_channels, out_channels),
            BatchNorm3d(out_channels),
            nn.ELU(inplace=True),
            AsymmetricConv3d(out_channels, out_channels),
            BatchNorm3d(out_channels),
            nn.ELU(inplace=True),
            SqueezeExcitation(out_channels),
            nn.MaxPool3d(2),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layers: list[Any] = list(self)
        convolve, norm, elu, convolve_again, norm_again, elu_again, excite, pool = layers
        image_alone = x.shape[1] == 1 and not x.requires_grad
        if self.training and image_alone and not torch.compiler.is_compiling():
            x = elu(convolve_image(x, convolve, norm))
        else:
            x = elu(norm(convolve(x)))
        x = elu_again(norm_again(convolve_again(x)))
        return pool(x) * excite.weights(x)

    def folded(self) -> "FoldedBlock":
        """Return the same block for evaluation, with one convolution for each asymmetric layer."""
        return FoldedBlock(self)


class FoldedBlock(nn.Module):
    """A block whose asymmetric layers and batch norms are one 3x3x3 convolution each.

    In evaluation mode a batch norm multiplies by constants and adds others,
    and so does a sum of convolutions: computed once in float64, the result
    differs by rounding alone.

    Parameters
    ----------
    block : ScaleDenseBlock
    """

    def __init__(self, block: ScaleDenseBlock) -> None:
        super().__init__()
        layers: list[Any] = list(block)
        convolve, norm, _, convolve_again, norm_again, _, self.excite, self.pool = layers
        self.excite = copy.deepcopy(self.excite)
        self.convolutions = nn.ModuleList(_fold(*pair) for pair in ((convolve, norm), (convolve_again, norm_again)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for convolution in self.convolutions:
            x = functional.elu(convolution(x), inplace=True)
        return self.pool(x) * self.excite.weights(x)


def _fold(layer: Any, norm: Any) -> nn.Conv3d:
    """Make one convolution of an asymmetric layer and the batch norm behind it, as they are in evaluation mode."""

    def running(_: torch.Tensor, __: torch.Tensor, norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return norm.running_mean.double(), norm.running_var.double()

    weight = layer.branches[0][0].weight
    out_channels, in_channels = weight.shape[:2]
    kind = {"device": weight.device, "dtype": weight.dtype}
    folded: Any = nn.utils.skip_init(nn.Conv3d, in_channels, out_channels, 3, padding=1, **kind)
    with torch.no_grad():
        kernel, bias = _merge(layer, norm, running, torch.float64)
        folded.weight.copy_(kernel)
        folded.bias.copy_(bias)
    return folded


def convolve_image(volumes: torch.Tensor, layer: AsymmetricConv3d, norm: BatchNorm3d) -> torch.Tensor:
    """Apply an asymmetric layer and a batch norm to volumes of one channel in training mode, by one convolution.

    Parameters
    ----------
    volumes : (B, 1, D, H, W) float tensor, without a gradient
    layer : AsymmetricConv3d of one channel to C
    norm : BatchNorm3d of C channels

    Returns
    -------
    (B, C, D, H, W) float tensor

    Notes
    -----
    What a convolution gives is linear in the 27 voxels around each voxel.
    With their mean m and covariance S over the batch, an output of kernel k
    has mean k.m and variance k.S.k, so that every batch norm is known before
    anything is convolved, and the whole layer is one convolution. It
    computes what the layers compute one by one, but for rounding, in about
    a quarter of the time and the memory of what is by far the widest layer.
    """
    with torch.autocast(volumes.device.type, enabled=False):
        mean, covariance = patch_moments(volumes)
        size = volumes[:, 0].numel()

        def of_the_batch(
            kernel: torch.Tensor, bias: torch.Tensor, norm: BatchNorm3d
        ) -> tuple[torch.Tensor, torch.Tensor]:
            rows = kernel.flatten(1)
            batch_mean, batch_variance = rows @ mean + bias, ((rows @ covariance) * rows).sum(1)
            norm.track(batch_mean, batch_variance, size)
            return batch_mean, batch_variance

        kernel, bias = _merge(layer, norm, of_the_batch, volumes.dtype)
    return functional.conv3d(volumes, kernel, bias, padding=1)


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


def _merge(
    layer: AsymmetricConv3d, norm: BatchNorm3d, statistics: Statistics, dtype: torch.dtype
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
    """

    def absorb(kernel: torch.Tensor, bias: torch.Tensor, norm: BatchNorm3d) -> tuple[torch.Tensor, torch.Tensor]:
        mean, variance = statistics(kernel, bias, norm)
        scale = norm.weight / torch.sqrt(variance + norm.eps)
        return kernel * scale[:, None, None, None, None], norm.bias + (bias - mean) * scale

    branches: Any = layer.branches
    kernel: Any = 0
    bias: Any = 0
    for convolution, branch_norm in branches:
        missing = [(3 - size) // 2 for size in reversed(convolution.kernel_size) for _ in range(2)]
        part = functional.pad(convolution.weight.to(dtype), missing)
        part, part_bias = absorb(part, torch.zeros_like(part[:, 0, 0, 0, 0]), branch_norm)
        kernel, bias = kernel + part, bias + part_bias
    return absorb(kernel, bias, norm)


def recompute(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Apply a block, and keep its input alone for the backward pass, which applies it again."""

    @contextmanager
    def statistics_stay() -> Iterator[None]:
        norms: list[Any] = [part for part in block.modules() if isinstance(part, nn.BatchNorm3d)]
        kept = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
        try:
            yield
        finally:
            for norm, momentum, count in kept:
                norm.momentum = momentum
                norm.num_batches_tracked.copy_(count)

    return checkpoint(block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), statistics_stay()))
