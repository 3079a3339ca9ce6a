"""Orientation, grids, bad volumes and normalization."""

from itertools import permutations, product

import nibabel
import numpy as np
import pytest
import torch

from tests.conftest import save_scan
from utils.common.errors import InputError
from utils.data.dataset import normalize
from utils.data.images import (
    BRAIN_BOX,
    MNI152_T1_2MM,
    brain_box,
    brain_statistics,
    coarsen_volume,
    encode_volume,
    model_grid,
    read_image,
)
from utils.preparation.template import load_template


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, MNI152_T1_2MM.shape).astype(np.uint8)


def test_all_48_axis_orders_and_flips_come_back_unchanged(volume, mni_affine, tmp_path) -> None:
    image = nibabel.Nifti1Image(volume, mni_affine)
    for axes in permutations(range(3)):
        for flips in product((1, -1), repeat=3):
            other = image.as_reoriented(np.column_stack([axes, flips]))
            nibabel.save(other, tmp_path / "scan.nii")
            np.testing.assert_array_equal(read_image(tmp_path / "scan.nii", 2)[0], volume)


def test_one_volume_of_four_dimensions_is_taken(volume, mni_affine, tmp_path) -> None:
    save_scan(tmp_path / "scan.nii.gz", volume[..., None], mni_affine)
    loaded = read_image(tmp_path / "scan.nii.gz", 2)[0]
    assert loaded.shape == volume.shape
    assert loaded.dtype == np.float32


def test_coarser_grid_averages_and_keeps_its_place(volume, mni_affine, tmp_path) -> None:
    save_scan(tmp_path / "fine.nii", volume, mni_affine)
    coarse = read_image(tmp_path / "fine.nii", 4)[0]
    assert coarse.shape == model_grid(4).shape == (46, 55, 46)
    assert coarse[3, 4, 5] == pytest.approx(volume[6:8, 8:10, 10:12].mean())
    assert coarse.sum() * 8 == pytest.approx(volume.sum(), rel=1e-5)
    centre = MNI152_T1_2MM.affine @ [0.5, 0.5, 0.5, 1]
    np.testing.assert_allclose(model_grid(4).affine @ [0, 0, 0, 1], centre)
    save_scan(tmp_path / "coarse.nii", coarse, model_grid(4).affine)
    np.testing.assert_allclose(read_image(tmp_path / "coarse.nii", 4)[0], coarse)
    with pytest.raises(InputError, match="VOXEL_SIZE=4"):
        read_image(tmp_path / "coarse.nii", 2)[0]
    assert coarsen_volume(np.ones((3, 4, 5)), 2).shape == (2, 2, 3)


@pytest.mark.parametrize("voxel_size", [0, 1, 3, -2])
def test_impossible_voxel_sizes(voxel_size) -> None:
    with pytest.raises(ValueError, match="multiple of 2"):
        model_grid(voxel_size)


def tilted(affine: np.ndarray) -> np.ndarray:
    angle = np.radians(5)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ affine


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, a: (v[:-1], a), "has 90x109x91 voxels of 2x2x2 mm; expected 91x109x91 voxels of 2 mm"),
        (lambda v, a: (v, a @ np.diag([0.5, 0.5, 0.5, 1])), "voxels of 1x1x1 mm"),
        (lambda v, a: (v, a @ np.diag([1, 1, 1.5, 1])), "voxels of 2x2x3 mm"),
        (lambda v, a: (v, tilted(a)), "not a scaled permutation"),
        (lambda v, a: (v, a + np.array([[0, 0, 0, 30], [0] * 4, [0] * 4, [0] * 4])), "origin lies 30 mm off"),
        (lambda v, a: (np.zeros_like(v), a), "is empty"),
        (lambda v, a: (np.full_like(v, 7), a), "is constant"),
        (lambda v, a: ((v > 100).astype(np.uint8), a), "is constant"),
        (lambda v, a: (np.where(v == 9, np.nan, v).astype(np.float32), a), "not finite"),
        (lambda v, a: (np.where(v == 9, np.inf, v).astype(np.float32), a), "not finite"),
        (lambda v, a: (np.stack([v, v], -1), a), "has 4 dimensions"),
        (lambda v, a: ((v - 128.0).astype(np.float32), a), "of its voxels that are not 0 are negative"),
        (lambda v, a: (v.astype(np.complex64), a), "no plain numbers"),
        (lambda v, a: (np.zeros(v.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")]), a), "no plain numbers"),
    ],
)
def test_unusable_scans_are_named(volume, mni_affine, tmp_path, change, message) -> None:
    path = tmp_path / "sub-7.nii.gz"
    save_scan(path, *change(volume, mni_affine))
    with pytest.raises(InputError, match=message) as caught:
        read_image(path, 2)[0]
    assert str(path) in str(caught.value)
    assert len(caught.value.problems) == 1


def test_broken_files_are_named(volume, mni_affine, tmp_path) -> None:
    path = tmp_path / "sub-7.nii.gz"
    save_scan(path, volume, mni_affine)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="sub-7.nii.gz: not a readable NIfTI image"):
        read_image(path, 2)[0]
    path.write_bytes(b"no image")
    with pytest.raises(InputError, match="not a readable NIfTI image"):
        read_image(path, 2)[0]


