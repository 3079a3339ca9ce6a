"""The chain from a raw scan to the model's grid: reading, orientation, brain, result."""

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from utils.data.images import MNI152_T1_2MM
from utils.preparation import preprocessing
from utils.preparation.preprocessing import correct_bias_field, preprocess_scan
from utils.preparation.quality import judge
from utils.preparation.raw_scans import UnusableScanError, read_raw_scan
from utils.preparation.template import load_template


def saved(folder: Path, data: np.ndarray, affine: np.ndarray | None, **header: object) -> Path:
    path = folder / "scan.nii"
    image = nibabel.Nifti1Image(data, affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def test_all_48_orientations_are_read_alike(simulated_head, tmp_path) -> None:
    data, affine = np.asarray(simulated_head.dataobj), simulated_head.affine
    wanted = read_raw_scan(saved(tmp_path, data, affine))
    assert nibabel.aff2axcodes(wanted.affine) == ("R", "A", "S")
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            turn = np.stack([order, signs], 1)
            found = read_raw_scan(
                saved(tmp_path, apply_orientation(data, turn), affine @ inv_ornt_aff(turn, data.shape))
            )
            np.testing.assert_array_equal(found.volume, wanted.volume)
            np.testing.assert_allclose(found.affine, wanted.affine, atol=1e-4)
            back = found.to_native(np.ones(found.volume.shape, np.uint8))
            assert back.shape == apply_orientation(data, turn).shape
            place = np.argwhere(found.volume == found.volume.max())[0]
            one = np.zeros(found.volume.shape, np.uint8)
            one[tuple(place)] = 1
            assert apply_orientation(data, turn)[found.to_native(one) == 1] == data.max()


def test_padding_negative_and_missing_background_change_nothing(simulated_head, tmp_path) -> None:
    data, affine = np.asarray(simulated_head.dataobj, np.float64), simulated_head.affine
    wanted = read_raw_scan(saved(tmp_path, data, affine))
    padded = affine @ nibabel.affines.from_matvec(np.eye(3), [-40] * 3)
    for changed, matrix in (
        (np.pad(data, 40), padded),
        (np.where(data > 0, data, np.nan), affine),
        (data - 1000, affine),
        (data[..., None], affine),
    ):
        found = read_raw_scan(saved(tmp_path, changed, matrix))
        np.testing.assert_allclose(found.volume, wanted.volume, atol=1)
        np.testing.assert_allclose(found.affine, wanted.affine, atol=1e-4)


def test_stray_negative_voxels_shift_nothing(simulated_head, tmp_path) -> None:
    data, affine = np.asarray(simulated_head.dataobj, np.float32), simulated_head.affine
    wanted = read_raw_scan(saved(tmp_path, data, affine)).volume
    ringing = data.copy()
    ringing[60, 60, 60] = -150
    filled = np.where(data > 0, data, -1024)
    filled[60, 60, 61] = -2
    for changed in (ringing, filled):
        found = read_raw_scan(saved(tmp_path, changed, affine)).volume
        assert (found != wanted).sum() <= 2


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (np.zeros((40, 40, 40)), "constant"),
        (np.full((40, 40, 40), np.nan), "constant or not finite"),
        (np.ones((40, 40, 40, 2)), "expected one 3-D volume"),
        (np.ones((40, 40)), "expected one 3-D volume"),
        (np.ones((40, 40, 5)), "too coarse"),
        (np.ones((40, 40, 40), np.complex64), "not real numbers"),
    ],
)
def test_what_is_no_head_is_refused(data, complaint, tmp_path) -> None:
    with pytest.raises(UnusableScanError, match=complaint):
        read_raw_scan(saved(tmp_path, data, np.eye(4) * 2))


def test_broken_files_and_headers_are_refused(tmp_path) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(b"no image")
    with pytest.raises(UnusableScanError, match="not a readable NIfTI"):
        read_raw_scan(path)
    flat = saved(tmp_path, np.random.default_rng(0).random((40, 40, 40)), None, sform_code=1, srow_x=(2, 0, 0, 0))
    with pytest.raises(UnusableScanError, match="affine"):
        read_raw_scan(flat)


