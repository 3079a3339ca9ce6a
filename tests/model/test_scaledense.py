"""The network: shapes, sizes, a live first stage, and the released code's numbers."""

import json
import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from model.building import load_network, make_network, scale_to
from model.released import convert_released, translate_name
from model.scaledense import NetworkConfig, ScaleDense
from tests.conftest import RELEASED_KEYS


@pytest.fixture(scope="module")
def released_state_dict(reference_folder: Path) -> Callable[[int], dict[str, torch.Tensor]]:
    """A released state dict of a stage, filled as the reference's README says; not to be changed."""

    @cache
    def fill(stage: int) -> dict[str, torch.Tensor]:
        weights = {}
        for key, shape in json.loads((reference_folder / RELEASED_KEYS[stage]).read_text()).items():
            rng = np.random.default_rng(zlib.crc32(key.encode()))
            last = key.rsplit(".", 1)[1]
            if last == "num_batches_tracked":
                values = np.zeros(shape)
            elif last == "running_mean" or last.startswith("bias"):
                values = 0.1 * rng.standard_normal(shape)
            elif last == "running_var" or len(shape) < 2:
                values = rng.uniform(0.5, 1.5, shape)
            else:
                values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
            weights[key] = torch.from_numpy(np.asarray(values, dtype=np.float32))
        if stage == 1:
            for head in ("with", "without"):
                weights[f"end_fc_{head}_gender.1.bias"] = torch.full((1,), 60.0)
        return weights

    return fill


@pytest.fixture(scope="module")
def reference(reference_folder) -> dict[str, np.ndarray]:
    with np.load(reference_folder / "scaledense_reference.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def inputs(reference: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(int(reference["seed"]))
    volumes = rng.standard_normal((2, 1, 91, 109, 91)).astype(np.float32)
    return {
        "volumes": torch.from_numpy(volumes),
        "sex": torch.from_numpy(reference["sex"]),
        "age": torch.from_numpy(reference["chronological_age"].ravel()),
        "discretized_age": torch.from_numpy(reference["discretized_age"].ravel()),
    }


def relative_error(value: torch.Tensor | float, expected: np.ndarray) -> float:
    difference = np.asarray(value, np.float64).ravel() - np.asarray(expected, np.float64).ravel()
    return float(np.linalg.norm(difference) / max(np.linalg.norm(expected), 1e-12))


def test_evaluation_numbers_of_the_released_code(released_state_dict, reference, inputs) -> None:
    """With the tolerance of the reference's README: these weights amplify rounding about a thousand times."""
    states = {stage: released_state_dict(stage) for stage in (1, 2)}
    network = load_network({"state_dict": states[1]}, 1)
    with torch.inference_mode():
        stem = network.trunk.stem(inputs["volumes"])
        assert relative_error(stem.mean((1, 2, 3, 4)), reference["stem_mean"]) < 1e-4
        assert relative_error(stem.std((1, 2, 3, 4)), reference["stem_std"]) < 1e-4
        features = torch.cat([network.trunk(volume) for volume in inputs["volumes"].split(1)])
        for subject in (0, 1):
            assert relative_error(features[subject], reference["features"][subject]) < 5e-4
        # The fill depends on the names alone, so both stages and heads have the same trunk.
        for use_sex, suffix in ((True, ""), (False, "_without_sex")):
            age = load_network({"state_dict": states[1]}, 1, use_sex)._head(features, inputs["sex"], None)
            np.testing.assert_allclose(age, reference[f"first_stage_eval{suffix}"][:, 0], rtol=5e-4)
            second = load_network({"state_dict": states[2]}, 2, use_sex)
            residual_age = second._head(features, inputs["sex"], inputs["discretized_age"])
            if use_sex:
                np.testing.assert_allclose(residual_age, reference["second_stage_residual_eval"][:, 0], rtol=5e-4)
            age = inputs["discretized_age"] + residual_age
            np.testing.assert_allclose(age, reference[f"second_stage_age_eval{suffix}"][:, 0], rtol=5e-4)


def test_the_folded_network_has_the_numbers_of_the_released_code(released_state_dict, reference, inputs) -> None:
    """Channels last, as in prediction."""
    network = load_network({"state_dict": released_state_dict(1)}, 1)
    volume = inputs["volumes"][1:, 0, ..., None].permute(0, 4, 1, 2, 3)
    with torch.inference_mode():
        assert relative_error(network.folded().trunk(volume), reference["features"][1]) < 5e-4


def test_training_numbers_of_the_released_code(released_state_dict, reference, inputs) -> None:
    config, weights = convert_released(released_state_dict(1))
    network = ScaleDense(config).train()
    network.load_state_dict(weights)
    brain_age = network(inputs["volumes"], inputs["sex"])
    loss = nn.functional.mse_loss(brain_age, inputs["age"])
    loss.backward()
    assert relative_error(brain_age.detach(), reference["first_stage_train"]) < 1e-4
    assert relative_error(loss.detach(), reference["first_stage_train_mse"]) < 1e-4
    running = network.trunk.blocks[1].norm_1.running_var
    assert relative_error(running, reference["running_var_after/block.1.block.1"]) < 1e-4
    parameters = dict(network.named_parameters())
    names = [key.removeprefix("grad_norm/") for key in reference if key.startswith("grad_norm/")]
    assert len(names) == 7
    for name in names:
        norm = parameters[translate_name(name)].grad.norm()
        assert relative_error(norm, reference[f"grad_norm/{name}"]) < 1e-3, name


def test_size_of_the_released_network() -> None:
    with torch.device("meta"):
        network = ScaleDense(NetworkConfig(stage=1))
    heads_with_sex = sum(p.numel() for p in network.parameters())
    other_head = 32 * 16 + 16 + 16 + 1
    assert round((heads_with_sex + other_head) / 1e6, 3) == 102.378


def test_paper_topology() -> None:
    config = NetworkConfig(stage=1, model="scaledense_paper")
    assert config.widths == [(1, 8), (9, 16), (25, 32), (57, 64), (121, 128)]
    network = ScaleDense(config)
    assert network.trunk.features == 128
    assert 1.4e6 < sum(p.numel() for p in network.parameters()) < 1.6e6


@pytest.mark.parametrize("model", ["scaledense", "scaledense_paper"])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("use_sex", [True, False])
def test_any_size_that_survives(model, stage, use_sex) -> None:
    config = NetworkConfig(stage, model, use_sex, (26, 19, 22), blocks=3, filters=2, age_mean=50.0)
    network = ScaleDense(config)
    names = " ".join(name for name, _ in network.named_parameters())
    assert ("sex_layer" in names) == use_sex
    assert ("discretized_age_layer" in names) == (stage == 2)
    output = network(torch.randn(2, 1, 26, 19, 22), torch.tensor([0, 1]), torch.tensor([40.0, 55.0]))
    assert output.shape == (2,)
    output.sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    assert network.output_layer[-1].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("model", "smallest"), [("scaledense", 2**3 + 10), ("scaledense_paper", 2**3)])
