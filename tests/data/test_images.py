"""Orientation, grids, bad volumes and normalization."""

from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine

from tests.conftest import random_brain, save_scan
from utils.common.errors import InputError
from utils.data.dataset import normalize
from utils.data.image_files import is_image, is_nifti
from utils.data.images import (
    BRAIN_BOX,
    BRIGHTEST,
    GRAY,
    MNI152_T1_2MM,
    brain_box,
    brain_statistics,
    coarsen_volume,
    encode_volume,
    model_grid,
    read_image,
    scale_by_tissue,
)
from utils.data.scans import TISSUE_LEVELS, ScanStore
from utils.preparation.template import load_template


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    return random_brain(np.random.default_rng(0))


def test_all_48_axis_orders_and_flips_come_back_unchanged(volume, mni_affine, tmp_path) -> None:
    image = nibabel.Nifti1Image(volume, mni_affine)
    for axes in permutations(range(3)):
        for flips in product((1, -1), repeat=3):
            other = image.as_reoriented(np.column_stack([axes, flips]))
            nibabel.save(other, tmp_path / "scan.nii")
            np.testing.assert_array_equal(read_image(tmp_path / "scan.nii", 2), volume)


def test_one_volume_of_four_dimensions_is_taken(volume, mni_affine, tmp_path) -> None:
    save_scan(tmp_path / "scan.nii.gz", volume[..., None], mni_affine)
    loaded = read_image(tmp_path / "scan.nii.gz", 2)
    assert loaded.shape == volume.shape
    assert loaded.dtype == np.float32


def test_coarser_grid_averages_and_keeps_its_place(volume, mni_affine, tmp_path) -> None:
    save_scan(tmp_path / "fine.nii", volume, mni_affine)
    coarse = read_image(tmp_path / "fine.nii", 4)
    assert coarse.shape == model_grid(4).shape == (45, 55, 45)
    weights = np.array([0.25, 0.5, 0.25])  # the voxels on the border of a cell belong half to the next one
    around = volume[46:49, 47:50, 40:43]  # those around (47, 48, 41)
    assert coarse[23, 24, 20] == pytest.approx(np.einsum("ijk,i,j,k", around, weights, weights, weights))
    np.testing.assert_allclose(model_grid(4).affine @ [23, 24, 20, 1], MNI152_T1_2MM.affine @ [47, 48, 41, 1])
    save_scan(tmp_path / "coarse.nii", coarse, model_grid(4).affine)
    np.testing.assert_allclose(read_image(tmp_path / "coarse.nii", 4), coarse)
    with pytest.raises(InputError, match="VOXEL_SIZE=4"):
        read_image(tmp_path / "coarse.nii", 2)


def test_intensities_are_rescaled_before_they_are_averaged(volume, mni_affine, tmp_path) -> None:
    save_scan(tmp_path / "a.nii", volume, mni_affine)
    voxels = ScanStore(4, "tissue").read_file(tmp_path / "a.nii").voxels
    expected = coarsen_volume(scale_by_tissue(volume.astype(np.float32)), 2)
    np.testing.assert_array_equal(voxels, np.rint(expected * TISSUE_LEVELS))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_the_mirror_image_of_a_coarse_volume_is_the_coarse_mirror_image(volume, factor) -> None:
    coarse, mirrored = (coarsen_volume(own.astype(np.float64), factor) for own in (volume, volume[::-1]))
    np.testing.assert_allclose(mirrored, coarse[::-1], rtol=1e-12)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_cells_have_the_place_of_the_grid_and_the_mean_of_their_voxels(factor) -> None:
    """A volume that is a linear function of the place stays one, except at its borders."""
    fine, coarse = (
        (np.array([0.3, -0.2, 0.1]) @ apply_affine(grid.affine, np.indices(grid.shape).reshape(3, -1).T).T).reshape(
            grid.shape
        )
        for grid in (MNI152_T1_2MM, model_grid(2 * factor))
    )
    inner = (slice(1, -1),) * 3
    np.testing.assert_allclose(coarsen_volume(fine, factor)[inner], coarse[inner], atol=1e-9)


