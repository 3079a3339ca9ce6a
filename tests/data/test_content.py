"""What is no scan is told by what it is, and no scan is taken for something else."""

from collections.abc import Callable

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tests.conftest import shared_folder
from utils.data.content import why_no_scan
from utils.data.images import coarsen_volume, find_tissue_means, scale_by_tissue
from utils.preparation.simulation import draw_subjects, load_anatomy, simulate_volume

TWO_MM = np.full(3, 2.0)


@pytest.fixture(scope="module")
def brain() -> np.ndarray:
    """A simulated brain without its skull."""
    return simulate_volume(draw_subjects(3)[0], 0).astype(np.float32)


def levels(volume: np.ndarray) -> np.ndarray:
    """Map fluid, gray and white matter to 0, 1 and 2, with partial volumes between them."""
    return np.interp(volume, find_tissue_means(volume), [0, 1, 2]).astype(np.float32)


def smooth(volume: np.ndarray) -> np.ndarray:
    return np.where(volume > 0, ndimage.gaussian_filter(volume, 0.6), 0)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda v: v * 0, "is empty"),
        (lambda v: (v > 0) * 7, "is constant, every voxel above 0 is 7; give a T1-weighted image, not a mask"),
        (lambda v: np.where(v > 0, 1 + np.rint(levels(v)), 0), "holds only 3 different intensities"),
        (lambda v: ndimage.zoom((v > 0) * 1.0, 1.3, order=1), "looks like a probability map or a smoothed mask"),
        (lambda v: ndimage.gaussian_filter((v > 0) * 1.0, 1), "looks like a probability map or a smoothed mask"),
        (lambda v: np.clip(levels(smooth(v)) - 1, 0, 1), "looks like a probability map or a smoothed mask: "),
        (lambda v: np.rint(255 * np.clip(levels(smooth(v)) - 1, 0, 1)), "looks like a probability map"),
        (lambda v: (v > 0) * (1 + sum(1000 // 2**a * (np.indices(v.shape)[a] // 9) for a in range(3))),
         "looks like a label image: "),
    ],
    ids=["empty", "mask", "segmentation", "resampled mask", "smoothed mask", "white matter map", "in 8 bits", "atlas"],
)  # fmt: skip
def test_what_is_no_scan_is_told_by_what_it_is(brain, made: Callable[[np.ndarray], np.ndarray], said: str) -> None:
    volume = made(brain).astype(np.float32)
    assert why_no_scan(volume, TWO_MM).startswith(said)
    fine = volume.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    assert why_no_scan(fine, TWO_MM / 2).startswith(said)  # stored at 1 mm
    if not said.startswith("is constant"):
        assert why_no_scan(volume * np.float32(0.01), TWO_MM).startswith(said)  # in another unit


def test_published_segmentations_are_refused(real_scans) -> None:
    paths = sorted(shared_folder("data/ixi_hh/dlmuse", "segmentations").iterdir())
    for path in paths[::10]:
        image = nibabel.load(path)
        labels = np.asarray(image.dataobj, np.float32)
        assert why_no_scan(labels, TWO_MM).startswith("looks like a label image")
        for kept in (labels > 150, labels % 4):  # a mask of some regions, and a few classes
            assert why_no_scan(np.float32(kept), TWO_MM)


# How people store scans: type, whether whole numbers, how many levels between 0 and the brightest voxel.
DTYPES = st.one_of(
    st.tuples(st.just(np.uint8), st.integers(60, 255)),
    st.tuples(st.just(np.int16), st.integers(60, 32767)),
    st.tuples(st.just(np.uint16), st.integers(60, 65535)),
    st.tuples(st.sampled_from([np.float32, np.float64]), st.floats(1e-6, 1e9)),
)
ORDERS = st.permutations(range(3))
FLIPS = st.lists(st.sampled_from([1, -1]), min_size=3, max_size=3)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1), stored=DTYPES, order=ORDERS, flips=FLIPS, gamma=st.floats(0.5, 2.0),
    noise=st.floats(0.0, 0.2), clipped=st.floats(0.0, 0.1), factor=st.sampled_from([1, 2, 4]),
    zoom=st.tuples(*[st.sampled_from([0.5, 1.0, 1.7])] * 3), background=st.floats(0.0, 0.1),
    skull=st.booleans(),
)  # fmt: skip
def test_no_scan_is_refused(
    brain, seed, stored, order, flips, gamma, noise, clipped, factor, zoom, background, skull
) -> None:
    """Any type, orientation, size, contrast, noise and bit depth; with and without a skull or a background."""
    rng = np.random.default_rng(seed)
    volume = brain / brain.max()
    if skull:
        head = ndimage.binary_dilation(volume > 0, iterations=3)
        shell = ndimage.binary_dilation(head, iterations=3) & ~head
        volume = volume + shell * np.float32(rng.uniform(0.3, 1.2)) * rng.uniform(0.8, 1.2, volume.shape)
    inside = volume > 0
    volume = volume**gamma
    volume = np.hypot(volume + noise * rng.standard_normal(volume.shape), noise * rng.standard_normal(volume.shape))
    volume = np.where(inside, volume, background * rng.random(volume.shape) * skull)
    if factor > 1:
        volume, size = coarsen_volume(volume, factor), TWO_MM * factor
    else:
        volume, size = ndimage.zoom(volume, zoom, order=1), TWO_MM / zoom
    volume = np.minimum(volume, np.quantile(volume[volume > 0.1 * np.quantile(volume, 0.99)], 1 - clipped))
    kind, largest = stored
    volume = volume * (largest / volume.max())
    if np.issubdtype(kind, np.integer):
        volume = np.rint(volume)
    volume = np.transpose(volume.astype(kind), order)[tuple(slice(None, None, flip) for flip in flips)]
    size = size[list(order)]
    assert why_no_scan(volume.astype(np.float32), size) == ""


def test_a_scan_scaled_by_tissue_is_a_scan(brain) -> None:
    assert why_no_scan(scale_by_tissue(brain), TWO_MM) == ""
    anatomy = load_anatomy()
    assert why_no_scan(np.where(anatomy.white > 0.5, anatomy.white, 0), TWO_MM)


def test_real_scans_are_scans(real_scans) -> None:
    """A few of each kind; `all` of them were tried by hand."""
    multisite = shared_folder("data/multisite", "scans of other scanners")
    for folder in (
        real_scans / "t1w_raw", real_scans / "t1w_mni_2mm", multisite / "novosibirsk/t1w", multisite / "ucla/t1w",
    ):  # fmt: skip
        for path in sorted(folder.iterdir())[::30]:
            image = nibabel.load(path)
            volume = np.asarray(image.dataobj, np.float32)
            assert why_no_scan(volume, np.array(image.header.get_zooms()[:3])) == "", path
