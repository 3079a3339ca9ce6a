"""Layers that compute the same as those of `model.layers`, faster, in training on a CPU.

Nothing here is needed to understand the networks.
"""

from itertools import product
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from model.batch_norm import WideBatchNorm3d, is_synchronized, join_moments, track
from model.folding import merge
from model.layers import ScaleDenseBlock


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
            size: int | torch.Tensor = x[:, 0].numel()
            if is_synchronized(self):
                mean, covariance, size = join_moments(mean, covariance, size)

            def of_the_batch(kernel: torch.Tensor, bias: torch.Tensor, norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
                rows = kernel.flatten(1)
                batch_mean, batch_variance = rows @ mean + bias, ((rows @ covariance) * rows).sum(1)
                track(norm, batch_mean, batch_variance, size)
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
        Over all voxels of the batch, divided by their number; 0 for no voxels.
    """
    depth, height, width = volumes.shape[2:]
    with torch.no_grad():
        padded = functional.pad(volumes[:, 0], (1,) * 6)
        # The center is subtracted before squaring, which keeps the digits of the covariance.
        center = padded.sum() / max(1, padded.numel())
        total, products = volumes.new_zeros(27), volumes.new_zeros(27, 27)
        for volume in padded - center:
            patches = torch.stack(
                [volume[i : i + depth, j : j + height, k : k + width] for i, j, k in product(range(3), repeat=3)]
            ).flatten(1)
            total = total + patches.sum(1)
            products = products + patches @ patches.T
        size = max(1, volumes[:, 0].numel())
        mean = total / size
        return mean + center, products / size - mean.outer(mean)
