"""The layers from which both ScaleDense networks are made."""

import torch
from torch import nn


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
                nn.BatchNorm3d(out_channels),
            )
            for size in self.KERNEL_SIZES
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *others = self.branches
        total = first(x)
        for branch in others:
            total = total + branch(x)
        return total


class SqueezeExcitation(nn.Module):
    """Weight each channel by a gate computed from the mean of all channels.

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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(x.mean((2, 3, 4)))[:, :, None, None, None]


class ScaleDenseBlock(nn.Sequential):
    """Two asymmetric convolutions, squeeze-excitation and 2x2x2 max pooling.

    Maps (B, in_channels, D, H, W) to (B, out_channels, D//2, H//2, W//2).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            AsymmetricConv3d(in_channels, out_channels),
            nn.BatchNorm3d(out_channels),
            nn.ELU(),
            AsymmetricConv3d(out_channels, out_channels),
            nn.BatchNorm3d(out_channels),
            nn.ELU(),
            SqueezeExcitation(out_channels),
            nn.MaxPool3d(2),
        )