def normalized(volume: np.ndarray, normalization: str = "brain") -> np.ndarray:
    mean, deviation = brain_statistics(volume, normalization)
    batch = torch.from_numpy(volume)[None], torch.tensor([[[[1 / deviation]]]]), torch.tensor([[[[mean / deviation]]]])
    return normalize(*batch)[0].numpy()


def test_normalization_of_the_released_code(reference_folder) -> None:
    with np.load(reference_folder / "scaledense_reference.npz") as stored:
        volume, expected = stored["normalize/volume"], stored["normalize/output"]
    np.testing.assert_allclose(normalized(volume), expected, rtol=1e-4, atol=1e-5)


def test_normalizations() -> None:
    rng = np.random.default_rng(0)
    volume = rng.uniform(-1, 3, (7, 8, 9)).astype(np.float32)
    mask = volume > 0
    result = normalized(volume)
    assert result[mask].mean() == pytest.approx(0, abs=1e-6)
    assert result[mask].std() == pytest.approx(1, rel=1e-6)
    np.testing.assert_allclose(result[~mask], volume[~mask] - volume[mask].mean() / volume[mask].std(), rtol=1e-5)
    legacy = normalized(volume, "legacy")
    mean = volume[mask].mean()
    deviation = np.sqrt((((volume * mask) - mean) ** 2).sum() / mask.sum())
    np.testing.assert_allclose(legacy[mask], (volume[mask] - mean) / deviation, rtol=1e-5, atol=1e-5)
    assert legacy[mask].std() < 1
    np.testing.assert_allclose(legacy[~mask], volume[~mask] - mean / deviation, rtol=1e-5)


@pytest.mark.parametrize(
    ("volume", "slope", "kind"),
    [
        (np.array([0.0, 1, 255]), 1, "uint8"),
        (np.array([0.0, 1, 256]), 1, "int16"),
        (np.array([-1.0, 0, 32767]), 1, "int16"),
        (np.array([0.0, 32768]), 1, "float32"),
        (np.array([0, 3, 9], np.float32) * np.float32(0.37), float(np.float32(0.37)), "uint8"),
        (np.array([0.0, 0.5, 7.25]), 0.25, "uint8"),
        (np.array([0, 0.1, 7.3]), 1, "float32"),
    ],
)
def test_the_smallest_type_that_loses_nothing(volume, slope, kind) -> None:
    volume = volume.astype(np.float32)
    voxels, *scaling = encode_volume(volume, slope, 0.0)
    assert voxels.dtype == kind
    decoded = voxels.astype(np.float32) * np.float32(scaling[0]) + np.float32(scaling[1])
    np.testing.assert_array_equal(decoded, volume)


def test_the_box_of_the_brain_holds_the_template() -> None:
    places = np.argwhere(load_template().brain)
    for (first, last), low, high in zip(BRAIN_BOX, places.min(0), places.max(0), strict=True):
        assert first <= low
        assert high <= last
    assert brain_box(4) == ((3, 42), (3, 50), (0, 39))
