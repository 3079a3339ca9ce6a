"""Names of parameters: the authors', those of our earlier versions, and today's."""

import json

import pytest
import torch
from torch import nn

from model.building import load_network, make_network
from model.released import convert_released, is_released, translate_name
from model.scaledense import NetworkConfig, ScaleDense
from tests.conftest import RELEASED_KEYS
from tests.model.helpers import earlier_names, released_names

SHAPE = (20, 18, 21)


def trained(stage: int, model: str = "scaledense") -> ScaleDense:
    """A network in which nothing is as it was at the start."""
    network = make_network(NetworkConfig(stage, model, True, SHAPE, blocks=2, filters=2), 0)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm3d):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    return network.eval()


def estimate(network: ScaleDense) -> torch.Tensor:
    volumes = torch.randn(2, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return network(volumes, torch.tensor([0, 1]), torch.tensor([40.0, 60.0]))


@pytest.mark.parametrize("model", ["scaledense", "scaledense_paper"])
@pytest.mark.parametrize("stage", [1, 2])
def test_checkpoints_of_our_earlier_versions_load(stage, model) -> None:
    network = trained(stage, model)
    weights = earlier_names(network.state_dict())
    assert "trunk.blocks.1.0.branches.3.1.running_var" in weights
    assert "trunk.blocks.0.6.gate.2.bias" in weights
    assert ("trunk.stem.0.weight" in weights) == (model == "scaledense")
    assert not set(weights) & {name for name in network.state_dict() if name.startswith("trunk.")}
    loaded = load_network({"network": network.config.to_dict(), "state_dict": weights}, stage)
    assert torch.equal(estimate(loaded), estimate(network))


@pytest.mark.parametrize("stage", [1, 2])
def test_released_names_give_the_same_output(stage) -> None:
    network = trained(stage)
    weights = released_names(network.state_dict())
    assert is_released(weights)
    assert not is_released(network.state_dict())
    config, converted = convert_released(weights)
    assert (config.stage, config.blocks, config.filters) == (stage, 2, 2)
    assert converted.keys() == network.state_dict().keys()
    loaded = ScaleDense(network.config)
    loaded.load_state_dict(converted)
    assert torch.equal(estimate(loaded.eval()), estimate(network))


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("use_sex", [True, False])
def test_every_released_name_loads(reference_folder, stage, use_sex, monkeypatch) -> None:
    monkeypatch.setattr("model.building.usable_weights", dict)  # which refuses tensors without numbers
    shapes = json.loads((reference_folder / RELEASED_KEYS[stage]).read_text())
    weights = {f"module.{key}": torch.empty(shape, device="meta") for key, shape in shapes.items()}
    network = load_network({"state_dict": weights}, stage, use_sex)
    unused = [key for key in shapes if key.startswith("end_fc_without" if use_sex else ("end_fc_with_", "male_fc"))]
    assert len(network.state_dict()) == len(shapes) - len(unused)


def test_todays_names_stay() -> None:
    names = list(trained(2).state_dict())
    assert [translate_name(name) for name in names] == names
