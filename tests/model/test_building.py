"""Networks and losses: new ones, second stages from first ones, and checkpoints that are refused."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from model.building import (
    freeze,
    load_network,
    make_loss,
    make_network,
    scale_output,
    scale_to,
    start_from_first_stage,
)
from model.ranking import SoftRank
from model.scaledense import NetworkConfig, ScaleDense
from tests.conftest import ROOT

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
    torch.nn.init.normal_(first.output_layer[-1].weight, std=0.002)
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


@pytest.mark.parametrize("model", ["scaledense", "scaledense_paper"])
@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_the_stem_and_the_first_blocks_are_frozen(model, blocks) -> None:
    trunk = (network := network_of(1, model)).trunk
    freeze(network, blocks)
    frozen = [trunk.stem, *trunk.blocks[:blocks]] if blocks else []
    for part in (trunk.stem, *trunk.blocks, network.image_layer, network.output_layer):
        is_frozen = any(part is one for one in frozen)
        assert all(weights.requires_grad != is_frozen for weights in part.parameters())
        for mode in (True, False):
            network.train(mode)
            assert {own.training for own in part.modules()} == {mode and not is_frozen}


def test_freezing_more_blocks_than_there_are_is_refused() -> None:
    network = network_of(1)
    with pytest.raises(ValueError, match="the network has only 3 blocks, not 4"):
        freeze(network, 4)
    assert all(weights.requires_grad for weights in network.parameters())


def test_a_frozen_network_is_copied_and_folded_like_another() -> None:
    network, volumes = network_of(1).eval(), torch.randn(2, 1, *SHAPE)
    freeze(network, 1)
    folded = network.folded()
    torch.testing.assert_close(folded.trunk(volumes), network.trunk(volumes), rtol=1e-3, atol=1e-4)


def test_a_network_starts_from_another_and_keeps_its_first_blocks() -> None:
    initial = network_of(1)
    for weights in initial.parameters():
        weights.data += 0.1
    network = make_network(initial.config, 7, initial=initial, freeze_blocks=2)
    torch.testing.assert_close(network.state_dict(), initial.state_dict(), rtol=0, atol=0)
    assert len(network.trunk.frozen) == 3
    with torch.no_grad():
        network.output_layer[-1].bias += 1  # is a copy
    assert not torch.equal(network.output_layer[-1].bias, initial.output_layer[-1].bias)


@pytest.mark.parametrize("stage", [1, 2])
def test_the_output_is_scaled_around_its_constant_and_shifted_by_years(stage) -> None:
    network = network_of(stage).eval()
    torch.nn.init.normal_(network.output_layer[-1].weight, std=0.002)
    inputs = torch.randn(3, 1, *SHAPE), torch.tensor([0, 1, 1]), torch.tensor([40.0, 50.0, 60.0])
    given = inputs[: stage + 1]
    constant = network.config.age_mean if stage == 1 else 0.0
    with torch.no_grad():
        before = network(*given) - constant
        scale_output(network, 1.5, -3.0)
        after = network(*given) - constant
    assert before.std() > 1e-2
    assert stage == 2 or before.min() > -10  # years; no age is cut at 0
    torch.testing.assert_close(after, 1.5 * before - 3)


def checkpoint_of(network: ScaleDense, **changes: object) -> dict[str, object]:
    return {"network": network.config.to_dict() | changes, "state_dict": network.state_dict()}


def test_checkpoints_that_do_not_fit_are_refused() -> None:
    checkpoint = checkpoint_of(ScaleDense(NetworkConfig(2, "scaledense_paper", False, SHAPE, blocks=2, filters=2)))
    with pytest.raises(ValueError, match="holds a second stage; expected a first stage"):
        load_network(checkpoint, 1)
    with pytest.raises(ValueError, match="(?i)was trained .*sex"):
        load_network(checkpoint, 2, use_sex=True)
    with pytest.raises(ValueError, match="of a newer version: its network has depth"):
        load_network({**checkpoint, "network": {"stage": 2, "depth": 7}}, 2)
    with pytest.raises(ValueError, match="describes its network in an unknown way"):
        load_network({**checkpoint, "network": {"model": "scaledense"}}, 2)
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


LOAD = """
import sys
from model.building import load_network, make_network
from model.scaledense import NetworkConfig

network = make_network(NetworkConfig(1, "scaledense", True, (20, 20, 20), 2, 4), 0)
load_network({"state_dict": network.state_dict(), "network": network.config.to_dict()}, 1).folded()
print(*sys.modules)
"""


def test_a_network_is_loaded_without_the_compiler_of_torch() -> None:
    """Whose import takes one and a half seconds; drawing weights on the device ``meta`` needs it."""
    done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "torch._dynamo" not in done.stdout.split()
