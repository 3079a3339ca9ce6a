"""Registration: known transforms are found again."""

import nibabel
import numpy as np
import pytest
from nibabel.affines import from_matvec
from scipy.spatial.transform import Rotation

from utils.data.images import MNI152_T1_2MM
from utils.preparation.registration import (
    FIXED_BOX,
    cube_rotations,
    find_start,
    register_affine,
    register_nonlinear,
    to_sitk,
    without_shear,
)
from utils.preparation.simulation import draw_subjects, simulate_volume
from utils.preparation.template import load_template, sample

GRID = MNI152_T1_2MM.affine


@pytest.fixture(scope="module")
def brain() -> np.ndarray:
    return simulate_volume(draw_subjects(3)[0], 0).astype(np.float32) / 160


def moved(brain: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Put the brain where `matrix` maps it, on the same grid."""
    return sample(brain, GRID, np.linalg.inv(matrix))


def test_there_are_24_rotations_of_a_cube() -> None:
    rotations = cube_rotations()
    assert len(rotations) == 24
    assert len({matrix.tobytes() for matrix in rotations}) == 24
    assert all(np.linalg.det(matrix) == pytest.approx(1) for matrix in rotations)
    np.testing.assert_array_equal(rotations[0], np.eye(3))


def registered(volume: np.ndarray) -> np.ndarray:
    start, turn, score = find_start(volume, volume > 0, GRID, load_template())
    assert turn is None
    assert score > 0.75
    return register_affine(volume, GRID, load_template(), start)


@pytest.fixture(scope="module")
def unmoved(brain) -> np.ndarray:
    return registered(brain)


@pytest.mark.parametrize("angles", [(-20, 10, 0), (15, -15, 15)])
def test_a_known_affine_is_found(brain, unmoved, angles) -> None:
    truth = from_matvec(Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * [0.95, 1.03, 1.0], [6, -4, 8])
    found = registered(moved(brain, truth))
    points = np.argwhere(load_template().brain)[::500] @ GRID[:3, :3].T + GRID[:3, 3]
    expected, got = (nibabel.affines.apply_affine(matrix, points) for matrix in (truth @ unmoved, found))
    assert np.linalg.norm(expected - got, axis=1).max() < 2.5  # mm, a voxel and a quarter


def test_the_affine_is_the_same_each_time(brain, unmoved) -> None:
    for _ in range(2):
        np.testing.assert_array_equal(registered(brain), unmoved)


@pytest.mark.parametrize("number", [1, 7, 12, 23])
def test_another_orientation_is_found(brain, number) -> None:
    turn = cube_rotations()[number]
    affine = from_matvec(turn) @ GRID  # the header lies
    start, found, _ = find_start(brain, brain > 0, affine, load_template())
    assert found is not None
    np.testing.assert_array_equal(found, turn)
    np.testing.assert_allclose(start[:3, :3] @ turn.T, np.eye(3), atol=0.5)


@pytest.fixture(scope="module")
def field(brain) -> np.ndarray:
    return register_nonlinear(brain, GRID, load_template(), np.eye(4), 1)


def test_the_nonlinear_part_improves_on_the_affine_without_folding(brain, field) -> None:
    template = load_template()
    assert field.shape == (*MNI152_T1_2MM.shape, 3)
    before, after = (sample(brain, GRID, np.eye(4), part) for part in (None, field))
    one, other = (np.corrcoef(part[template.brain], template.volume[template.brain])[0, 1] for part in (before, after))
    assert other > one + 0.05
    assert np.linalg.norm(field, axis=-1).max() < 25  # mm


def test_the_nonlinear_part_does_not_depend_on_the_threads(brain, field) -> None:
    np.testing.assert_array_equal(register_nonlinear(brain, GRID, load_template(), np.eye(4), 3), field)


def test_the_box_that_is_registered_holds_the_template_and_the_field_has_its_place(brain, field) -> None:
    """A brain that is moved by two voxels is moved back by them."""
    places = np.argwhere(load_template().brain)
    for part, low, high in zip(FIXED_BOX, places.min(0), places.max(0), strict=True):
        assert part.start <= low
        assert high < part.stop
    shift = np.array([4.0, -4.0, 4.0])  # mm
    shifted = register_nonlinear(moved(brain, from_matvec(np.eye(3), shift)), GRID, load_template(), np.eye(4), 1)
    change = (shifted - field)[load_template().brain]
    np.testing.assert_allclose(np.median(change, 0), shift, atol=1)


def test_shear_is_taken_out_and_images_keep_their_place() -> None:
    affine = np.array([[2.0, 0.3, 0, 5], [0, 2, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    plain = without_shear(affine)
    axes = plain[:3, :3] / np.linalg.norm(plain[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-12)
    image = to_sitk(np.zeros((3, 4, 5), np.float32), GRID)
    assert image.GetSize() == (3, 4, 5)
    lps = image.TransformIndexToPhysicalPoint((1, 2, 3))
    np.testing.assert_allclose(np.array(lps) * [-1, -1, 1], nibabel.affines.apply_affine(GRID, (1, 2, 3)))
