"""Augmentation: what each change does, and that a seed repeats it."""

import pytest
import torch

from utils.common.choices import AUGMENTATIONS
from utils.data.augmentation import augment


@pytest.fixture
def brains() -> torch.Tensor:
    axes = [torch.linspace(-1, 1, size) for size in (16, 20, 18)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    ball = (x**2 + y**2 + z**2 < 0.6) * (100 + 30 * x + 20 * torch.sin(6 * y))
    return ball.repeat(6, 1, 1, 1)


def test_flip_mirrors_half_of_the_volumes() -> None:
    volumes = torch.zeros(200, 9, 9, 9)
    volumes[:, 2, 4, 4] = 1
    changed = augment(volumes, ("flip",), (0, 1))
    flipped = changed[:, 6, 4, 4] == 1
    assert 60 < int(flipped.sum()) < 140
    assert torch.equal(changed[~flipped], volumes[~flipped])
    assert torch.equal(changed[flipped], volumes[flipped].flip(1))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_changes_volumes_and_repeats(name, brains) -> None:
    changed = augment(brains, (name,), (0, 1))
    assert torch.equal(changed, augment(brains, (name,), (0, 1)))
    assert not torch.equal(changed, augment(brains, (name,), (0, 2)))
    assert changed.isfinite().all()
    assert len({volume.sum().item() for volume in changed}) > 1 or name == "flip"


@pytest.mark.parametrize("name", ["gain", "gamma", "bias_field", "noise"])
def test_intensities_leave_the_brain_where_it_is(name, brains) -> None:
    changed = augment(brains, (name,), (3,))
    assert torch.equal(changed > 0, brains > 0)
    assert (changed / brains)[brains > 0].sub(1).abs().max() < 0.6


def test_gain_multiplies_and_gamma_keeps_the_mean_intensity(brains) -> None:
    ratio = (augment(brains, ("gain",), (0,)) / brains).nan_to_num(0)
    for volume, inside in zip(ratio, brains > 0, strict=True):
        assert volume[inside].std() < 1e-5
    mean = brains.sum((1, 2, 3)) / (brains > 0).sum((1, 2, 3))
    at_mean = torch.where(brains > 0, mean[:, None, None, None], 0.0)
    torch.testing.assert_close(augment(at_mean, ("gamma",), (0,)), at_mean)


def test_scaling_and_rotation_turn_about_the_centre(brains) -> None:
    for names in (("rotation",), ("scaling",), ("rotation", "scaling")):
        changed = augment(brains, names, (5,)) > 50
        places = [volume.nonzero().float().mean(0) for volume in changed]
        for place in places:
            torch.testing.assert_close(place, torch.tensor([7.5, 9.5, 8.5]), atol=0.35, rtol=0)
    sizes = (augment(brains, ("rotation",), (5,)) > 50).sum((1, 2, 3)) / (brains > 50).sum((1, 2, 3))
    torch.testing.assert_close(sizes, torch.ones(6), atol=0.05, rtol=0)