@pytest.mark.parametrize("voxel_size", [2, 4, 6, 8])
def test_the_middle_of_the_head_is_the_middle_of_the_grid(voxel_size) -> None:
    grid = model_grid(voxel_size)
    assert grid.shape[0] % 2 == 1
    assert (grid.affine @ [grid.shape[0] // 2, 0, 0, 1])[0] == 0  # mm, the plane between the hemispheres


def test_images_are_told_by_their_names() -> None:
    paths = [Path(name) for name in ("a.nii", "a.nii.gz", "a.mgz", "a.mgh", "a.gz", "a.txt", ".a.mgz", ".a.nii", "mgz")]
    assert [is_image(path) for path in paths] == [True] * 4 + [False] * 5
    assert [is_nifti(path) for path in paths] == [True] * 2 + [False] * 7


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
        (lambda v, a: (v, np.eye(4)), "its affine is the identity, so that voxel size, orientation and place are lost"),
        (lambda v, a: (v // 64, a), "holds only 3 different intensities"),
        (lambda v, a: (v + 1, a), "100% of its voxels are above 0, of those of a brain at most 42%"),
        (lambda v, a: (v.astype(np.complex64), a), "no plain numbers"),
        (lambda v, a: (np.zeros(v.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")]), a), "no plain numbers"),
    ],
)
def test_unusable_scans_are_named(volume, mni_affine, tmp_path, change, message) -> None:
    path = tmp_path / "sub-7.nii.gz"
    save_scan(path, *change(volume, mni_affine))
    with pytest.raises(InputError, match=message) as caught:
        read_image(path, 2)
    assert str(path) in str(caught.value)
    assert len(caught.value.problems) == 1


def test_broken_files_are_named(volume, mni_affine, tmp_path) -> None:
    path = tmp_path / "sub-7.nii.gz"
    save_scan(path, volume, mni_affine)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="sub-7.nii.gz: is a damaged or cut off gzip file"):
        read_image(path, 2)
    path.write_bytes(b"no image")
    with pytest.raises(InputError, match="not a readable NIfTI or MGH image"):
        read_image(path, 2)


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
    assert brain_box(4) == ((2, 42), (3, 51), (0, 39))


TISSUES = {1: (30.0, 0.0), 2: (75.0, GRAY), 3: (105.0, 1.0)}  # intensity, and what it is mapped to


@pytest.fixture(scope="module")
def tissues() -> np.ndarray:
    """A map of a ball of fluid around gray matter around white matter, 0 outside."""
    size = np.array([36, 40, 38])
    radius = np.linalg.norm(np.indices(size) - (size[:, None, None, None] - 1) / 2, axis=0)
    return np.select([radius < 12, radius < 15.5, radius < 17], [3, 2, 1], 0)


@pytest.fixture(scope="module")
def brain(tissues) -> np.ndarray:
    rng = np.random.default_rng(0)
    means = np.array([0, *(mean for mean, _ in TISSUES.values())])[tissues]
    return np.where(tissues > 0, means + rng.normal(0, 4, tissues.shape), 0).clip(0).astype(np.float32)


def test_the_means_of_the_tissues_are_mapped_to_fixed_values(tissues, brain) -> None:
    scaled = scale_by_tissue(brain)
    assert scaled.dtype == np.float32
    for tissue, (_, expected) in TISSUES.items():
        assert scaled[tissues == tissue].mean() == pytest.approx(expected, abs=0.03)
    assert (scaled[tissues == 0] == 0).all()
    assert 0 <= scaled.min() < scaled.max() <= BRIGHTEST


@pytest.mark.parametrize("factor", [0.01, 37.0])
def test_scaling_by_tissue_does_not_depend_on_the_unit(brain, factor) -> None:
    np.testing.assert_allclose(scale_by_tissue(factor * brain), scale_by_tissue(brain), atol=5e-3)


@pytest.mark.parametrize("gamma", [0.7, 1.4])
def test_scaling_by_tissue_hardly_depends_on_the_contrast(tissues, brain, gamma) -> None:
    scaled, changed = scale_by_tissue(brain), scale_by_tissue(130 * (brain / 130) ** gamma)
    assert np.abs(changed - scaled)[tissues > 0].mean() < 0.05
    for tissue in TISSUES:
        inside = tissues == tissue
        assert changed[inside].mean() == pytest.approx(scaled[inside].mean(), abs=0.05)


def test_vessels_get_at_most_the_brightest_value_and_change_nothing_else(tissues, brain) -> None:
    vessels = brain.copy()
    vessels[18, 5:9, 19] = 400
    scaled = scale_by_tissue(vessels)
    assert (scaled[18, 5:9, 19] == np.float32(BRIGHTEST)).all()
    others = vessels == brain
    np.testing.assert_allclose(scaled[others], scale_by_tissue(brain)[others], atol=5e-3)


def test_a_volume_of_hardly_any_voxel_has_no_tissues(mni_affine, tmp_path) -> None:
    volume = np.zeros(MNI152_T1_2MM.shape, np.float32)
    volume[40, 40, 40:60] = np.arange(1, 21)
    save_scan(tmp_path / "a.nii", volume, mni_affine)
    with pytest.raises(InputError, match=r"a\.nii: has only 20 voxels above 0"):
        ScanStore(2, "tissue").read_file(tmp_path / "a.nii")


def test_the_unit_of_the_intensities_does_not_matter(tissues, brain) -> None:
    for factor in (1e-6, 1e6):
        np.testing.assert_allclose(scale_by_tissue(np.float32(factor) * brain), scale_by_tissue(brain), atol=1e-3)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize("values", [(7,), (7, 9), (0.001, 5000)])
def test_volumes_without_tissues_are_scaled_to_finite_values(values) -> None:
    volume = np.zeros((9, 9, 9), np.float32)
    volume[2:8, 2:8, 2:8] = np.resize(values, (6, 6, 6))
    scaled = scale_by_tissue(volume)
    assert np.isfinite(scaled).all()
    assert 0 <= scaled.min() <= scaled.max() <= BRIGHTEST
    assert (scaled[volume == 0] == 0).all()
