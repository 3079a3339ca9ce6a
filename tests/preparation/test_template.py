"""The template, and sampling on its grid."""

import numpy as np

from utils.data.images import MNI152_T1_2MM
from utils.preparation.template import load_template, sample, smooth_to


def test_the_template_is_a_symmetric_brain_on_the_grid() -> None:
    template = load_template()
    assert template.volume.shape == template.brain.shape == MNI152_T1_2MM.shape
    assert 1700 < template.brain.sum() * 8 / 1000 < 2000  # ml, with its fluid
    assert (template.volume[~template.brain] == 0).all()
    mirrored = template.volume[::-1]
    assert np.corrcoef(template.volume[template.brain], mirrored[template.brain])[0, 1] > 0.999


def test_sampling_goes_through_all_transforms_once() -> None:
    rng = np.random.default_rng(0)
    volume = rng.random(MNI152_T1_2MM.shape).astype(np.float32)
    affine = MNI152_T1_2MM.affine
    np.testing.assert_allclose(sample(volume, affine, np.eye(4)), volume, atol=1e-5)
    shift = np.eye(4)
    shift[1, 3] = 4  # mm: two voxels along the second axis
    np.testing.assert_allclose(sample(volume, affine, shift)[:, :-2], volume[:, 2:], atol=1e-5)
    field = np.zeros((*volume.shape, 3), np.float32)
    field[..., 0] = 2  # mm: the first axis runs to the left
    both = sample(volume, affine, shift, field)
    np.testing.assert_allclose(both[1:, :-2], volume[:-1, 2:], atol=1e-5)


def test_only_finer_voxels_are_smoothed() -> None:
    volume = np.zeros((21, 21, 21), np.float32)
    volume[10, 10, 10] = 1
    np.testing.assert_array_equal(smooth_to(volume, np.array([2.0, 2, 3]), 2.0), volume)
    smooth = smooth_to(volume, np.array([1.0, 2, 2]), 2.0)
    assert smooth[9, 10, 10] > 0.1
    assert smooth[10, 9, 10] == 0
    np.testing.assert_allclose(smooth.sum(), 1, rtol=1e-3)
