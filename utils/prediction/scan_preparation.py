"""Find scans of any kind, tell raw from prepared ones, check and prepare them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.common.errors import InputError
from utils.data.image_files import UnusableScanError, is_image, open_image
from utils.data.images import VOXEL_SIZES, Brain, model_grid, read_brain
from utils.data.names import scan_name, unusable_name
from utils.data.preparations import describe_preparation, preparation_of
from utils.data.scan_folders import EVERYTHING, FSL_PRODUCT, Selection, file_name_of, is_fsl_folder, list_prepared
from utils.prediction.scan_ages import PredictedScan
from utils.preparation.parameters import LIMITS
from utils.preparation.preprocessing_jobs import Settings, preprocess_all
from utils.preparation.quality import brain_correlation, misplacement, white_to_gray
from utils.preparation.raw_scans import RawFile, find_raw_scans
from utils.preparation.records import DOUBTFUL, FAIL, record_of
from utils.preparation.splitting import fsl_products
from utils.preparation.template import load_template

LARGEST_SHIFT = 2  # voxels of 2 mm; brains that are registered well lie 0 or 1 off
# Correlation with the template: scans have 0.43 and more, scans turned by 25 degrees 0.24, inverted ones less than
# -0.05, maps of gray matter less than -0.10.
LEAST_LIKENESS = 0.15


def find_scans(source: Path, selection: Selection = EVERYTHING) -> list[PredictedScan]:
    """Find the scans in a file, a folder, a BIDS data set or folders of FSL or FreeSurfer; they are not read.

    Parameters
    ----------
    source : Path
    selection : Selection
        The people and sessions that are wanted.

    Raises
    ------
    InputError
        If there is none, or if two would have the same name.
    """
    if source.name == FSL_PRODUCT or is_fsl_folder(source):
        brains = list_prepared(source) if source.is_dir() else [source]
    else:
        brains = list(fsl_products(source).values())
        if brains and any(is_image(path) for path in source.iterdir()):
            raise InputError(f"{source}: holds both scans and fsl_anat's folders; give a folder of only one kind")
    found = (
        {scan_name(file_name_of(brain)): brain for brain in selection.of(brains)}
        if brains
        else {raw.name: raw.path for raw in find_raw_scans(source, selection)}
    )
    problems = [f"{found[name]}: {wrong}" for name in found if (wrong := unusable_name(name))]
    if problems:
        raise InputError(problems)
    return [PredictedScan(name, path) for name, path in found.items()]


class Checked(NamedTuple):
    """What the check of a scan has found.

    Parameters
    ----------
    brain : Brain or None
        On the 2 mm grid; None if the scan is raw or cannot be used.
    failure : str
        Why it cannot be used; empty otherwise.
    warnings : tuple of str
    """

    brain: Brain | None = None
    failure: str = ""
    warnings: tuple[str, ...] = ()


def check_scan(path: Path) -> Checked:
    """Tell whether a scan is raw or prepared; check a prepared one by its verdict, or by the template."""
    brain = _prepared_brain(path)
    if brain is None:
        return Checked()
    if brain.voxel_size != 2:  # averages are of no use
        return Checked(
            failure=f"is a prepared brain averaged to {brain.voxel_size} mm; give the brain at 2 mm, or the raw scan"
        )
    record = record_of(path)
    failure, warnings = _judge(record) if record else _compare_with_template(brain.volume)
    return Checked(None if failure else brain, failure, warnings)


def _prepared_brain(path: Path) -> Brain | None:
    """Read a brain-extracted scan on a model grid; None for any other file, which preprocessing may report."""
    try:
        with open_image(path) as image:
            shape = sorted(image.shape[:3])
        voxel_size = next((size for size in VOXEL_SIZES if sorted(model_grid(size).shape) == shape), None)
        return read_brain(path, voxel_size) if voxel_size else None
    except (InputError, UnusableScanError):
        return None


def _compare_with_template(volume: np.ndarray) -> tuple[str, tuple[str, ...]]:
    """Return a failure, and warnings, if a (91, 109, 91) volume is not aligned with the template."""
    template = load_template()
    shift = misplacement(volume, template)
    aligned = np.roll(volume, -shift, (0, 1, 2))
    likeness = max(brain_correlation(own, template) for own in (volume, aligned))
    if likeness < LEAST_LIKENESS:
        return (
            f"does not look like a T1-weighted brain in MNI152 space: its correlation with the template is "
            f"{likeness:.2f}, that of such brains 0.43 and more; give a T1-weighted scan, or the raw one"
        ), ()
    contrast = white_to_gray(aligned)
    if contrast < LIMITS["white_to_gray"].fail_below:
        return (
            f"white matter is darker than gray ({contrast:.2f} of it, in T1-weighted scans 1.15 and more), as in T2, "
            "FLAIR, proton density and diffusion; give a T1-weighted scan"
        ), ()
    if (off := int(np.abs(shift).max())) >= LARGEST_SHIFT:
        return "", (
            f"is about {2 * off} mm off the MNI152 template, or rotated; the estimate may be off by many years: "
            "register it, or give the raw scan",
        )
    return "", ()


def _judge(record: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Turn a verdict into a failure or a warning."""
    reasons = "; ".join(record["reasons"])
    if record["verdict"] == FAIL:
        return reasons, ()
    return "", (f"preprocessing is doubtful: {reasons}",) * (record["verdict"] == DOUBTFUL)


def add_preparation(scans: Sequence[PredictedScan], expected: Sequence[Mapping[str, str] | None]) -> None:
    """Warn of scans that were prepared differently from the training scans."""
    for scan in scans:
        own = preparation_of(scan.subject.path)
        if own not in expected:
            scan.warnings.append(
                f"prepared {describe_preparation(own)}, the training scans in another way; the estimate may be off"
            )


def registration_of(expected: Sequence[Mapping[str, str] | None]) -> str:
    """Return the registration of the training scans, from their preparations as `preparation_of` returns them."""
    return next(filter(None, expected), {"registration": "affine"})["registration"]


def preprocess(scans: Sequence[PredictedScan], settings: Settings, timeout: float) -> None:
    """Preprocess the scans that are not prepared yet.

    Parameters
    ----------
    scans : sequence of PredictedScan
        Get their prepared brains, and warnings and failures from quality control.
    settings : Settings
        With the registration of the training scans.
    timeout : float, s, for each scan
    """
    raw = {scan.name: scan for scan in scans if not scan.prepared and not scan.failure}
    if not raw:
        return
    files = [RawFile(scan.name, scan.source) for scan in raw.values()]
    for record in preprocess_all(files, settings, 0, timeout):
        scan = raw[record["name"]]
        scan.failure, warnings = _judge(record)
        scan.warnings += warnings
        if not scan.failure:
            scan.prepared = settings.output_dir / f"{scan.name}.nii.gz"