def test_headers_without_orientation_are_noted(simulated_head, tmp_path) -> None:
    data = np.asarray(simulated_head.dataobj)
    scan = read_raw_scan(saved(tmp_path, data, None))
    assert "no orientation" in scan.notes[0]
    image = nibabel.Nifti1Image(data, simulated_head.affine)
    image.set_qform(np.diag([-1.0, 1, 1, 1]) @ simulated_head.affine, 1)
    image.set_sform(simulated_head.affine, 1)
    nibabel.save(image, tmp_path / "scan.nii")
    assert "disagree (RAS, LAS)" in read_raw_scan(tmp_path / "scan.nii").notes[0]


def test_a_known_bias_field_is_removed(simulated_head) -> None:
    volume = np.asarray(simulated_head.dataobj, np.float32)
    mask = np.zeros(volume.shape, bool)
    mask[12:-12, 12:-12, 12:-12] = load_template().brain
    mask &= volume > 0
    volume, mask = (part[::2, ::2, ::2] for part in (volume, mask))
    axis = np.linspace(-1, 1, volume.shape[1])[:, None]
    field = np.exp(0.8 * axis + 0.5 * axis**2).astype(np.float32)
    sizes = np.full(3, 4.0)
    plain, corrected = (correct_bias_field(part, mask, sizes) for part in (volume, volume * field))
    before = np.log(np.broadcast_to(field, volume.shape))[mask].std()
    after = np.log(np.maximum(corrected, 1) / np.maximum(plain, 1))[mask].std()
    assert before > 0.2
    assert after < 0.2 * before


@pytest.fixture(scope="module")
def result(simulated_head, tmp_path_factory) -> preprocessing.PreparedScan:
    path = tmp_path_factory.mktemp("chain") / "scan.nii"
    nibabel.save(simulated_head, path)
    return preprocess_scan(path, "affine", "cpu", 1)


def test_the_result_lies_on_the_grid_of_the_network(result) -> None:
    assert result.volume.shape == MNI152_T1_2MM.shape
    assert result.volume.min() == 0
    assert judge(result.quality, result.notes) == ("pass", [])
    truth = load_template().brain
    inside = result.volume > 0
    assert 2 * (inside & truth).sum() / (inside.sum() + truth.sum()) > 0.93
    # The simulated head stands in MNI152 space already.
    assert result.quality["rotation"] < 2
    assert 0.97 < result.quality["smallest_scale"] <= result.quality["largest_scale"] < 1.04


def test_a_lying_header_is_found_and_marked(simulated_head, result, tmp_path) -> None:
    lie = np.eye(4)[[1, 2, 0, 3]]
    found = preprocess_scan(
        saved(tmp_path, np.asarray(simulated_head.dataobj), lie @ simulated_head.affine), "affine", "cpu", 1
    )
    verdict, reasons = judge(found.quality, found.notes)
    assert verdict == "doubtful"
    assert any("left and right cannot be known" in reason for reason in reasons)
    brain = (result.volume > 0) | (found.volume > 0)
    assert np.corrcoef(result.volume[brain], found.volume[brain])[0, 1] > 0.95


def test_real_scans_pass_and_the_brain_is_inside_the_mask(real_scans) -> None:
    path = sorted((real_scans / "dlmuse").iterdir())[0]
    found = preprocess_scan(real_scans / "t1w_raw" / path.name, "nonlinear", "cpu", 1)
    assert judge(found.quality, found.notes) == ("pass", [])
    brain = np.asarray(nibabel.load(path).dataobj) > 0
    assert (brain & (found.native_mask > 0)).sum() > 0.975 * brain.sum()
    assert found.quality["correlation"] > 0.6
    assert found.quality["smallest_jacobian"] > 0


def test_the_fingerprint_tells_the_parameters() -> None:
    affine, nonlinear = (preprocessing.fingerprint(kind) for kind in ("affine", "nonlinear"))
    assert affine != nonlinear
    assert set(affine["versions"]) >= {"deepbet", "picsl_greedy", "SimpleITK"}
