"""Networks and losses: new ones, second stages from first ones, and checkpoints that are refused."""

from dataclasses import replace

import pytest
import torch

from model.building import load_network, make_loss, make_network, scale_to, start_from_first_stage
from model.ranking import SoftRank
from model.scaledense import NetworkConfig, ScaleDense

SHAPE = (20, 20, 20)


def network_of(stage: int, model: str = "scaledense", ages: tuple[float, ...] = (30.0, 60.0)) -> ScaleDense:
    return make_network(scale_to(NetworkConfig(1, model, True, SHAPE, 3, 4), ages, stage), stage)


def test_the_scale_of_the_ages() -> None:
    config = NetworkConfig(1, "scaledense", True, SHAPE, 3, 4)
    assert scale_to(config, [30.0, 60.0], 2) == replace(config, stage=2, age_mean=45.0, age_sd=15.0)
    assert scale_to(config, [40.0], 1) == replace(config, age_mean=40.0, age_sd=1.0)


@pytest.mark.parametrize("model", ["scaledense", "scaledense_paper"])
def test_a_second_stage_starts_from_the_first(model) -> None:
    first, second = (network_of(stage, model) for stage in (1, 2))
    volumes = torch.randn(2, 1, *SHAPE)
    before = second.trunk(volumes)
    start_from_first_stage(second, first)
    torch.testing.assert_close(second.trunk(volumes), first.trunk(volumes))
    assert not torch.equal(second.trunk(volumes), before)
    torch.nn.init.normal_(first.output_layer[-1].weight, std=0.02)
    sex, discretized = torch.tensor([0, 1]), torch.tensor([30.0, 65.0])
    for ages in ((30.0, 60.0), (20.0, 80.0, 90.0)):  # the second may be trained on other subjects
        second = network_of(2, model, ages)
        start_from_first_stage(second.eval(), first.eval())
        expected = first(volumes, sex) - discretized
        torch.testing.assert_close(second(volumes, sex, discretized), expected, atol=1e-3, rtol=1e-4)


def test_the_released_start_draws_the_last_layer_too() -> None:
    config = NetworkConfig(1, "scaledense_paper", False, SHAPE, 2, 2)
    live, released = make_network(config, 0), make_network(config, 0, released_start=True)
    assert not live.output_layer[-1].weight.any()
    assert released.output_layer[-1].weight.any()
    torch.testing.assert_close(live.trunk.state_dict(), released.trunk.state_dict())
    assert make_network(config, 0, activation_checkpointing=True).trunk.activation_checkpointing


def checkpoint_of(network: ScaleDense, **changes: object) -> dict[str, object]:
    return {"network": network.config.to_dict() | changes, "state_dict": network.state_dict()}


def test_checkpoints_that_do_not_fit_are_refused() -> None:
    checkpoint = checkpoint_of(ScaleDense(NetworkConfig(2, "scaledense_paper", False, SHAPE, blocks=2, filters=2)))
    with pytest.raises(ValueError, match="holds a second stage; expected a first stage"):
        load_network(checkpoint, 1)
    with pytest.raises(ValueError, match="(?i)was trained .*sex"):
        load_network(checkpoint, 2, use_sex=True)
    with pytest.raises(ValueError, match="describes its network in an unknown way"):
        load_network({**checkpoint, "network": {"stage": 2, "depth": 7}}, 2)
    del checkpoint["state_dict"]["trunk.blocks.0.convolution_1.branches.0.convolution.weight"]
    with pytest.raises(ValueError, match="do not fit"):
        load_network(checkpoint, 2)
    with pytest.raises(ValueError, match="neither a checkpoint of this project"):
        load_network({"state_dict": {"a": torch.ones(1)}}, 1)
    with pytest.raises(ValueError, match="holds no weights by name"):
        load_network({"state_dict": {"a": 1}}, 1)


@pytest.mark.parametrize("normalization", ["local_sd", "registered_sd", "native_sd", "brain"])
def test_kinds_of_version_0_1_are_refused(normalization) -> None:
    network = network_of(1)
    changes = {"model": "perceptron"} if normalization == "brain" else {}
    with pytest.raises(ValueError, match=r"^[^\n]*version 0\.1[^\n]*removed[^\n]*$"):
        load_network(checkpoint_of(network, **changes) | {"normalization": normalization}, 1)


def test_make_loss() -> None:
    soft = make_loss("mse", "soft", None, 2.0, 10.0, 1.0)
    assert isinstance(soft.ranker, SoftRank)
    assert (soft.ranker.temperature, soft.ranking_weight, soft.age_difference_weight) == (2.0, 10.0, 1.0)
    assert make_loss("mae", "none", None, 1.0, 10.0, 1.0).ranker is None
    with pytest.raises(ValueError, match="needs a sorter"):
        make_loss("mse", "sodeep", None, 1.0, 10.0, 1.0)
    with pytest.raises(ValueError, match="positive"):
        make_loss("mse", "soft", None, 0.0, 10.0, 1.0)
