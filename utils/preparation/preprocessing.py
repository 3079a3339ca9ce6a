"""From a raw T1-weighted scan to a model-ready brain: the chain for one scan."""

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import SimpleITK
import torch
from deepbet import BrainExtraction
from nibabel.orientations import aff2axcodes
from scipy import ndimage

from utils.data.images import MNI152_T1_2MM
from utils.preparation import registration
from utils.preparation.quality import LIMITS, Alignment, cut_area, measure_quality
from utils.preparation.template import NAME, Template, load_template, sample, smooth_to

FORMAT = 1  # raise it when the same scan and parameters give another result
PACKAGES = (
    "deepbet", "connected-components-3d", "fill_voids", "picsl_greedy", "SimpleITK", "nilearn", "scipy", "numpy",
    "nibabel", "torch",
)  # fmt: skip

LEAST_VOXELS = 16  # along each axis
LARGEST_VOXEL = 10.0  # mm
LEAST_BRAIN = 100_000  # cubic mm
FILLED_SHARE = 0.01  # of all voxels, from which on the lowest number is no intensity
FOREGROUND_LEVEL = 0.1  # of the 99th percentile
FOREGROUND_AREA = 200.0  # square mm of a plane, from which on it belongs to the head
MARGIN = 10.0  # mm around the head
MASK_SIGMA = 1.6  # mm, by which the probability of brain is smoothed
MASK_LEVEL = 0.3  # of that probability; 0.5 of the unsmoothed one cuts off 2 % of the brain
LEAST_START = 0.75  # correlation at the start; upright whole brains reach 0.8 and more
BIAS_VOXEL = 8.0  # mm, the grid on which the bias field is fitted
BIAS_ITERATIONS = [50, 50, 50, 50]
RESOLUTION = 2.0  # mm


class UnusableScanError(Exception):
    """A scan that cannot be preprocessed, and why."""


@dataclass(frozen=True)
class RawScan:
    """A raw scan, cropped to the head.

    Parameters
    ----------
    volume : (D, H, W) float32 array, 0 or more; axes run right, anterior, superior
    affine, header : (4, 4) float arrays, voxel to mm
        As it is used, and as the file gives it, where the two differ.
    notes : list of str
        What the header leaves open.
    to_native : callable
        Brings a volume of this shape back onto the file's grid.
    """

    volume: np.ndarray
    affine: np.ndarray
    header: np.ndarray
    notes: list[str]
    to_native: Any

    @property
    def voxel_size(self) -> np.ndarray:
        return np.linalg.norm(self.affine[:3, :3], axis=0)


@dataclass(frozen=True)
class PreparedScan:
    """A model-ready brain.

    Parameters
    ----------
    volume : (91, 109, 91) float32 array
        On the grid of ``MNI152_T1_2mm``, 0 outside the brain.
    head : (91, 109, 91) float32 array
        The same with what surrounds the brain.
    native_mask : (D, H, W) uint8 array, on the file's own grid
    quality : dict of quantity to float
        See `utils.preparation.quality`.
    notes : list of str
        What the scan leaves open.
    """

    volume: np.ndarray
    head: np.ndarray
    native_mask: np.ndarray
    quality: dict[str, float]
    notes: list[str]


