"""Inputs, modules and names of weights that several tests share."""

import re
from typing import Any

import torch
from torch import nn

Weights = dict[str, torch.Tensor]
# From today's names to those of our earlier versions.
EARLIER = (
    (r"^trunk\.stem\.convolution\.", r"trunk.stem.0."),
    (r"\.convolution_1\.", r".0."),
    (r"\.norm_1\.", r".1."),
    (r"\.convolution_2\.", r".3."),
    (r"\.norm_2\.", r".4."),
    (r"\.excitation\.reduce\.", r".6.gate.0."),
    (r"\.excitation\.expand\.", r".6.gate.2."),
    (r"(\.branches\.\d)\.convolution\.", r"\1.0."),
    (r"(\.branches\.\d)\.norm\.", r"\1.1."),
)
# From those to the authors'.
RELEASED = (
    (r"^trunk\.stem\.", r"module.pre."),
    (r"^trunk\.blocks\.(\d)\.", r"module.block.\1.block."),
    (r"\.branches\.(\d)\.", lambda match: f".conv{int(match[1]) + 1}."),
    (r"\.gate\.0\.", r".FC1."),
    (r"\.gate\.2\.", r".FC2."),
    (r"^discretized_age_layer\.", r"module.dis_fc."),
    (r"^sex_layer\.", r"module.male_fc."),
    (r"^output_layer\.", r"module.end_fc_with_gender."),
)


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


def _renamed(weights: Weights, renamings: Any) -> Weights:
    for pattern, replacement in renamings:
        weights = {re.sub(pattern, replacement, name): value for name, value in weights.items()}
    return weights


def earlier_names(weights: Weights) -> Weights:
    """Name the weights of a network as our earlier versions did."""
    return _renamed(weights, EARLIER)


def released_names(weights: Weights) -> Weights:
    """Name the weights of a network with the sex input as the authors do, with a head without sex beside it."""
    image_layer = (
        "module.fc." if any(name.startswith("discretized_age_layer.") for name in weights) else "module.deep_fc."
    )
    released = _renamed(earlier_names(weights), (*RELEASED, (r"^image_layer\.", image_layer)))
    first, last = weights["output_layer.0.weight"], weights["output_layer.1.weight"]
    sex_units = weights["sex_layer.1.bias"].shape[0]
    other_head = {"0.weight": first[:, :-sex_units], "0.bias": weights["output_layer.0.bias"], "1.weight": last,
                  "1.bias": weights["output_layer.1.bias"]}  # fmt: skip
    return released | {f"module.end_fc_without_gender.{name}": value.clone() for name, value in other_head.items()}
