"""The layers of both ScaleDense networks."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


class AsymmetricConv3d(nn.Module):
    """Sum a 3x3x3 convolution and one convolution along each axis, each with a batch norm.

    Parameters
    ----------
    in_channels, out_channels : int
    asymmetric : bool
        False leaves the 3x3x3 convolution alone.

    References
    ----------
    Ding et al., "ACNet: Strengthening the kernel skeletons for powerful CNN
    via asymmetric convolution blocks", ICCV 2019; Cheng et al. 2021, section
    III-B.
    """

    KERNEL_SIZES = ((3, 3, 3), (1, 1, 3), (3, 1, 1), (1, 3, 1))

    def __init__(self, in_channels: int, out_channels: int, asymmetric: bool = True) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                OrderedDict(
                    convolution=nn.Conv3d(in_channels, out_channels, size, padding="same", bias=False),
                    norm=nn.BatchNorm3d(out_channels),
                )
            )
            for size in self.KERNEL_SIZES[: None if asymmetric else 1]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *others = self.branches
        total = first(x)
        for branch in others:
            total += branch(x)
        return total


class SqueezeExcitation(nn.Module):
    """Compute a weight between 0 and 1 for each channel from the means of all channels.

    Parameters
    ----------
    channels : int
    reduction : int
        The hidden layer has ``channels // reduction`` units, at least one.

    References
    ----------
    Hu, Shen and Sun, "Squeeze-and-excitation networks", CVPR 2018.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.reduce = nn.Linear(channels, hidden)
        self.expand = nn.Linear(hidden, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the weights of the channels of x, (B, C, 1, 1, 1)."""
        # Unlike a mean, a sum saves nothing for its backward pass, and its gradient stays channels last.
        # Autocast would turn the sum into float32.
        with torch.autocast(x.device.type, enabled=False):
            mean = x.sum((2, 3, 4)) / x.shape[2:].numel()
        weights = torch.sigmoid(self.expand(functional.relu(self.reduce(mean))))
        return weights[:, :, None, None, None]


class UnitWeight(nn.Module):
    """Weigh all channels alike, in place of `SqueezeExcitation`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_ones(())


class ScaleDenseBlock(nn.Module):
    """Two asymmetric convolutions, squeeze-excitation and 2x2x2 max pooling.

    Maps (B, in_channels, D, H, W) to (B, out_channels, D//2, H//2, W//2).

    Parameters
    ----------
    in_channels, out_channels : int
    asymmetric, squeeze_excitation : bool
        False leaves out that part.

    Notes
    -----
    The released code pools after the weights are applied. They are
    positive, so pooling first gives the same numbers with an eighth of the
    multiplications.
    """

    def __init__(
        self, in_channels: int, out_channels: int, asymmetric: bool = True, squeeze_excitation: bool = True
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.convolution_1 = AsymmetricConv3d(in_channels, out_channels, asymmetric)
        self.norm_1 = nn.BatchNorm3d(out_channels)
        self.convolution_2 = AsymmetricConv3d(out_channels, out_channels, asymmetric)
        self.norm_2 = nn.BatchNorm3d(out_channels)
        self.excitation = SqueezeExcitation(out_channels) if squeeze_excitation else UnitWeight()

    def convolve_1(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the first convolution and its batch norm."""
        return self.norm_1(self.convolution_1(x))  # type: ignore[no-any-return]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.elu(self.convolve_1(x), inplace=True)
        x = functional.elu(self.norm_2(self.convolution_2(x)), inplace=True)
        return functional.max_pool3d(x, 2) * self.excitation(x)


def recompute(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Apply a block, keeping only its input; the backward pass computes the rest again."""

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

    return checkpoint(block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), statistics_stay()))  # type: ignore[no-any-return]
