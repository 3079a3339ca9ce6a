"""Preprocessing of one scan: bias field, result, wrong headers, fingerprint."""

import nibabel
import numpy as np
import pytest

from utils.data.images import MNI152_T1_2MM
from utils.preparation import preprocessing
from utils.preparation.preprocessing import correct_bias_field, preprocess_scan
from utils.preparation.quality import judge
from utils.preparation.template import load_template


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
    nibabel.save(nibabel.Nifti1Image(simulated_head.dataobj, lie @ simulated_head.affine), tmp_path / "scan.nii")
    found = preprocess_scan(tmp_path / "scan.nii", "affine", "cpu", 1)
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
