"""Scans: damaged files, wrong headers, and what is no brain."""

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.affines import from_matvec

from tests.bad_input.harness import Case
from tests.conftest import VOXEL_SIZE
from utils.data.images import MNI152_T1_2MM, model_grid
from utils.preparation.template import load_template

TEST, TRAIN, PREDICT, PREPROCESS = "test_first_stage.py", "train_first_stage.py", "predict.py", "preprocess.py"
SCAN = Path("data/test/sub-18.nii.gz")
AFFINE = model_grid(VOXEL_SIZE).affine
PLACES = {"dim": 40, "datatype": 70, "pixdim": 76, "vox_offset": 108, "scl_slope": 112, "qform_code": 252, "sform_code": 254,
          "srow_x": 280, "magic": 344}  # fmt: skip


def packed(change: Callable[[bytes], bytes]) -> Callable[[], None]:
    """Change the bytes of the compressed file."""
    return lambda: SCAN.write_bytes(change(SCAN.read_bytes()))


def header(**fields: bytes) -> Callable[[], None]:
    """Write bytes into fields of the header."""

    def change() -> None:
        content = bytearray(gzip.decompress(SCAN.read_bytes()))
        for name, value in fields.items():
            content[PLACES[name] : PLACES[name] + len(value)] = value
        SCAN.write_bytes(gzip.compress(content))

    return change


def voxels(change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray = AFFINE) -> Callable[[], None]:
    """Change the voxels, or the affine."""

    def save() -> None:
        volume = np.asarray(nibabel.load(SCAN).dataobj)
        nibabel.save(nibabel.Nifti1Image(change(volume), affine), SCAN)

    return save


def replaced(make: Callable[[], object]) -> Callable[[], None]:
    """Remove the scan, and make something else in its place."""

    def run() -> None:
        SCAN.unlink()
        make()

    return run


def plain(change: Callable[[bytes], bytes]) -> Callable[[], None]:
    """Write the scan without compression, and change its bytes."""
    return replaced_by(SCAN.with_suffix(""), lambda content: change(gzip.decompress(content)))


def replaced_by(path: Path, change: Callable[[bytes], bytes] = bytes) -> Callable[[], None]:
    """Write the scan's changed bytes to another path."""

    def run() -> None:
        content = SCAN.read_bytes()
        SCAN.unlink()
        path.write_bytes(change(content))

    return run


def rgb(volume: np.ndarray) -> np.ndarray:
    return np.zeros(volume.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])


def forbidden(_: object) -> None:
    raise PermissionError(13, "Permission denied")


def save_other_contrast() -> None:
    """Write a brain in MNI152 space whose white matter is darker than its gray matter."""
    template = load_template()
    dark = np.where(template.brain, 150 - 100 * template.volume, 0)
    nibabel.save(nibabel.Nifti1Image(dark.astype(np.float32), MNI152_T1_2MM.affine), "prepared/sub-01.nii.gz")


def touch(*names: str) -> Callable[[], None]:
    def make() -> None:
        for name in names:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).touch()

    return make


def dicom() -> None:
    """Make a folder of a DICOM file whose name tells nothing."""
    Path("dicom/1").mkdir(parents=True)
    Path("dicom/1/IM0001").write_bytes(bytes(128) + b"DICM" + bytes(100))


def of(kind: str, said: str, make: Callable[[], object] | None, **more: Any) -> Case:
    """A case in which one of the scans to be tested is bad."""
    return Case(kind, TEST, more.pop("flags", []), said, make, **more)


SHEAR = from_matvec(np.array([[1, 0.2, 0], [0, 1, 0], [0, 0, 1]])) @ AFFINE
TURN = from_matvec(np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])) @ AFFINE
NUMBER = struct.Struct("<f").pack

