"""Maps of what makes a network estimate its age, against functions and volumes whose answer is known."""

import numpy as np
import pytest
import torch

from model.building import make_network
from model.scaledense import NetworkConfig
from utils.prediction.explaining import explain, number_cubes

STEPS = 100
METHODS = ("occlusion", "integrated_gradients")
SHAPE = (12, 14, 12)
MIDDLE = SHAPE[1] // 2  # between the back and the front half
SEX = torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize("method", METHODS)
def test_a_map_finds_what_a_known_function_looks_at(method) -> None:
    rng = torch.Generator().manual_seed(0)
    volume = torch.randn(1, 1, 12, 14, 12, generator=rng)
    volume[..., 0] = volume.min()  # background
    weights = torch.zeros(12, 14, 12)
    weights[4:6, 4:6, 4:6] = 1.0

    def network(volumes: torch.Tensor, sex: torch.Tensor) -> torch.Tensor:
        return 50 + (volumes[:, 0] * weights).sum((1, 2, 3))

    mean_volume = torch.zeros_like(volume)
    mean_volume[..., 0] = -1
    values = explain(network, volume, mean_volume, SEX, method, 8)
    assert values.shape == (12, 14, 12)
    looked_at = weights > 0
    difference = (volume[0, 0] * weights).sum()
    assert values[~looked_at].abs().max() < 1e-4
    if method == "occlusion":  # the cube is one of those that are covered
        torch.testing.assert_close(values[looked_at], difference.expand(8), atol=1e-3, rtol=1e-4)
    else:
        torch.testing.assert_close(values.sum(), difference, atol=1e-3, rtol=1e-4)


def test_cubes_cover_the_brain_and_leave_out_the_rest() -> None:
    brain = torch.zeros(1, 1, 7, 8, 9, dtype=torch.bool)
    brain[0, 0, 1, 1, 1] = brain[0, 0, 6, 7, 8] = True
    cubes = number_cubes(brain, 4)[0, 0]
    assert cubes.shape == (7, 8, 9)
    assert cubes.unique().tolist() == [0, 1, 2]
    assert (cubes[:4, :4, :4] == 1).all()
    assert (cubes[4:, 4:, 8:] == 2).all()
    assert (cubes == 0).sum() == 7 * 8 * 9 - 64 - 12


def two_hollows(rng: np.random.Generator, front: np.ndarray, back: np.ndarray) -> torch.Tensor:
    """Return balls with a hollow in each half, which grows from 20 to 85, (N, 1, 12, 14, 12) float32 tensor."""
    grid = np.indices(SHAPE) - (np.array(SHAPE)[:, None, None, None] - 1) / 2
    volumes = rng.normal(1, 0.05, (len(front), *SHAPE))
    for side, sizes in ((3, front), (-3, back)):
        distance = np.linalg.norm(grid - np.array([0, side, 0])[:, None, None, None], axis=0)
        radius = (0.5 + np.asarray(sizes) / 35)[:, None, None, None]
        volumes -= 2 / (1 + np.exp(4 * (distance - radius)))
    volumes[:, np.linalg.norm(grid, axis=0) > 6.5] = -3
    return torch.from_numpy(volumes[:, None].astype(np.float32))


@pytest.fixture(scope="module")
def trained():
    """A network that was trained to tell the size of the front hollow, and the mean of its training volumes."""
    rng = np.random.default_rng(0)
    network = make_network(NetworkConfig(1, "scaledense_paper", False, SHAPE, 2, 4, age_mean=50.0, age_sd=19.0), 0)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(STEPS):
        age, nuisance = rng.uniform(20, 85, (2, 24))
        error = network(two_hollows(rng, age, nuisance), torch.zeros(24, dtype=torch.int64)) - torch.from_numpy(age)
        optimizer.zero_grad()
        error.square().mean().backward()
        optimizer.step()
    return network.eval(), two_hollows(rng, *rng.uniform(20, 85, (2, 100))).mean(0, keepdim=True)


@pytest.mark.parametrize("method", METHODS)
def test_maps_of_a_trained_network_find_the_half_that_tells_the_age(method, trained) -> None:
    """The back hollow varies as much, so a network that has not learned looks at both halves alike."""
    network, mean_volume = trained
    untrained = make_network(network.config, 1, released_start=True).eval()
    volumes = two_hollows(np.random.default_rng(1), [80, 25], [25, 80]).split(1)
    shares = []
    for own in (untrained, network):
        maps = [explain(own, volume, mean_volume, SEX, method, 8) for volume in volumes]
        amounts = sum(values.abs().sum((0, 2)) for values in maps)
        shares.append(float(amounts[MIDDLE:].sum() / amounts.sum()))
    print(f"{method}: share of the front half: untrained {shares[0]:.3f}, trained {shares[1]:.3f}")
    assert shares[0] < 0.6
    assert shares[1] > 0.65
    assert maps[0].sum() > 0 > maps[1].sum()  # the old brain looks older than the mean, the young one younger
