"""Read the state dicts that the authors' code wrote."""

import re
from collections.abc import Mapping

import torch

from model.scaledense import NetworkConfig

_SE_LAYERS = {"FC1": "0", "FC2": "2"}
_RENAMINGS = (
    (r"^module\.", ""),
    (r"^pre\.", "trunk.stem."),
    (r"^block\.(\d+)\.block\.", r"trunk.blocks.\1."),
    (r"\.conv([1-4])\.", lambda match: f".branches.{int(match[1]) - 1}."),
    (r"\.(FC[12])\.", lambda match: f".gate.{_SE_LAYERS[match[1]]}."),
    (r"^(deep_fc|fc)\.", "image_layer."),
    (r"^dis_fc\.", "discretized_age_layer."),
    (r"^male_fc\.", "sex_layer."),
)


def is_released(state_dict: Mapping[str, torch.Tensor]) -> bool:
    """Tell whether the names are those of the authors' code."""
    return any(key.removeprefix("module.").startswith("pre.0.") for key in state_dict)


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
    """
    unused = f"end_fc_with{'out' if use_sex else ''}_gender."
    wanted = f"end_fc_with{'' if use_sex else 'out'}_gender."
    converted = {}
    for key, tensor in state_dict.items():
        name = key.removeprefix("module.").replace(wanted, "output_layer.")
        if name.startswith(unused) or (name.startswith("male_fc.") and not use_sex):
            continue
        for pattern, replacement in _RENAMINGS:
            name = re.sub(pattern, replacement, name)  # type: ignore[arg-type]
        converted[name] = tensor
    config = NetworkConfig(
        stage=2 if any(name.startswith("discretized_age_layer.") for name in converted) else 1,
        use_sex=use_sex,
        blocks=1 + max(int(m[1]) for m in map(re.compile(r"trunk\.blocks\.(\d+)\.").match, converted) if m),
        filters=converted["trunk.stem.0.weight"].shape[0],
    )
    return config, converted