CASES = [
    Case("a folder of DICOM files", PREPROCESS, ["--input", "dicom"], "convert it with dcm2niix", dicom),
    Case("a folder of DICOM files for training", TRAIN, ["--train_folder", "dicom"], "convert it with dcm2niix", dicom),
    Case("two derived scans of one session", PREPROCESS, ["--input", "fmriprep"], "give only one of them",
         touch("fmriprep/sub-01/anat/sub-01_space-MNI152Lin_T1w.nii.gz", "fmriprep/sub-01/anat/sub-01_space-MNIPediatric_T1w.nii.gz")),
    Case("a participant without scans", PREPROCESS, ["--input", "data/test", "--participants", "18,77"], "no scan of 77"),
    of("a scan that was cut off while it was copied", "damaged or cut off gzip file", packed(lambda b: b[: len(b) // 2])),
    of("a scan with a few wrong bytes", "damaged or cut off gzip file", packed(lambda b: b[:9000] + b"\0" * 40 + b[9040:])),
    of("a scan that does not have its checksum", "damaged or cut off gzip file", packed(lambda b: b[:-8] + bytes(4) + b[-4:])),
    of("an uncompressed scan that was cut off", "which the file cannot hold", plain(lambda b: b[:9000])),
    of("a scan that holds more than its header says", "holds much more than its header claims",
       packed(lambda b: gzip.compress(gzip.decompress(b) + bytes(2**26)))),
    of("a text file that is named .nii.gz", "not a readable NIfTI or MGH image",
       packed(lambda _: b"subject_id,age\nsub-18,50\n" * 40)),
    of("a scan of no bytes", "is empty, 0 bytes", packed(lambda _: b"")),
    of("a DICOM file that is named .nii.gz", "is a DICOM file; convert", packed(lambda _: bytes(128) + b"DICM" + bytes(900))),
    of("a scan with another magic string", "where NIfTI says n+1", header(magic=b"x+1\0")),
    of("the header of a pair of files", "a pair of files (.hdr, .img)", header(magic=b"ni1\0")),
    of("a header that claims terabytes", "30000x30000x30000 voxels, 108,000,000,000,352 bytes, which the file cannot hold",
       header(dim=struct.pack("<4h", 3, 30000, 30000, 30000))),
    of("a header that claims more voxels than any scan has", "1100x1100x1100 voxels, 5,324,000,352 bytes, which no scan has",
       packed(lambda b: gzip.compress(gzip.decompress(b).replace(struct.pack("<4h", 3, 23, 27, 23), struct.pack("<4h", 3, 1100, 1100, 1100)) + np.random.default_rng(0).bytes(6_000_000)))),
    of("a header with a negative size", "expected one 3-D volume", header(dim=struct.pack("<4h", 3, -23, 27, 23))),
    of("a header with an unknown type of voxels", "not a readable NIfTI or MGH image", header(datatype=struct.pack("<h", 999))),
    of("voxels that begin beyond the file", "which the file cannot hold", header(vox_offset=NUMBER(1e9))),
    of("a scaling whose intercept is not a number", "Valid slope but invalid intercept",
       header(scl_slope=NUMBER(1) + NUMBER(np.nan))),
    of("a slice", "has 2 dimensions, 23x27", voxels(lambda v: v[:, :, 11])),
    of("a series of volumes", "has 4 dimensions, 23x27x23x3", voxels(lambda v: np.stack([v] * 3, -1))),
    of("complex voxels", "no plain numbers but complex64", voxels(lambda v: v.astype(np.complex64))),
    of("voxels in color", "no plain numbers but RGB", voxels(rgb)),
    of("voxels that are not numbers", "voxels that are not finite", voxels(lambda v: np.where(v == v.max(), np.nan, v))),
    of("an infinite voxel", "voxels that are not finite", voxels(lambda v: np.where(v == v.max(), np.inf, v))),
    of("an affine that is the identity", "its affine is the identity", voxels(np.asarray, np.eye(4))),
    of("an affine with a shear", "not a scaled permutation of the axes", voxels(np.asarray, SHEAR)),
    of("a scan that lies askew", "oblique to MNI152 space; register it", voxels(np.asarray, TURN)),
    of("an affine without a third axis", "not a scaled permutation of the axes",
       header(sform_code=struct.pack("<h", 1), qform_code=struct.pack("<h", 0), srow_x=bytes(16))),
    of("an affine that is not finite", "not a scaled permutation of the axes",
       header(sform_code=struct.pack("<h", 1), srow_x=NUMBER(np.nan) * 4)),
    of("voxels of no size", "has 23x27x23 voxels of 1x1x1 mm; expected",
       header(qform_code=bytes(2), sform_code=bytes(2), pixdim=NUMBER(1) + bytes(12))),
    of("a scan on another grid", "has 22x27x23 voxels of 8x8x8 mm; expected 91x109x91 voxels of 2 mm",
       voxels(lambda v: v[1:])),
    of("a scan in another place", "its origin lies 30 mm off", voxels(np.asarray, from_matvec(np.eye(3), [30, 0, 0]) @ AFFINE)),
    of("an empty volume", "no voxel is above 0", voxels(lambda v: v * 0)),
    of("a mask", "is constant, every voxel above 0 is 1", voxels(lambda v: (v > 0).astype(np.uint8))),
    of("a segmentation", "holds only 2 different intensities", voxels(lambda v: (v > 0) + np.uint8(v > 80))),
    of("a label image", "looks like a label image",
       voxels(lambda v: ((v > 0) * (1 + sum(5**a * (np.indices(v.shape)[a] // 6) for a in range(3)))).astype(np.int16))),
    of("a probability map", "looks like a probability map", voxels(lambda v: ((v - 20) / 95).clip(0, 1))),
    of("a head, or a background that is not 0", "100% of its voxels are above 0", voxels(lambda v: v + 1)),
    of("a scan that was normalized", "are negative", voxels(lambda v: np.where(v > 0, v - v[v > 0].mean(), 0))),
    of("a link to a scan that was moved", "a broken link", replaced(lambda: SCAN.symlink_to("elsewhere.nii.gz"))),
    of("a link to itself", "a broken link", replaced(lambda: SCAN.symlink_to(SCAN.name))),
    of("a folder that is named as a scan", "is a folder; expected a file", replaced(SCAN.mkdir)),
    of("a pipe that is named as a scan", "is no file but a pipe or a device", replaced(lambda: os.mkfifo(SCAN))),
    of("a scan that may not be read", "may not be read; change its permissions", None,
       patches={"utils.data.image_files._read_claim": forbidden}),
    of("one scan in two files", "a second scan of sub-18 beside sub-18.nii",
       lambda: SCAN.with_suffix("").write_bytes(gzip.decompress(SCAN.read_bytes()))),
    of("a name of a scan that is not UTF-8", "the name 'sub-M\\udcfcller' is not UTF-8; rename it",
       replaced_by(SCAN.with_name(os.fsdecode(b"sub-M\xfcller.nii.gz")))),
    of("a folder of fsl_anat that was not finished", "holds no T1_to_MNI_nonlin_brain.nii.gz; run fsl_anat to its end",
       lambda: SCAN.parent.rename("data/sub-18.anat"), flags=["--test_folder", "data/sub-18.anat"]),
    Case("FreeSurfer's volumes among the scans to train on", TRAIN, ["--train_folder", "mgz"],
         "holds no .nii or .nii.gz file", touch("mgz/sub-01.mgz")),
    Case("pairs of .hdr and .img", PREPROCESS, ["--input", "pairs"], "and pairs of .hdr and .img first",
         touch("pairs/sub-01.hdr", "pairs/sub-01.img")),
    Case("raw scans that are not T1-weighted", PREDICT, ["--input", "raw"], "holds no scan",
         touch("raw/sub-01_T2w.nii.gz", "raw/sub-01_FLAIR.nii.gz")),
    Case("two raw scans of one name", PREPROCESS, ["--input", "raw"], "would be written to the same file",
         touch("raw/sub-01.nii.gz", "raw/sub-01_T1w.nii")),
    Case("a folder of fsl_anat among raw scans", PREPROCESS, ["--input", "sub-01.anat"], "is a folder of fsl_anat",
         touch("sub-01.anat/T1_to_MNI_nonlin_brain.nii.gz")),
    Case("scans beside folders of fsl_anat", PREDICT, ["--input", "both"], "holds both scans and fsl_anat's folders",
         touch("both/sub-01.anat/T1_to_MNI_nonlin_brain.nii.gz", "both/sub-02.nii.gz")),
    Case("a brain of another contrast", PREDICT, ["--output_dir", "out"], "does not look like a T1-weighted brain",
         save_other_contrast, status=1),
]  # fmt: skip
