"""Where preprocessing writes its results: flat, one file a scan, or as a derivative of BIDS."""

import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from utils.common.errors import InputError
from utils.common.files import replacing, write_json
from utils.common.provenance import software_version
from utils.data.images import MNI152_T1_2MM
from utils.data.names import name_and_session
from utils.data.preparations import DESCRIPTION
from utils.data.subjects import person_of
from utils.preparation.raw_scans import RawFile

FLAT, BIDS = "flat", "bids"
SPACE = "space-MNI152NLin2009aSym_res-2"
BIDS_NAME = re.compile(r"sub-[A-Za-z0-9]+(_(ses|acq|ce|rec|run|echo|part)-[A-Za-z0-9]+)*")
RESOLUTION = {"Resolution": "2 mm isotropic, the grid of FSL's MNI152_T1_2mm"}
SIDECARS: dict[str, dict[str, Any]] = {
    "desc-preproc_T1w": {"Description": "Brain, bias field corrected", "SkullStripped": True, **RESOLUTION},
    "desc-brain_mask": {"Description": "Where the brain is", "Type": "Brain", **RESOLUTION},
}
IGNORED = ("qc", "qc.csv", "index.html", "masks", "brain_age", "*.log")  # by validators of BIDS
LEVELS = 4095  # of stored intensities
README = """Brain-extracted T1-weighted scans, bias field corrected, in MNI152 space on a 2 mm grid, with brain masks.

Made by preprocess.py of TSAN (brain age from T1-weighted MRI). index.html shows a picture of each scan and a verdict
(pass, doubtful, fail); qc.csv has the quantities behind it, dataset_description.json the parameters.
"""


def named_for(layout: str, scans: list[RawFile]) -> list[RawFile]:
    """Return scans with the names that their results have.

    Raises
    ------
    InputError
        If two scans would get the same name.
    """
    if layout == FLAT:
        return scans
    found: dict[str, RawFile] = {}
    problems = []
    for scan in scans:
        other = found.setdefault(bids_name(scan.name), scan)
        if other != scan:
            problems.append(
                f"{scan.path}: has the same name in BIDS as {other.path}, {bids_name(scan.name)}; rename one"
            )
    if problems:
        raise InputError(problems)
    return [RawFile(name, scan.path) for name, scan in found.items()]


def bids_name(name: str) -> str:
    """Return the name of a scan in the form of BIDS, whose labels are letters and digits.

    >>> bids_name("sub-01_ses-1_run-2"), bids_name("1000011_20252_2_0"), bids_name("OAS1_0004_MR2"), bids_name("a b")
    ('sub-01_ses-1_run-2', 'sub-1000011_ses-2', 'sub-OAS10004_ses-MR2', 'sub-ab')
    """
    if BIDS_NAME.fullmatch(name):
        return name
    person = person_of(name)
    session = name_and_session(name)[1] or name.replace(person, "", 1)
    label, session = (re.sub(r"[^A-Za-z0-9]", "", text) for text in (person.removeprefix("sub-"), session))
    return f"sub-{label}_ses-{session}" if session else f"sub-{label}"


def brain_path(folder: Path, name: str, layout: str) -> Path:
    """Return where the brain of a scan is kept."""
    return folder / f"{name}.nii.gz" if layout == FLAT else _bids_path(folder, name, "desc-preproc_T1w")


def path_in_other_layout(folder: Path, name: str, layout: str) -> Path | None:
    """Return the brain of a scan that is kept in the other layout; None if there is none."""
    if layout == FLAT and not BIDS_NAME.fullmatch(name):
        return None
    other = brain_path(folder, name, BIDS if layout == FLAT else FLAT)
    return other if other.exists() else None


def mask_path(folder: Path, name: str) -> Path:
    """Return where the brain mask on the scan's own grid is kept."""
    return folder / "masks" / f"{name}.nii.gz"


def _bids_path(folder: Path, name: str, content: str) -> Path:
    """Return where an image of a derivative is kept."""
    labels = dict(part.split("-") for part in name.split("_"))
    session = [f"ses-{labels['ses']}"] if "ses" in labels else []
    return folder.joinpath(f"sub-{labels['sub']}", *session, "anat", f"{name}_{SPACE}_{content}.nii.gz")


def remove_brain(folder: Path, name: str, layout: str) -> None:
    """Remove what an earlier run has written of a brain."""
    brain_path(folder, name, layout).unlink(missing_ok=True)
    for content in SIDECARS if layout == BIDS else ():
        image = _bids_path(folder, name, content)
        for path in (image, _sidecar(image)):
            path.unlink(missing_ok=True)


def save_brain(folder: Path, name: str, layout: str, volume: np.ndarray) -> None:
    """Write a brain, (91, 109, 91) float32 array; in BIDS with its mask and sidecars."""
    if layout == BIDS:
        mask = _bids_path(folder, name, "desc-brain_mask")
        save_image(mask, (volume > 0).astype(np.uint8), MNI152_T1_2MM.affine, 1.0)
        for content, meaning in SIDECARS.items():
            write_json(_sidecar(_bids_path(folder, name, content)), meaning)
    slope = float(volume.max()) / LEVELS or 1.0
    voxels = np.rint(volume / slope).astype(np.int16)
    save_image(brain_path(folder, name, layout), voxels, MNI152_T1_2MM.affine, slope)


def _sidecar(image: Path) -> Path:
    return image.with_name(image.name.replace(".nii.gz", ".json"))


def save_image(path: Path, voxels: np.ndarray, affine: np.ndarray, slope: float | None = None) -> None:
    """Write a NIfTI file, whole or not at all; one with a slope is in MNI152 space."""
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    image.header.set_slope_inter(slope, 0 if slope else None)
    if slope:
        image.set_sform(affine, "mni")
        image.set_qform(affine, "mni")
    with replacing(path) as temporary:
        nibabel.save(image, temporary)


def write_description(folder: Path, layout: str, content: dict[str, Any], key: str) -> None:
    """Write ``dataset_description.json`` in the form that BIDS asks of derivatives, and what else it asks for."""
    made = {"Name": "TSAN preprocess.py", "Version": software_version(), "Fingerprint": key, "Parameters": content}
    write_json(
        folder / DESCRIPTION,
        {
            "Name": "Brain-extracted T1-weighted scans in MNI152 space, 2 mm",
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            "GeneratedBy": [made],
        },
    )
    for name, text in {"README": README, ".bidsignore": "\n".join([*IGNORED, ""])}.items():
        if layout == BIDS and not (folder / name).exists():
            with replacing(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
