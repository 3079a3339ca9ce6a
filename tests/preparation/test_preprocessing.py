"""Preprocessing of one scan: bias field, result, brains without skulls, wrong headers, fingerprint."""

from collections.abc import Iterator

import nibabel
import numpy as np
import pytest
import torch
from SimpleITK import ProcessObject
from threadpoolctl import threadpool_limits

from tests.conftest import ROOT
from utils.common.files import read_json
from utils.data.images import MNI152_T1_2MM
from utils.preparation import parameters
from utils.preparation.parameters import fingerprint, fingerprint_key
from utils.preparation.preprocessing import PreparedScan, correct_bias_field, preprocess_scan
from utils.preparation.quality import judge
from utils.preparation.template import load_template


@pytest.fixture(autouse=True, scope="module")
def threads() -> Iterator[None]:
    """Undo what preprocessing sets for its process."""
    before = torch.get_num_threads(), ProcessObject.GetGlobalDefaultNumberOfThreads()
    yield
    set_threads(*before)


def set_threads(of_torch: int, of_sitk: int) -> None:
    torch.set_num_threads(of_torch)
    ProcessObject.SetGlobalDefaultNumberOfThreads(of_sitk)


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
def result(simulated_head, tmp_path_factory) -> PreparedScan:
    path = tmp_path_factory.mktemp("chain") / "scan.nii"
    nibabel.save(simulated_head, path)
    set_threads(1, 1)
    return preprocess_scan(path, "affine", "cpu", 1)


def test_the_result_lies_on_the_grid_of_the_network(result) -> None:
    assert result.volume.shape == MNI152_T1_2MM.shape
    assert result.volume.min() == 0
    assert judge(result.quality, result.notes) == ("pass", [])
    assert not result.extracted
    truth = load_template().brain
    inside = result.volume > 0
    assert 2 * (inside & truth).sum() / (inside.sum() + truth.sum()) > 0.93
    # The simulated head stands in MNI152 space already.
    assert result.quality["rotation"] < 2
    assert 0.97 < result.quality["smallest_scale"] <= result.quality["largest_scale"] < 1.04


def test_the_result_does_not_depend_on_the_threads(simulated_head, result, tmp_path) -> None:
    nibabel.save(simulated_head, tmp_path / "scan.nii")
    set_threads(3, 3)
    with threadpool_limits(3, user_api="blas"):
        again = preprocess_scan(tmp_path / "scan.nii", "affine", "cpu", 3)
    np.testing.assert_array_equal(again.native_mask, result.native_mask)
    np.testing.assert_array_equal(again.volume, result.volume)
    assert again.quality == result.quality


@pytest.fixture(scope="module")
def result_without_skull(simulated_brain, tmp_path_factory) -> PreparedScan:
    path = tmp_path_factory.mktemp("chain") / "brain.nii"
    nibabel.save(simulated_brain, path)
    return preprocess_scan(path, "affine", "cpu", 1)


def test_a_brain_without_a_skull_is_taken_as_it_is(simulated_brain, result_without_skull) -> None:
    assert result_without_skull.extracted
    np.testing.assert_array_equal(result_without_skull.native_mask > 0, simulated_brain.get_fdata() > 0)
    assert judge(result_without_skull.quality, result_without_skull.notes) == ("pass", [])
    assert result_without_skull.quality["cut_area"] == 0


def test_a_brain_with_and_without_its_skull_gives_the_same(result, result_without_skull) -> None:
    both = (result.volume > 0) & (result_without_skull.volume > 0)
    assert 2 * both.sum() / ((result.volume > 0).sum() + (result_without_skull.volume > 0).sum()) > 0.96
    assert np.corrcoef(result.volume[both], result_without_skull.volume[both])[0, 1] > 0.97


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
    affine, nonlinear = (fingerprint(kind) for kind in ("affine", "nonlinear"))
    assert affine != nonlinear
    assert set(affine["versions"]) >= {"picsl_greedy", "SimpleITK", "torch"}


def test_the_fingerprint_is_the_same_on_builds_of_torch_for_cpu_and_gpu(monkeypatch) -> None:
    """Scans that were prepared on a GPU counted as unlike the training scans."""
    keys = set()
    for build in ("2.13.0+cpu", "2.13.0"):
        monkeypatch.setattr(parameters, "version", lambda package, build=build: build)
        keys.add(fingerprint_key(fingerprint("affine")))
    assert len(keys) == 1


def test_the_weights_that_ship_are_for_brains_that_are_prepared_as_now() -> None:
    now = {"fingerprint": fingerprint_key(fingerprint("affine")), "registration": "affine"}
    assert now in read_json(ROOT / "weights" / "weights.json")["preprocessing"], (
        "show that the brains are the same and add the fingerprint, or train anew"
    )