def fingerprint(registration_kind: str) -> dict[str, Any]:
    """Say what makes the result: steps, parameters, template, versions of the packages."""
    return {
        "format": FORMAT,
        "registration": registration_kind,
        "template": NAME,
        "grid": {"shape": MNI152_T1_2MM.shape, "affine": MNI152_T1_2MM.affine.tolist()},
        "steps": [
            "reorient to RAS, background to 0, crop to the head",
            f"brain extraction: deepbet, smoothed by {MASK_SIGMA:g} mm, above {MASK_LEVEL:g}",
            f"bias field: N4 (SimpleITK) inside the brain at {BIAS_VOXEL:g} mm, mean 1",
            "start: 24 orientations and tilts, correlation at 8 mm",
            f"affine: greedy {registration.AFFINE}",
            *([f"nonlinear: greedy {registration.NONLINEAR}"] if registration_kind == "nonlinear" else []),
            f"one linear resampling, after smoothing finer voxels to {RESOLUTION:g} mm; zero outside the brain",
        ],
        "limits": {name: [None if np.isinf(v) else v for v in limits[1:]] for name, limits in LIMITS.items()},
        "versions": package_versions(),
    }


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that make the result."""
    return {package: version(package) for package in PACKAGES}


def preprocess_scan(path: Path, registration_kind: str, device: str, threads: int) -> PreparedScan:
    """Take a raw scan to the model's grid.

    Parameters
    ----------
    path : Path to a NIfTI file
    registration_kind : {"affine", "nonlinear"}
    device : {"auto", "cuda", "cpu"}
        Of the brain extraction; everything else runs on the processor.
    threads : int

    Raises
    ------
    UnusableScanError
        If nothing can be made of the scan.
    """
    torch.set_num_threads(threads)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    template = load_template()
    scan, brain = _find_upright_brain(path, device, template)
    matrix = registration.register_affine(brain.normalized, scan.affine, template, brain.start, threads)
    displacement = None
    if registration_kind == "nonlinear":
        displacement = registration.register_nonlinear(brain.normalized, scan.affine, template, matrix, threads)
    smooth = smooth_to(brain.corrected, scan.voxel_size, RESOLUTION)
    head = np.maximum(sample(smooth, scan.affine, matrix, displacement), 0)
    inside = sample(brain.mask.astype(np.float32), scan.affine, matrix, displacement) > 0.5
    volume = np.where(inside, head, 0)
    alignment = Alignment(scan.affine, matrix, displacement, scan.header)
    quality = measure_quality(volume, brain.corrected, brain.mask, alignment, template)
    native_mask = scan.to_native(brain.mask.astype(np.uint8))
    return PreparedScan(volume, head, native_mask, quality, scan.notes)


def read_raw_scan(path: Path, turn: np.ndarray | None = None) -> RawScan:
    """Read a scan, check it, turn it upright by its header, and crop it to the head.

    Parameters
    ----------
    path : Path
    turn : (3, 3) float array or None
        A rotation that overrules the header: how the head lies in its world.

    Raises
    ------
    UnusableScanError
        If it is no single volume of plain numbers that could show a head.
    """
    if not path.is_file():
        raise UnusableScanError("is not there: a link to nowhere, or a file that was removed")
    try:
        image = nibabel.load(path)
        kind = image.get_data_dtype().kind  # type: ignore[attr-defined]
        data = np.asarray(image.dataobj, dtype=np.float32) if kind in "iuf" else None  # type: ignore[attr-defined]
    except Exception as error:  # damaged files raise many types
        raise UnusableScanError(f"not a readable NIfTI image ({error})") from error
    if data is None:
        raise UnusableScanError("its voxels are no plain numbers")
    data = data.reshape(data.shape[:3]) if data.ndim > 3 and set(data.shape[3:]) == {1} else data
    if data.ndim != 3:
        raise UnusableScanError(f"has the shape {'x'.join(map(str, data.shape))}; expected one 3-D volume")
    affine = np.asarray(image.affine, dtype=np.float64)  # type: ignore[attr-defined]
    voxel_size = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-3 * max(voxel_size.prod(), 1e-9):
        raise UnusableScanError("its header gives no usable axes (the affine is singular or not finite)")
    if min(data.shape) < LEAST_VOXELS or voxel_size.max() > LARGEST_VOXEL:
        size = " x ".join(f"{v:.2g}" for v in voxel_size)
        raise UnusableScanError(
            f"has {'x'.join(map(str, data.shape))} voxels of {size} mm: too coarse for a whole head"
        )
    notes = _header_notes(image)
    if turn is not None:
        notes.append("the head lies on another side than the header says; left and right cannot be known")
        affine = nibabel.affines.from_matvec(turn.T) @ affine
    upright = nibabel.as_closest_canonical(nibabel.Nifti1Image(data, affine))
    volume = np.asarray(upright.dataobj, dtype=np.float32)
    finite = np.isfinite(volume)
    if not finite.any() or np.ptp(volume[finite]) == 0:
        raise UnusableScanError("its voxels are constant or not finite")
    volume = _with_zero_background(volume, finite)
    box = _head_box(volume, np.linalg.norm(upright.affine[:3, :3], axis=0))
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

    return RawScan(np.ascontiguousarray(volume[box]), cropped, header, notes, to_native)


def _header_notes(image: Any) -> list[str]:
    """Say what the header leaves open about left and right."""
    header = image.header
    if not {"qform_code", "sform_code"} <= set(header):
        return []
    if not header["qform_code"] and not header["sform_code"]:
        return ["the header has no orientation (qform and sform codes are 0); left and right cannot be known"]
    if header["qform_code"] and header["sform_code"]:
        try:
            codes = ["".join(aff2axcodes(form)) for form in (header.get_qform(), header.get_sform())]
        except ValueError:
            return ["its qform is no rotation; the sform was used"]
        if codes[0] != codes[1]:
            return [f"qform and sform disagree ({codes[0]}, {codes[1]}); the sform was used"]
    return []


def _with_zero_background(volume: np.ndarray, finite: np.ndarray) -> np.ndarray:
    """Make the background 0: what is not finite, a negative number that fills it, or else the lowest intensity."""
    lowest = volume[finite].min()
    filled = ~finite
    if lowest < 0 and (volume == lowest).mean() > FILLED_SHARE:
        filled = filled | (volume == lowest)
    rest = volume[~filled]
    low = rest.min()
    if low < 0:
        if (rest < 0).mean() < FILLED_SHARE:
            low = 0.0  # stray negative voxels
        elif lowest < low and abs(low - lowest) < abs(low):
            low = lowest  # all intensities are negative, and the fill is their zero
    elif filled.any():
        low = 0.0
    return np.where(filled, 0, np.maximum(volume - low, 0)).astype(np.float32)


def _head_box(volume: np.ndarray, voxel_size: np.ndarray) -> tuple[slice, ...]:
    """Find the box of the head, with a margin; padding would mislead the brain extraction."""
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


@lru_cache(maxsize=2)
def _extractor(device: str) -> BrainExtraction:
    """Load the two networks of the brain extraction once."""
    return BrainExtraction(no_gpu=device == "cpu")


def extract_brain(volume: np.ndarray, voxel_size: np.ndarray, device: str) -> np.ndarray:
    """Find the brain of a head that stands upright.

    Parameters
    ----------
    volume : (D, H, W) float32 array
    voxel_size : (3,) float array, mm
    device : {"cuda", "cpu"}

    Returns
    -------
    (D, H, W) bool array

    Raises
    ------
    UnusableScanError
        If there is none.

    References
    ----------
    Fisch et al., "deepbet: Fast brain extraction of T1-weighted MRI using
    convolutional neural networks", Computers in Biology and Medicine 2024.
    """
    extractor = _extractor(device)
    try:
        try:
            probability = extractor.run_model(volume.copy())
        except torch.cuda.OutOfMemoryError:  # other processes share the GPU
            extractor = _extractor("cpu")
            probability = extractor.run_model(volume.copy())
        finally:
            if device == "cuda":
                torch.cuda.empty_cache()
        mask = ndimage.gaussian_filter(probability, MASK_SIGMA / voxel_size) > MASK_LEVEL
        mask = extractor.postprocess(mask) > 0
    except (AssertionError, ValueError) as error:  # deepbet's ways to say that it found nothing
        raise UnusableScanError("no brain was found in it") from error
    if mask.sum() * voxel_size.prod() < LEAST_BRAIN:
        raise UnusableScanError("no brain was found in it")
    return mask


def correct_bias_field(volume: np.ndarray, mask: np.ndarray, voxel_size: np.ndarray) -> np.ndarray:
    """Divide by the slowly varying field of the coils, whose geometric mean inside the brain is 1.

    Parameters
    ----------
    volume : (D, H, W) float32 array
    mask : (D, H, W) bool array
    voxel_size : (3,) float array, mm

    References
    ----------
    Tustison et al., "N4ITK: Improved N3 Bias Correction", IEEE TMI 2010.
    """
    image, inside = (
        registration.to_sitk(part, np.diag([*voxel_size, 1.0])) for part in (volume, mask.astype(np.uint8))
    )
    factors = [max(1, round(BIAS_VOXEL / size)) for size in voxel_size]
    n4 = SimpleITK.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(BIAS_ITERATIONS)
    n4.Execute(SimpleITK.Shrink(image, factors), SimpleITK.Shrink(inside, factors))
    field = SimpleITK.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).T
    return (volume / np.exp(field - field[mask].mean())).astype(np.float32)


def _find_upright_brain(path: Path, device: str, template: Template) -> "tuple[RawScan, Brain]":
    """Find the brain, whatever the header says: the networks of the brain extraction expect an upright head."""

    def attempt(turn: np.ndarray | None) -> tuple[RawScan, Brain]:
        scan = read_raw_scan(path, turn)
        return scan, find_brain(scan, device, template)

    best = attempt(None)
    if best[1].turn is not None:
        best = attempt(best[1].turn)
    scan, brain = best
    cut = cut_area(brain.corrected, brain.mask, scan.voxel_size) > LIMITS["cut_area"].doubt_above
    if brain.score < LEAST_START and not cut:  # nothing like a brain was found: perhaps the head lies on its side
        for turn in registration.cube_rotations()[1:]:
            with suppress(UnusableScanError):
                found = attempt(turn)
                if found[1].turn is None and found[1].score > best[1].score + registration.HEADER_TRUST:
                    best = found
            if best[1].score >= LEAST_START:
                break
    return best


class Brain(NamedTuple):
    """A brain in a scan.

    Parameters
    ----------
    mask : (D, H, W) bool array
    corrected : (D, H, W) float32 array
        The scan without its bias field.
    normalized : (D, H, W) float32 array
        The same, about 1 in bright tissue and 0 outside the brain.
    start : (4, 4) float array, from mm of the template to mm of the scan
    turn : (3, 3) float array or None
        How the head lies, if not as the header says.
    score : float
        How well the start fits the template.
    """

    mask: np.ndarray
    corrected: np.ndarray
    normalized: np.ndarray
    start: np.ndarray
    turn: np.ndarray | None
    score: float


def find_brain(scan: RawScan, device: str, template: Template) -> Brain:
    """Extract the brain, correct its bias field, and find where the registration starts."""
    mask = extract_brain(scan.volume, scan.voxel_size, device)
    corrected = correct_bias_field(scan.volume, mask, scan.voxel_size)
    normalized = np.where(mask, corrected / np.percentile(corrected[mask], 99), 0).astype(np.float32)
    start, turn, score = registration.find_start(normalized, mask, scan.affine, template)
    return Brain(mask, corrected, normalized, start, turn, score)
