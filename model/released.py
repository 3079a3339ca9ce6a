"""Read state dicts with other parameter names: the authors', and those of our earlier versions."""

import re
from collections.abc import Mapping

import torch

from model.scaledense import NetworkConfig

# The first four turn the authors' names into those of our earlier versions, the others these into today's.
_RENAMINGS = (
    (r"^pre\.", r"trunk.stem."),
    (r"^block\.(\d+)\.block\.", r"trunk.blocks.\1."),
    (r"\.conv([1-4])\.", lambda match: f".branches.{int(match[1]) - 1}."),
    (r"\.FC([12])\.", lambda match: f".gate.{2 * int(match[1]) - 2}."),
    (r"^trunk\.stem\.0\.", r"trunk.stem.convolution."),
    (r"^(trunk\.blocks\.\d+)\.0\.", r"\1.convolution_1."),
    (r"^(trunk\.blocks\.\d+)\.1\.", r"\1.norm_1."),
    (r"^(trunk\.blocks\.\d+)\.3\.", r"\1.convolution_2."),
    (r"^(trunk\.blocks\.\d+)\.4\.", r"\1.norm_2."),
    (r"^(trunk\.blocks\.\d+)\.6\.gate\.0\.", r"\1.excitation.reduce."),
    (r"^(trunk\.blocks\.\d+)\.6\.gate\.2\.", r"\1.excitation.expand."),
    (r"\.branches\.(\d)\.0\.", r".branches.\1.convolution."),
    (r"\.branches\.(\d)\.1\.", r".branches.\1.norm."),
    (r"^(deep_fc|fc)\.", r"image_layer."),
    (r"^dis_fc\.", r"discretized_age_layer."),
    (r"^male_fc\.", r"sex_layer."),
)


def is_released(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Tell whether the names are those of the authors' code."""
    return any(key.removeprefix("module.").startswith("pre.0.") for key in state_dict)


def translate_name(name: str, use_sex: bool = True) -> str | None:
    """Return today's name of a parameter, or None if it is of the authors' other head.

    >>> translate_name("module.block.0.block.3.conv2.1.weight")
    'trunk.blocks.0.convolution_2.branches.1.norm.weight'
    >>> translate_name("trunk.blocks.0.6.gate.2.bias")
    'trunk.blocks.0.excitation.expand.bias'
    """
    name = name.removeprefix("module.")
    used, unused = "end_fc_with_gender.", "end_fc_without_gender."
    if not use_sex:
        used, unused = unused, used
    if name.startswith(unused) or (name.startswith("male_fc.") and not use_sex):
        return None
    name = name.replace(used, "output_layer.")
    for pattern, replacement in _RENAMINGS:
        name = re.sub(pattern, replacement, name)
    return name


def convert_released(
    state_dict: Mapping[str, torch.Tensor], use_sex: bool = True
) -> tuple[NetworkConfig, dict[str, torch.Tensor]]:
    """Translate a released state dict into one of `ScaleDense`.

    Parameters
    ----------
    state_dict : mapping of str to tensor
        As released: with or without the prefix ``module.``, with the heads
        with and without sex both.
    use_sex : bool
        Which of the two heads to keep.

    Returns
    -------
    config : NetworkConfig
    state_dict : dict of str to tensor

    Raises
    ------
    ValueError
        If it is no state dict of the released network.
    """
    translated = {translate_name(key, use_sex): tensor for key, tensor in state_dict.items()}
    converted = {name: tensor for name, tensor in translated.items() if name is not None}
    blocks = {match[1] for name in converted if (match := re.match(r"trunk\.blocks\.(\d+)\.", name))}
    stem = converted.get("trunk.stem.convolution.weight")
    if stem is None or not blocks:
        raise ValueError("is not the state of a released ScaleDense network")
    config = NetworkConfig(
        stage=2 if any(name.startswith("discretized_age_layer.") for name in converted) else 1,
        use_sex=use_sex,
        blocks=len(blocks),
        filters=stem.shape[0],
    )
    return config, converted
