"""Preprocess one raw T1-weighted scan: brain extraction, bias field, registration, resampling."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK
import torch
from scipy import ndimage
from threadpoolctl import threadpool_limits

from utils.data.image_files import UnusableScanError
from utils.preparation import registration
from utils.preparation.brain_extraction import extract_brain
from utils.preparation.parameters import BIAS_VOXEL, LIMITS, RESOLUTION
from utils.preparation.quality import Alignment, cut_area, measure_quality
from utils.preparation.raw_scans import RawScan, read_raw_scan
from utils.preparation.template import Template, load_template, sample, smooth_to

DIM_LEVEL = 0.05  # share of the 99th percentile; the rim of a brain that was resampled is darker
SMEARED_SHARE = 0.03  # of the volume, in which such a rim is seen
LEAST_START = 0.75  # correlation with the template at the start; upright whole brains reach 0.8 or more
BIAS_ITERATIONS = [50, 50, 50, 50]
THREADS = 2  # of brain extraction and bias field, whatever the machine has: their last digits depend on it


@dataclass(frozen=True)
class PreparedScan:
    """A preprocessed brain.

    Parameters
    ----------
    volume : (91, 109, 91) float32 array
        On the grid of ``MNI152_T1_2mm``, 0 outside the brain.
    head : (91, 109, 91) float32 array
        The same with the tissue around the brain.
    native_mask : (D, H, W) uint8 array, on the file's own grid
    quality : dict of quantity to float
        See `utils.preparation.quality`.
    notes : list of str
        What the scan leaves uncertain.
    extracted : bool
        Whether the scan was a brain without its skull.
    """

    volume: np.ndarray
    head: np.ndarray
    native_mask: np.ndarray
    quality: dict[str, float]
    notes: list[str]
    extracted: bool


def preprocess_scan(
    path: Path, registration_kind: str, device: str, threads: int, extracted: bool | None = None
) -> PreparedScan:
    """Extract the brain of a raw scan, and register and resample it to the model's grid.

    Parameters
    ----------
    path : Path to a NIfTI file
    registration_kind : {"affine", "nonlinear"}
    device : {"auto", "cuda", "cpu"}
        Of the brain extraction; everything else runs on the CPU.
    threads : int
        Of the nonlinear registration; the result does not depend on it.
    extracted : bool or None
        Whether the scan shows a brain without a skull; None: found out by
        `utils.preparation.raw_scans.looks_extracted`.

    Raises
    ------
    UnusableScanError
        If the scan cannot be preprocessed.
    """
    torch.set_num_threads(THREADS)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(THREADS)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with threadpool_limits(1, user_api="blas"):
        return _preprocess(path, registration_kind, device, threads, extracted)


def _preprocess(path: Path, registration_kind: str, device: str, threads: int, extracted: bool | None) -> PreparedScan:
    """Do what `preprocess_scan` says, once the threads are set."""
    template = load_template()
    scan, brain = _find_upright_brain(path, device, template, extracted)
    matrix = registration.register_affine(brain.normalized, scan.affine, template, brain.start)
    displacement = None
    if registration_kind == "nonlinear":
        displacement = registration.register_nonlinear(brain.normalized, scan.affine, template, matrix, threads)
    smooth = smooth_to(brain.corrected, scan.voxel_size, RESOLUTION)
    head = np.maximum(sample(smooth, scan.affine, matrix, displacement), 0)
    inside = sample(brain.mask.astype(np.float32), scan.affine, matrix, displacement) > 0.5
    volume = np.where(inside, head, 0)
    alignment = Alignment(scan.affine, matrix, displacement, scan.header)
    quality = measure_quality(volume, brain.corrected, brain.mask, alignment, scan.scanned, template)
    native_mask = scan.to_native(brain.mask.astype(np.uint8))
    return PreparedScan(volume, head, native_mask, quality, scan.notes, scan.extracted)


def brain_of_extracted(volume: np.ndarray) -> np.ndarray:
    """Find the brain of a scan without skull: what is above 0, or less where resampling has smeared its rim.

    Parameters
    ----------
    volume : (D, H, W) float32 array, 0 in the background

    Returns
    -------
    (D, H, W) bool array

    Notes
    -----
    Interpolation and blur surround a brain with dim voxels, a fifth of its
    volume and more; the dim rim of a brain as extracted is below 1 %.
    """
    inside = ndimage.binary_fill_holes(volume > 0)
    labels, _ = ndimage.label(volume > DIM_LEVEL * np.percentile(volume[inside], 99))
    solid = ndimage.binary_fill_holes(labels == np.bincount(labels.ravel())[1:].argmax() + 1)
    return solid if solid.sum() < (1 - SMEARED_SHARE) * inside.sum() else inside


def correct_bias_field(volume: np.ndarray, mask: np.ndarray, voxel_size: np.ndarray) -> np.ndarray:
    """Divide by the smooth field of the coils' sensitivity, whose geometric mean inside the brain is 1.

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


class Brain(NamedTuple):
    """A brain in a scan.

    Parameters
    ----------
    mask : (D, H, W) bool array
    corrected : (D, H, W) float32 array
        The scan without its bias field.
    normalized : (D, H, W) float32 array
        The same, with about 1 in bright tissue and 0 outside the brain.
    start : (4, 4) float array, from mm of the template to mm of the scan
    turn : (3, 3) float array or None
        How the head is rotated in the header's world; None if the header is right.
    score : float
        Correlation with the template at the start.
    """

    mask: np.ndarray
    corrected: np.ndarray
    normalized: np.ndarray
    start: np.ndarray
    turn: np.ndarray | None
    score: float


def find_brain(scan: RawScan, device: str, template: Template) -> Brain:
    """Extract the brain, correct its bias field, and find a start for the registration."""
    mask = brain_of_extracted(scan.volume) if scan.extracted else extract_brain(scan.volume, scan.voxel_size, device)
    corrected = correct_bias_field(scan.volume, mask, scan.voxel_size)
    normalized = np.where(mask, corrected / np.percentile(corrected[mask], 99), 0).astype(np.float32)
    start, turn, score = registration.find_start(normalized, mask, scan.affine, template)
    return Brain(mask, corrected, normalized, start, turn, score)


def _find_upright_brain(path: Path, device: str, template: Template, extracted: bool | None) -> tuple[RawScan, Brain]:
    """Find the brain even if the header is wrong, because brain extraction expects an upright head."""

    def attempt(turn: np.ndarray | None) -> tuple[RawScan, Brain]:
        scan = read_raw_scan(path, turn, extracted)
        return scan, find_brain(scan, device, template)

    best = attempt(None)
    if best[1].turn is not None:
        best = attempt(best[1].turn)
    scan, brain = best
    cut = cut_area(brain.mask, scan.scanned, scan.voxel_size) > LIMITS["cut_area"].doubt_above
    if brain.score < LEAST_START and not cut:  # what was found resembles no brain: try the other orientations
        for turn in registration.cube_rotations()[1:]:
            with suppress(UnusableScanError):
                found = attempt(turn)
                if found[1].turn is None and found[1].score > best[1].score + registration.HEADER_TRUST:
                    best = found
            if best[1].score >= LEAST_START:
                break
    return best
