"""Find raw scans, and read them: checked, in the standard orientation, cropped to the head."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.orientations import aff2axcodes
from scipy import ndimage

from utils.common.errors import InputError, list_some
from utils.data.content import why_no_scan
from utils.data.image_files import UnusableScanError, is_image, open_image, read_voxels
from utils.data.images import LOST_AFFINE, VOXEL_SIZES, model_grid
from utils.data.names import scan_name, unusable_name
from utils.data.scan_folders import (
    EVERYTHING,
    FSL_PRODUCT,
    Selection,
    file_name_of,
    is_fsl_folder,
    list_bids,
    list_raw_products,
    one_version,
    say_if_derivative,
    why_no_scans,
)

LEAST_VOXELS = 16  # along each axis
LARGEST_VOXEL = 10.0  # mm
FILLED_SHARE = 0.01  # share of the voxels from which a negative number counts as background
FOREGROUND_LEVEL = 0.1  # share of the 99th percentile
FOREGROUND_AREA = 200.0  # square mm; a plane with more foreground belongs to the head
OTHER_CONTENTS = re.compile(
    r"_(T2w|FLAIR|PDw|PDT2|inplaneT[12]|T2star(w|map)?|T[12](map|rho)|angio|bold|sbref|cbv|asl|m0scan|dwi|epi|"
    r"magnitude[12]?|phase(diff|[12])?|fieldmap|mask|dseg|probseg)\.(nii(\.gz)?|mg[zh])$"
)
MARGIN = 10.0  # mm around the head
EXTRACTED_VOLUME = 600.0, 2500.0  # ml above 0 in a brain without its skull; the leanest heads have 2580
EXTRACTED_PIECES = 0.005  # largest share of them that lies apart, and of holes; heads have 0.011 and more of holes


@dataclass(frozen=True)
class RawFile:
    """A raw scan and the name of its result.

    Parameters
    ----------
    name : str
        Subject, and session where there is one.
    path : Path
    """

    name: str
    path: Path


@dataclass(frozen=True)
class RawScan:
    """A raw scan, cropped to the head.

    Parameters
    ----------
    volume : (D, H, W) float32 array, 0 or more; axes point right, anterior, superior
    affine, header : (4, 4) float arrays, voxel to mm
        As used here, and as the file gives it, in case the two differ.
    notes : list of str
        What the header leaves uncertain.
    to_native : callable
        Puts a volume of this shape back on the file's grid.
    extracted : bool
        Whether this is a brain without its skull.
    """

    volume: np.ndarray
    affine: np.ndarray
    header: np.ndarray
    notes: list[str]
    to_native: Callable[[np.ndarray], np.ndarray]
    extracted: bool

    @property
    def scanned(self) -> tuple[slice, ...]:
        """The box of what was scanned, which zeros may surround; around an extracted brain they tell nothing."""
        if self.extracted:
            return tuple(slice(size) for size in self.volume.shape)
        return tuple(ndimage.find_objects((self.volume > 0).astype(np.int8))[0])

    @property
    def voxel_size(self) -> np.ndarray:
        """Size of a voxel along each axis, (3,) float array, mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


