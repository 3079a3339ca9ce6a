"""Inputs and modules that the tests of layers share."""

import torch
from torch import nn


def channels_last(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Seeded numbers around -2, (B, C, D, H, W), the channels last in memory."""
    batch, channels, *size = shape
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(batch, *size, channels, generator=generator, dtype=dtype) - 2).permute(0, 4, 1, 2, 3)


def randomized(module: nn.Module) -> nn.Module:
    """Give batch norms weights and statistics that are not those of the start."""
    torch.manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm3d):
            nn.init.normal_(part.weight, 1, 0.3)
            nn.init.normal_(part.bias)
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
    return module
