"""Quantities, verdict and picture."""

import numpy as np
import pytest
from nibabel.affines import from_matvec
from PIL import Image

from utils.data.images import MNI152_T1_2MM, read_image
from utils.preparation.overview import PICTURE_SIZE
from utils.preparation.parameters import LIMITS
from utils.preparation.quality import (
    NONLINEAR_ONLY,
    Alignment,
    cut_area,
    draw_picture,
    judge,
    measure_quality,
    white_to_gray,
)
from utils.preparation.registration import cube_rotations
from utils.preparation.simulation import draw_subjects, simulate_volume
from utils.preparation.template import load_template, load_tissue_maps

GOOD = {
    "brain_volume": 1500.0, "dice": 0.97, "coverage": 0.98, "correlation": 0.7, "outside_field_of_view": 0.0,
    "rotation": 10.0, "smallest_scale": 0.9, "largest_scale": 1.0, "signal_to_noise": 20.0, "cut_area": 2.0,
    "affine_dice": 0.95, "smallest_jacobian": 0.4, "largest_jacobian": 2.0,
    "white_to_gray": 1.25,
}  # fmt: skip


def test_every_quantity_is_judged() -> None:
    assert set(GOOD) == set(LIMITS)
    assert judge(GOOD, []) == ("pass", [])
    for name, limits in LIMITS.items():
        for bad, expected in (
            (limits.fail_below - 1e-3, "fail"), (limits.doubt_below - 1e-3, "doubtful"),
            (limits.doubt_above + 1e-3, "doubtful"), (limits.fail_above + 1e-3, "fail"),
        ):  # fmt: skip
            if np.isfinite(bad):
                verdict, reasons = judge(GOOD | {name: bad}, [])
                assert verdict == expected, (name, bad)
                assert reasons[0].startswith(f"{name} is ")


def test_what_could_not_be_measured_is_doubtful() -> None:
    without = {name: value for name, value in GOOD.items() if name != "signal_to_noise"}
    assert judge(without, []) == ("doubtful", ["signal_to_noise could not be measured"])
    affine = {name: value for name, value in GOOD.items() if name not in NONLINEAR_ONLY}
    assert judge(affine, []) == ("pass", [])


def test_a_note_makes_doubtful_and_never_mends_a_failure() -> None:
    assert judge(GOOD, ["no orientation"]) == ("doubtful", ["no orientation"])
    assert judge(GOOD | {"dice": 0.5}, ["no orientation"])[0] == "fail"


def measured(volume: np.ndarray, native: np.ndarray, affine: np.ndarray, matrix: np.ndarray) -> dict[str, float]:
    everywhere = tuple(slice(size) for size in native.shape)
    alignment = Alignment(affine, matrix, None, affine)
    return measure_quality(volume, native, native > 0, alignment, everywhere, load_template())


def test_the_template_itself_is_perfect() -> None:
    template = load_template()
    quality = measured(template.volume, template.volume, MNI152_T1_2MM.affine, np.eye(4))
    assert quality["dice"] == pytest.approx(1, abs=2e-3)
    assert quality["correlation"] == pytest.approx(1)
    assert quality["rotation"] == pytest.approx(0, abs=1e-3)
    assert quality["outside_field_of_view"] == 0
    assert quality["brain_volume"] == pytest.approx((template.volume > 0).sum() * 8 / 1000)


def test_what_was_not_scanned_and_what_was_turned_is_measured() -> None:
    template = load_template()
    cut = template.volume[:, :, :60]  # the top is missing
    quality = measured(template.volume, cut, MNI152_T1_2MM.affine, np.eye(4))
    missing = template.brain[:, :, 60:].sum() / template.brain.sum()
    assert quality["outside_field_of_view"] == pytest.approx(missing)
    turned = from_matvec(cube_rotations()[5] * 0.9)
    quality = measured(template.volume, template.volume, MNI152_T1_2MM.affine, turned)
    assert quality["rotation"] >= 90
    assert quality["smallest_scale"] == pytest.approx(0.9)


def test_noise_is_measured() -> None:
    template = load_template()
    rng = np.random.default_rng(0)
    smooth = np.where(template.brain, 100.0, 0).astype(np.float32)
    for sigma in (2.0, 10.0):
        noisy = np.where(template.brain, smooth + rng.normal(0, sigma, smooth.shape), 0)
        quality = measured(smooth, noisy, MNI152_T1_2MM.affine, np.eye(4))
        assert quality["noise"] == pytest.approx(sigma, rel=0.1)