def find_raw_scans(source: Path, selection: Selection = EVERYTHING) -> list[RawFile]:
    """List the scans of a file, a folder, a BIDS data set, or of folders of FreeSurfer, FastSurfer or UK Biobank.

    Parameters
    ----------
    source : Path
    selection : Selection
        The people and sessions that are wanted.

    Returns
    -------
    list of RawFile, sorted by name

    Raises
    ------
    InputError
        If there is no scan, or two scans would get the same name.

    Notes
    -----
    Of several versions of a scan in BIDS, `one_version` chooses one.
    """
    if source.is_file():
        paths = [source] if is_image(source) else []
    elif is_fsl_folder(source):
        raise InputError(
            f"{source}: is a folder of fsl_anat, whose {FSL_PRODUCT} is prepared already; give it to "
            "bash_prepare_dataset.sh or bash_predict.sh, or preprocess the raw scan that it was made from"
        )
    elif source.is_dir():
        say_if_derivative(source)
        paths = _t1_weighted(sorted(path for path in source.iterdir() if is_image(path)))
        paths += list_bids(source) + list_raw_products(source)
    else:
        raise InputError(f"{source}: no such file or folder; set INPUT (--input) to T1-weighted scans")
    if not paths:
        raise InputError(
            why_no_scans(
                source,
                "holds no scan; expected .nii, .nii.gz or .mgz files, the root of a BIDS data set with "
                "sub-*/[ses-*/]anat/*_T1w.nii.gz, or FreeSurfer's subjects with */mri/orig.mgz; convert DICOM "
                "(dcm2niix does) and pairs of .hdr and .img first",
            )
        )
    found: dict[str, Path] = {}
    problems = []
    for path in one_version(selection.of(paths)):
        name = scan_name(file_name_of(path))
        wrong = unusable_name(name)
        if wrong:
            problems.append(f"{path.parent}: {wrong}")
        elif found.setdefault(name, path) != path:
            problems.append(f"{path}: would be written to the same file as {found[name]}; give only one of them")
    if problems:
        raise InputError(problems)
    return [RawFile(name, found[name]) for name in sorted(found)]


def _t1_weighted(paths: list[Path]) -> list[Path]:
    """Leave out files whose names, by the rules of BIDS, say that they hold something else."""
    others = [path.name for path in paths if OTHER_CONTENTS.search(path.name)]
    if others:
        print(
            f"note: {len(others)} files are left out, because their names say that they are not T1-weighted: "
            f"{list_some(others)}"
        )
    return [path for path in paths if path.name not in others]


def read_raw_scan(path: Path, turn: np.ndarray | None = None, extracted: bool | None = None) -> RawScan:
    """Read a scan, check it, bring it to RAS orientation by its header, and crop it to the head.

    Parameters
    ----------
    path : Path
    turn : (3, 3) float array or None
        How the head is rotated in the header's world, if the header is wrong
        about that; see `utils.preparation.registration.find_start`.
    extracted : bool or None
        Whether it is a brain without its skull; None: `looks_extracted` tells.

    Raises
    ------
    UnusableScanError
        If it is not a single volume of real numbers that could show a head.
    """
    with open_image(path) as image:
        affine = np.asarray(image.affine, dtype=np.float64)
        _check_header(image.shape[:3], affine)
        notes = _header_notes(image)
        data = read_voxels(image)
    if turn is not None:
        notes.append("the header is wrong about the orientation of the head; left and right cannot be known")
        affine = nibabel.affines.from_matvec(turn.T) @ affine
    upright = nibabel.as_closest_canonical(nibabel.Nifti1Image(data, affine))
    volume = np.asarray(upright.dataobj, dtype=np.float32)
    finite = np.isfinite(volume)
    if not finite.any() or np.ptp(volume[finite]) == 0:
        raise UnusableScanError("its voxels are constant or not finite")
    volume = _with_zero_background(volume, finite)
    upright_size = np.linalg.norm(upright.affine[:3, :3], axis=0)
    reason = why_no_scan(volume, upright_size)
    if reason:
        raise UnusableScanError(reason)
    if extracted is None:
        extracted = looks_extracted(volume, upright_size)
    box = _head_box(volume, upright_size)
    corner = np.array([part.start for part in box])
    cropped = upright.affine @ nibabel.affines.from_matvec(np.eye(3), corner)
    header = cropped if turn is None else nibabel.affines.from_matvec(turn) @ cropped

    def to_native(part: np.ndarray) -> np.ndarray:
        whole = np.zeros(volume.shape, part.dtype)
        whole[box] = part
        back = nibabel.orientations.ornt_transform(
            nibabel.orientations.axcodes2ornt("RAS"), nibabel.io_orientation(affine)
        )
        return nibabel.apply_orientation(whole, back)

    return RawScan(np.ascontiguousarray(volume[box]), cropped, header, notes, to_native, extracted)


