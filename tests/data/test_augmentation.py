"""Augmentation: what each change does, and that a seed repeats it."""

import pytest
import torch
from torch.nn import functional

from utils.common.choices import AUGMENTATIONS
from utils.common.distributed import Share
from utils.data.augmentation import BRIGHT, CHANGED_SHARE, augment


@pytest.fixture
def brains() -> torch.Tensor:
    axes = [torch.linspace(-1, 1, size) for size in (16, 20, 18)]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    ball = (x**2 + y**2 + z**2 < 0.6) * (100 + 30 * x + 20 * torch.sin(6 * y))
    return ball.repeat(6, 1, 1, 1)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_processes_change_their_parts_as_one_changes_the_joint_batch(brains, name) -> None:
    whole = augment(brains, (name,), (4,))
    shares = [Share(6, rank, 4) for rank in range(4)]
    parts = [augment(brains[share.own], (name,), (4,), share) for share in shares]
    assert [len(part) for part in parts] == [1, 2, 1, 2]
    torch.testing.assert_close(torch.cat(parts), whole)


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


def intensities(count: int) -> torch.Tensor:
    """Volumes with a ramp of intensities inside, whose mean is 100, and some very bright voxels."""
    volumes = torch.zeros(count, 12, 12, 12)
    ramp = torch.linspace(1, 199, 512)
    ramp[-8:] = 400
    volumes[:, 2:10, 2:10, 2:10] = (100 * ramp / ramp.mean()).view(8, 8, 8)
    return volumes


def test_contrast_keeps_the_order_of_intensities_and_those_of_bright_tissue() -> None:
    volumes = intensities(40)
    changed = augment(volumes, ("contrast",), (0,))
    assert torch.equal(changed > 0, volumes > 0)
    assert (changed[volumes == 0] == 0).all()
    middle = []
    for before, after in zip(volumes, changed, strict=True):
        if torch.equal(before, after):
            continue
        before, order = before[before > 0].sort()
        after = after[after > 0][order]
        assert (after.diff() >= 0).all()
        assert after[-1] > 1.1 * BRIGHT * 100  # vessels stay brighter than tissue
        bright, half = (int(torch.searchsorted(before, level)) for level in (BRIGHT * 100.0, BRIGHT * 50.0))
        assert after[bright].item() == pytest.approx(before[bright].item(), rel=0.01)
        middle.append((after[half] / before[half]).item())
    assert len(middle) > 10
    assert min(middle) < 0.95
    assert max(middle) > 1.05


def test_blur_spreads_what_is_inside_and_keeps_its_sum() -> None:
    volumes = torch.zeros(100, 11, 12, 13)
    volumes[:, 5, 5, 6] = 100
    volumes[:, 4:7, 7, 6] = 50
    changed = augment(volumes, ("blur",), (0,))
    torch.testing.assert_close(changed.sum((1, 2, 3)), volumes.sum((1, 2, 3)))
    assert changed.min() >= 0
    highest = changed.amax((1, 2, 3))
    assert (highest <= 100 + 1e-4).all()
    assert (highest < 95).sum() > 25
    assert (highest > 40).all()  # no more than slices of 5 mm do
    spread = [(changed.sum([other for other in (1, 2, 3) if other != axis]) > 1).sum(1) for axis in (1, 2, 3)]
    assert len({tuple(widths) for widths in torch.stack(spread, 1).tolist()}) > 3  # each axis has its own width


@pytest.mark.parametrize(
    "names", [("erosion",), ("gain",), ("blur", "erosion", "contrast", "gain", "bias_field", "noise")]
)
def test_intensities_of_some_volumes_stay_as_they_are(names) -> None:
    volumes = intensities(200)
    same = (augment(volumes, names, (0,)) == volumes).flatten(1).all(1)
    assert same.float().mean().item() == pytest.approx(1 - CHANGED_SHARE, abs=0.15)


def test_erosion_darkens_only_the_rim_of_about_half_of_the_brains(brains) -> None:
    volumes = brains[:1].repeat(200, 1, 1, 1)
    changed = augment(volumes, ("erosion",), (0,))
    brain = (volumes[0] > 0).float()
    core = -functional.max_pool3d(-brain[None], 3, 1, 1)[0] > 0
    rim = (brain > 0) & ~core
    torch.testing.assert_close(changed[:, ~rim], volumes[:, ~rim])
    assert (changed[:, brain == 0] == 0).all()
    ratio = changed[:, rim] / volumes[:, rim]
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))  # the same factor all around
    eroded = ratio[:, 0] < 1 - 1e-6
    assert 70 < eroded.sum() < 130
    torch.testing.assert_close(ratio[~eroded], torch.ones_like(ratio[~eroded]))
    assert ratio.min() >= 0
    assert ratio[eroded, 0].std() > 0.2
