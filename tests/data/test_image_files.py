"""Every good image file is read, whatever its form and name; nothing is allocated for what a header claims."""

import gzip
import os
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import VOXEL_SIZE, save_scan, small_volume
from utils.data.image_files import UnusableScanError, open_image, read_voxels
from utils.data.images import model_grid, read_image

AFFINE = model_grid(VOXEL_SIZE).affine
LONG = nibabel.nifti1.Nifti1Extension("comment", b"a note " * 400)


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    """Whole numbers, which every type holds."""
    return small_volume(np.random.default_rng(0), 50).round().clip(0, 127)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from([nibabel.Nifti1Image, nibabel.Nifti2Image]),
    dtype=st.sampled_from(["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]),
    order=st.sampled_from("<>"),
    axes=st.permutations(range(3)),
    flips=st.lists(st.sampled_from([1, -1]), min_size=3, max_size=3),
    slope=st.sampled_from([1.0, 0.5, 3.0]),
    more_axes=st.integers(0, 3),
    extended=st.booleans(),
    name=st.sampled_from(["a.nii", "a.nii.gz", "A.NII.GZ", "-a.nii.gz", "a b.nii", "ä\u200b日.nii.gz", "$(a);'\".nii"]),
    compressed=st.booleans(),
)  # fmt: skip
def test_every_form_of_a_scan_is_read(
    volume, folder, kind, dtype, order, axes, flips, slope, more_axes, extended, name, compressed
) -> None:
    """The content tells the form, not the name."""
    image = nibabel.Nifti1Image(volume, AFFINE).as_reoriented(np.column_stack([axes, flips]))
    data = np.asarray(image.dataobj).astype(f"{order}{dtype}").reshape(image.shape + (1,) * more_axes)
    header = kind.header_class(endianness=order)
    header.set_data_dtype(data.dtype)
    if extended:
        header.extensions.append(LONG)
    saved = kind(data, image.affine, header)
    saved.header.set_slope_inter(slope, 0)
    content = saved.to_bytes()
    path = folder / name
    path.write_bytes(gzip.compress(content, 1) if compressed else content)
    read = read_image(path, VOXEL_SIZE)
    path.unlink()
    np.testing.assert_allclose(read, volume * slope, rtol=1e-6)


@pytest.mark.parametrize("slope", [0.0, np.nan, np.inf])
def test_a_slope_that_means_nothing_scales_nothing(volume, tmp_path, slope) -> None:
    """As the NIfTI standard says of 0, and nibabel of what is not finite."""
    content = bytearray(nibabel.Nifti1Image(volume, AFFINE).to_bytes())
    content[112:116] = struct.pack("<f", slope)
    (tmp_path / "a.nii").write_bytes(content)
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii", VOXEL_SIZE), volume)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz"])
@pytest.mark.parametrize("shape", [(1000, 1000, 1001), (30000, 30000, 30000)])
def test_nothing_is_allocated_for_what_a_header_claims(volume, tmp_path, name, shape) -> None:
    """Here 4 GB and 108 TB."""
    path = tmp_path / name
    nibabel.save((nibabel.MGHImage if name == "a.mgz" else nibabel.Nifti1Image)(volume, AFFINE), path)
    content = bytearray(gzip.decompress(path.read_bytes()) if name.endswith("z") else path.read_bytes())
    place, claim = (4, struct.pack(">3i", *shape)) if name == "a.mgz" else (40, struct.pack("<4h", 3, *shape))
    content[place : place + len(claim)] = claim
    path.write_bytes(gzip.compress(content) if name.endswith("z") else content)
    tracemalloc.start()
    with (
        pytest.raises(UnusableScanError, match=r"claims .* bytes, which the file cannot hold"),
        open_image(path) as image,
    ):
        read_voxels(image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6


@pytest.mark.parametrize("place", range(0, 348, 4))
@pytest.mark.parametrize("value", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\x7f\x7f\x7f\x7f"])
def test_any_field_of_a_header_may_be_wrong(volume, tmp_path, place, value) -> None:
    """It is read, or refused in one line; no other error leaves the reader."""
    content = bytearray(nibabel.Nifti1Image(volume, AFFINE).to_bytes())
    content[place : place + 4] = value
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content, 1))
    said = ""
    try:
        with open_image(tmp_path / "a.nii.gz") as image:
            read_voxels(image)
    except UnusableScanError as error:
        said = str(error)
    assert "\n" not in said


def test_a_flipped_bit_of_a_compressed_file_is_found(volume, tmp_path) -> None:
    """nibabel stops before the checksum, so it would give other voxels without a word."""
    path = tmp_path / "a.nii.gz"
    save_scan(path, volume.astype(np.uint8), AFFINE)
    content = path.read_bytes()
    silent = 0
    for place in range(1000, len(content) // 2, len(content) // 30):
        damaged = bytearray(content)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        with suppress(Exception):  # what nibabel finds out itself
            silent += bool((np.asarray(nibabel.load(path).dataobj) != volume).any())
        with pytest.raises(UnusableScanError, match="damaged or cut off gzip file"), open_image(path) as image:
            read_voxels(image)
    assert silent


def test_a_file_that_may_not_be_read_is_named(volume, tmp_path) -> None:
    path = tmp_path / "a.nii"
    save_scan(path, volume, AFFINE)
    path.chmod(0)
    superuser = os.geteuid() == 0  # who may read everything
    try:
        if superuser:
            os.seteuid(65534)
        with pytest.raises(UnusableScanError, match="may not be read; change its permissions"), open_image(path):
            pass
    finally:
        if superuser:
            os.seteuid(0)