def looks_extracted(volume: np.ndarray, voxel_size: np.ndarray) -> bool:
    """Tell whether a scan shows a brain without its skull: what is above 0 has a brain's size, one piece, no holes.

    Parameters
    ----------
    volume : (D, H, W) float32 array, 0 in the background
    voxel_size : (3,) float array, mm
    """
    inside = volume > 0
    low, high = EXTRACTED_VOLUME
    if not low < inside.sum() * voxel_size.prod() / 1000 < high:
        return False
    pieces = np.bincount(ndimage.label(inside)[0].ravel())[1:]
    holes = ndimage.binary_fill_holes(inside).sum() - inside.sum()
    return bool(max(inside.sum() - pieces.max(), holes) <= EXTRACTED_PIECES * inside.sum())


def _check_header(shape: tuple[int, ...], affine: np.ndarray) -> None:
    """Refuse a header with which no head can be found."""
    voxel_size = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-3 * max(voxel_size.prod(), 1e-9):
        raise UnusableScanError("its header gives no usable axes (the affine is singular or not finite)")
    if np.allclose(affine, np.eye(4)) and sorted(shape) in [sorted(model_grid(size).shape) for size in VOXEL_SIZES]:
        raise UnusableScanError(LOST_AFFINE)
    if min(shape) < LEAST_VOXELS or voxel_size.max() > LARGEST_VOXEL:
        size = " x ".join(f"{v:.2g}" for v in voxel_size)
        raise UnusableScanError(f"has {'x'.join(map(str, shape))} voxels of {size} mm, too coarse for a whole head")


def _header_notes(image: Any) -> list[str]:
    """Say what the header leaves uncertain about left and right."""
    if np.allclose(image.affine, np.eye(4)):
        return [LOST_AFFINE]
    header = image.header
    if not {"qform_code", "sform_code"} <= set(header):
        return []
    if not header["qform_code"] and not header["sform_code"]:
        return ["the header has no orientation (qform and sform codes are 0); left and right cannot be known"]
    if header["qform_code"] and header["sform_code"]:
        try:
            codes = ["".join(aff2axcodes(form)) for form in (header.get_qform(), header.get_sform())]
        except ValueError:
            return ["its qform is not a rotation; the sform was used"]
        if codes[0] != codes[1]:
            return [f"qform and sform disagree ({codes[0]}, {codes[1]}); the sform was used"]
    return []


def _with_zero_background(volume: np.ndarray, finite: np.ndarray) -> np.ndarray:
    """Set the background to 0: what is not finite, a negative number that fills it, or else the lowest intensity."""
    lowest = volume[finite].min()
    filled = ~finite
    if lowest < 0 and (volume == lowest).mean() > FILLED_SHARE:
        filled = filled | (volume == lowest)
    rest = volume[~filled]
    low = rest.min()
    if low < 0:
        if (rest < 0).mean() < FILLED_SHARE:
            low = 0.0  # a few stray negative voxels
        elif lowest < low and abs(low - lowest) < abs(low):
            low = lowest  # all intensities are negative, and the background is their zero
    elif filled.any():
        low = 0.0
    return np.where(filled, 0, np.maximum(volume - low, 0)).astype(np.float32)


def _head_box(volume: np.ndarray, voxel_size: np.ndarray) -> tuple[slice, ...]:
    """Find the box of the head, with a margin; wide padding would mislead the brain extraction."""
    bright = volume > FOREGROUND_LEVEL * np.percentile(volume[volume > 0], 99)
    box = []
    for axis, size in enumerate(volume.shape):
        others = tuple(other for other in range(3) if other != axis)
        area = bright.sum(axis=others) * voxel_size[list(others)].prod()
        found = np.flatnonzero(area > FOREGROUND_AREA)
        margin = int(np.ceil(MARGIN / voxel_size[axis]))
        low, high = (found[0], found[-1]) if len(found) else (0, size - 1)
        box.append(slice(max(0, low - margin), min(size, high + margin + 1)))
    return tuple(box)