def test_a_brain_that_reaches_the_border_of_what_was_scanned_is_measured() -> None:
    brain = load_template().brain
    cut = np.pad(brain[:, :, :60], ((0, 0), (0, 0), (0, 9)))  # zeros behind the cut
    scanned = (slice(0, 91), slice(0, 109), slice(0, 60))
    whole = tuple(slice(size) for size in cut.shape)
    expected = brain[:, :, 59].sum() * 3 * 2 / 100
    assert cut_area(cut, scanned, np.array([3.0, 2.0, 5.0])) == pytest.approx(expected)
    assert cut_area(cut, whole, np.array([3.0, 2.0, 5.0])) < 0.2 * expected


def test_the_quality_has_the_cut_at_the_border_of_what_was_scanned() -> None:
    template = load_template()
    alignment = Alignment(MNI152_T1_2MM.affine, np.eye(4), None, MNI152_T1_2MM.affine)
    areas = [
        measure_quality(template.volume, template.volume, template.brain, alignment, scanned, template)["cut_area"]
        for scanned in ((slice(0, 91), slice(0, 109), slice(0, 60)), (slice(0, 91), slice(0, 109), slice(0, 91)))
    ]
    assert areas[0] == pytest.approx(template.brain[:, :, 59].sum() * 4 / 100)
    assert areas[1] < 8


def test_the_picture_shows_slices_and_no_face(tmp_path) -> None:
    template = load_template()
    head = np.full(template.volume.shape, 0.9, np.float32)  # a face would be in it
    draw_picture(tmp_path / "a.png", head, template.volume, template, "sub-01", "doubtful", ["dice is low"])
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    assert (picture.shape[1], picture.shape[0]) == PICTURE_SIZE
    assert picture.std() > 20
    colours = {tuple(colour) for colour in picture.reshape(-1, 3)}
    assert any(r > 200 and g < 120 for r, g, b in colours)  # the outline of the template
    below = picture[picture.shape[0] // 2 :]
    assert (below.max(-1) < 30).mean() > 0.3  # what lies far from the brain is black


@pytest.mark.parametrize(
    ("contrast", "fluid", "gray", "white", "verdict"),
    [
        ("T1", 0.3, 0.7, 1.0, "pass"), ("T2", 1.0, 0.6, 0.4, "fail"), ("FLAIR", 0.15, 0.7, 0.6, "fail"),
        ("proton density", 1.0, 0.85, 0.7, "fail"), ("diffusion", 0.2, 0.8, 0.7, "fail"), ("CT", 0.95, 1.0, 0.98, "fail"),
        ("fractional anisotropy", 0.1, 0.2, 0.7, "doubtful"),
    ],
)  # fmt: skip
def test_other_contrasts_are_told_by_white_and_gray_matter(contrast, fluid, gray, white, verdict) -> None:
    """FLAIR and diffusion correlate with the template by 0.6, because their fluid is dark, too."""
    brain, maps = load_template().brain, load_tissue_maps()
    mixed = brain * (fluid + (gray - fluid) * maps[0] + (white - fluid) * maps[1])
    noisy = mixed + brain * np.random.default_rng(0).normal(0, 0.03, brain.shape)
    found = white_to_gray(np.maximum(noisy, 0.01 * brain))
    assert judge(GOOD | {"white_to_gray": found}, [])[0] == verdict, contrast


def test_simulated_brains_have_the_contrast_of_scans_and_inverted_ones_have_not() -> None:
    for number, subject in enumerate(draw_subjects(4)):
        volume = simulate_volume(subject, number).astype(np.float32)
        assert 1.06 < white_to_gray(volume) < 2
        assert white_to_gray(np.where(volume > 0, volume.max() + 1 - volume, 0)) < 1


def test_no_real_scan_is_taken_for_another_contrast(real_scans) -> None:
    """Of 136 scans the lowest has 1.158."""
    paths = sorted((real_scans / "t1w_mni_2mm").iterdir())[::12]
    assert min(white_to_gray(read_image(path, 2)) for path in paths) > 1.1