def test_sizes_at_the_edge(model, smallest) -> None:
    config = NetworkConfig(1, model, False, (smallest,) * 3, blocks=3, filters=1)
    assert ScaleDense(config).eval()(torch.randn(1, 1, *config.volume_shape)).shape == (1,)
    with pytest.raises(ValueError, match="does not survive"):
        NetworkConfig(1, model, False, (smallest, smallest, smallest - 1), blocks=3)


@pytest.mark.parametrize("change", [{"stage": 3}, {"model": "vgg"}, {"blocks": 0}, {"age_sd": 0.0}])
def test_wrong_configurations(change) -> None:
    with pytest.raises(ValueError, match="expected"):
        NetworkConfig(**{"stage": 1, **change})


@pytest.mark.parametrize("model", ["scaledense", "scaledense_paper"])
def test_no_seed_starts_dead(model) -> None:
    """The last ReLU lets every subject through at the start and after a step, whatever the seed."""
    volumes = torch.randn(4, 1, 20, 20, 20, generator=torch.Generator().manual_seed(0))
    sex, age = torch.tensor([0, 1, 0, 1]), torch.tensor([25.0, 44.0, 58.0, 79.0])
    config = scale_to(NetworkConfig(1, model, True, (20, 20, 20), 3, 4), age.tolist(), 1)
    dead = []
    for seed in range(50):
        network = make_network(config, seed)
        optimizer = torch.optim.Adam(network.parameters(), 1e-3)
        for _ in range(2):
            output = network(volumes, sex)
            dead += [seed] if (output <= 0).any() else []
            optimizer.zero_grad()
            (output - age).square().mean().backward()
            optimizer.step()
        assert network.output_layer[0].weight.grad.abs().sum() > 0
    assert not dead


@pytest.mark.parametrize(("model", "features"), [("scaledense", 16), ("scaledense_paper", 8)])
def test_without_dense_connections_blocks_follow_each_other(model, features) -> None:
    config = NetworkConfig(1, model, False, (24, 24, 24), blocks=2, filters=4, dense_connections=False)
    network = ScaleDense(config).eval()
    volumes = torch.randn(2, 1, 24, 24, 24)
    x = network.trunk.stem(volumes)
    for block in network.trunk.blocks:
        x = block(x)
    torch.testing.assert_close(network.trunk(volumes), x.mean((2, 3, 4)))
    assert network.trunk(volumes).shape == (2, features)


@pytest.mark.parametrize("part", ["asymmetric_convolutions", "squeeze_excitation"])
def test_parts_of_the_blocks_can_be_left_out(part) -> None:
    config = NetworkConfig(1, "scaledense", False, (24, 24, 24), blocks=2, filters=4, **{part: False})
    whole, network = ScaleDense(replace(config, **{part: True})), ScaleDense(config)
    left_out = {name for name, _ in whole.named_parameters()} - {name for name, _ in network.named_parameters()}
    of_part = {"asymmetric_convolutions": r"\.branches\.[123]\.", "squeeze_excitation": r"\.excitation\."}[part]
    assert left_out == {name for name, _ in whole.named_parameters() if re.search(of_part, name)}
    volumes = torch.randn(2, 1, 24, 24, 24)
    assert network.train().trunk(volumes).std() > 0  # with batch statistics, which differ from the running ones
    folded = network.folded()
    torch.testing.assert_close(folded.trunk(volumes), network.eval().trunk(volumes), rtol=1e-4, atol=1e-4)


def test_the_head_stays_in_float32() -> None:
    config = NetworkConfig(1, "scaledense_paper", False, (16, 16, 16), blocks=2, filters=2)
    with torch.autocast("cpu", torch.bfloat16):
        assert ScaleDense(config)(torch.randn(2, 1, 16, 16, 16)).dtype == torch.float32
