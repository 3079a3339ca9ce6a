"""Layers that compute the same as those of `model.layers` and `model.scaledense`, faster, in training on a CUDA GPU.

Nothing here is needed to understand the networks.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from model.scaledense import ScaleDenseTrunk


def use_gpu_layers(network: Any, fuse: bool) -> None:
    """Give a network on a GPU its faster forward passes; weights and names stay.

    Parameters
    ----------
    network : ScaleDense, changed in place
    fuse : bool
        Whether `torch.compile` fuses what lies between the convolutions.
    """
    trunk = network.trunk
    if network.config.has_stem:
        trunk.stem.convolution.__class__ = ColumnConv3d
    if fuse and not trunk.activation_checkpointing:
        trunk.__class__ = FusedTrunk


class ColumnConv3d(nn.Conv3d):
    """The stem's dilated convolution of one channel, as one of seven channels without the last axis.

    Notes
    -----
    With a single input channel, cuDNN uses no tensor cores. So the voxels
    that the kernel meets along the last axis become channels first. In
    bfloat16 that takes a quarter of the time, forward and backward
    together; in float32, which has no tensor cores without TF32, it is
    slower, and the convolution is torch's own.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        return convolve_columns(x, self)


def convolve_columns(x: torch.Tensor, layer: nn.Conv3d) -> torch.Tensor:
    """Convolve (B, 1, D, H, W) as `layer` does, with its taps along W as channels.

    Parameters
    ----------
    x : (B, 1, D, H, W) tensor
    layer : Conv3d
        Of one input channel, stride 1 and the same padding everywhere.

    Returns
    -------
    (B, C, D', H', W') tensor
    """
    taps, step, padding = layer.kernel_size[2], layer.dilation[2], int(layer.padding[2])
    row = functional.pad(x[:, 0], (padding, padding))
    width = row.shape[-1] - (taps - 1) * step
    columns = torch.stack([row[..., k * step : k * step + width] for k in range(taps)], -1).permute(0, 4, 1, 2, 3)
    weight = layer.weight[:, 0].permute(0, 3, 1, 2)[..., None]
    return functional.conv3d(columns, weight, layer.bias, 1, (padding, padding, 0), (step, step, 1))


class FusedTrunk(ScaleDenseTrunk):
    """A trunk that `torch.compile` runs for full batches in training.

    Notes
    -----
    The first batch sets the shape. Others, such as an epoch's last one, and
    evaluation take the plain way: each shape would cost the compiler's minute
    again.
    """

    _shape: torch.Size | None = None

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(volumes)
        self._shape = self._shape or volumes.shape
        return _fused()(self, volumes) if volumes.shape == self._shape else super().forward(volumes)


@cache
def _fused() -> Callable[[ScaleDenseTrunk, torch.Tensor], torch.Tensor]:
    """Return the compiled forward pass, made at its first use: torch's compiler is slow to import."""
    return torch.compile(ScaleDenseTrunk.forward, dynamic=False)
