"""Raw scans: found in files, folders and BIDS data sets, read in any orientation, refused if unusable."""

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from utils.common.errors import InputError
from utils.preparation.raw_scans import UnusableScanError, find_raw_scans, looks_extracted, read_raw_scan


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_files_folders_and_bids_are_found(tmp_path) -> None:
    touch(
        tmp_path / "bids/sub-01/anat/sub-01_T1w.nii.gz",
        tmp_path / "bids/sub-01/anat/sub-01_T2w.nii.gz",
        tmp_path / "bids/sub-02/ses-b/anat/sub-02_ses-b_T1w.nii",
        tmp_path / "bids/sub-02/ses-a/anat/sub-02_ses-a_run-2_T1w.nii.gz",
        tmp_path / "bids/derivatives/sub-03/anat/sub-03_T1w.nii.gz",
        tmp_path / "plain/b_T1w.nii", tmp_path / "plain/a.nii.gz", tmp_path / "plain/.hidden.nii",
        tmp_path / "plain/x.txt", tmp_path / "plain/c.mgz", tmp_path / "plain/.d.mgz",
    )  # fmt: skip
    names = [scan.name for scan in find_raw_scans(tmp_path / "bids")]
    assert names == ["sub-01", "sub-02_ses-a_run-2", "sub-02_ses-b"]
    assert [scan.name for scan in find_raw_scans(tmp_path / "plain")] == ["a", "b", "c"]
    assert [scan.name for scan in find_raw_scans(tmp_path / "plain/a.nii.gz")] == ["a"]
    for wrong, complaint in (
        (tmp_path / "none", "no such"),
        (tmp_path, "holds no scan"),
        (tmp_path / "plain/x.txt", "holds no"),
    ):
        with pytest.raises(InputError, match=complaint):
            find_raw_scans(wrong)
    touch(tmp_path / "plain/b.nii.gz")
    with pytest.raises(InputError, match="same file"):
        find_raw_scans(tmp_path / "plain")


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
        (np.ones((40, 40, 40), np.complex64), "no plain numbers but complex64"),
    ],
)
def test_what_is_no_head_is_refused(data, complaint, tmp_path) -> None:
    with pytest.raises(UnusableScanError, match=complaint):
        read_raw_scan(saved(tmp_path, data, np.eye(4) * 2))


def test_a_brain_saved_with_the_identity_is_told_of_its_affine(simulated_brain, tmp_path) -> None:
    """Not of its volume, which is 8 times too small then."""
    data = np.asarray(simulated_brain.dataobj)
    with pytest.raises(
        UnusableScanError, match="its affine is the identity, so that voxel size, orientation and place"
    ):
        read_raw_scan(saved(tmp_path, data[12:-12, 12:-12, 12:-12], np.eye(4)))
    assert "its affine is the identity" in read_raw_scan(saved(tmp_path, data, np.eye(4))).notes[0]


def test_other_contrasts_of_a_subject_are_left_out(tmp_path, capsys) -> None:
    names = ("sub-1_T1w", "sub-1_T2w", "sub-1_FLAIR", "sub-1_run-1_bold", "sub-1_space-T1w_desc-brain_mask", "T2wise")
    touch(*(tmp_path / f"{name}.nii.gz" for name in names))
    assert [scan.path.name for scan in find_raw_scans(tmp_path)] == ["T2wise.nii.gz", "sub-1_T1w.nii.gz"]
    assert "note: 4 files are left out, because their names say" in capsys.readouterr().out


def test_broken_files_and_headers_are_refused(tmp_path) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(b"no image")
    with pytest.raises(UnusableScanError, match="not a readable NIfTI or MGH image"):
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


def test_an_mgz_is_read_as_the_same_volume_as_the_nifti(simulated_head, tmp_path) -> None:
    data, affine = np.asarray(simulated_head.dataobj), simulated_head.affine
    wanted = read_raw_scan(saved(tmp_path, data, affine))
    turn = ornt_transform(io_orientation(affine), axcodes2ornt("LIA"))  # as FreeSurfer stores its volumes
    image = nibabel.MGHImage(apply_orientation(data, turn), affine @ inv_ornt_aff(turn, data.shape))
    nibabel.save(image, tmp_path / "scan.mgz")
    found = read_raw_scan(tmp_path / "scan.mgz")
    np.testing.assert_array_equal(found.volume, wanted.volume)
    np.testing.assert_allclose(found.affine, wanted.affine, atol=1e-4)
    assert found.notes == []


def test_a_brain_without_its_skull_is_told_from_a_head(simulated_head, simulated_brain, tmp_path) -> None:
    for image, extracted in ((simulated_head, False), (simulated_brain, True)):
        path = saved(tmp_path, np.asarray(image.dataobj), image.affine)
        assert read_raw_scan(path).extracted == extracted
        for given in (True, False):
            assert read_raw_scan(path, extracted=given).extracted == given


def test_what_has_another_size_more_pieces_or_holes_is_no_extracted_brain(simulated_brain) -> None:
    brain, size = np.asarray(simulated_brain.dataobj), np.full(3, 2.0)
    assert looks_extracted(brain, size)
    assert not looks_extracted(brain, size / 2)
    assert not looks_extracted(brain, size * 1.5)
    half = brain.shape[0] // 2
    for damaged in (slice(half, half + 1), (slice(half - 8, half + 8), slice(60, 76), slice(50, 66))):
        changed = brain.copy()
        changed[damaged] = 0  # two halves, or a hole as large as the ventricles
        assert not looks_extracted(changed, size)


def test_zeros_around_an_extracted_brain_are_no_border_of_the_scan(simulated_head, simulated_brain, tmp_path) -> None:
    cut = np.asarray(simulated_head.dataobj).copy()
    cut[:, :, 60:] = 0  # what was not scanned
    head = read_raw_scan(saved(tmp_path, cut, simulated_head.affine), extracted=False)
    inside = np.argwhere(head.volume > 0)
    assert [part.stop for part in head.scanned] == (inside.max(0) + 1).tolist()
    assert [part.start for part in head.scanned] == inside.min(0).tolist()
    brain = read_raw_scan(saved(tmp_path, np.asarray(simulated_brain.dataobj), simulated_brain.affine))
    assert brain.scanned == tuple(slice(size) for size in brain.volume.shape)
