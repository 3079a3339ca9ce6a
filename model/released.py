"""Read the state dicts that the authors' code wrote."""

import re
from collections.abc import Mapping

import torch

from model.scaledense import NetworkConfig

_RENAMINGS = (
    (r"^pre\.", r"trunk.stem."),
    (r"^block\.(\d+)\.block\.", r"trunk.blocks.\1."),
    (r"\.conv1\.", r".branches.0."),
    (r"\.conv2\.", r".branches.1."),
    (r"\.conv3\.", r".branches.2."),
    (r"\.conv4\.", r".branches.3."),
    (r"\.FC1\.", r".gate.0."),
    (r"\.FC2\.", r".gate.2."),
    (r"^(deep_fc|fc)\.", r"image_layer."),
    (r"^dis_fc\.", r"discretized_age_layer."),
    (r"^male_fc\.", r"sex_layer."),
)


def is_released(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Tell whether the names are those of the authors' code."""
    return any(key.removeprefix("module.").startswith("pre.0.") for key in state_dict)


def translate_name(name: str, use_sex: bool = True) -> str | None:
    """Return our name of a released parameter, or None if it is of the other head."""
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
    if "trunk.stem.0.weight" not in converted or not blocks:
        raise ValueError("is not the state of a released ScaleDense network")
    config = NetworkConfig(
        stage=2 if any(name.startswith("discretized_age_layer.") for name in converted) else 1,
        use_sex=use_sex,
        blocks=len(blocks),
        filters=converted["trunk.stem.0.weight"].shape[0],
    )
    return config, converted
