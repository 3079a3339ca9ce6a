"""What determines the result of preprocessing; imports nothing slow, so that finished scans are found at once."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from utils.data.images import MNI152_T1_2MM

FORMAT = 3  # increase it when the same scan and parameters give another result
PACKAGES = ("picsl_greedy", "SimpleITK", "nilearn", "scipy", "numpy", "nibabel", "torch")

NETWORKS_SHA256 = "f15320e460450a011ecb9cfee9857213a0367a17e1f94016b7435b84b2c3f585"  # of the brain extraction

MASK_SIGMA = 1.6  # mm, of the Gaussian that smooths the probability of brain
MASK_LEVEL = 0.3  # threshold of that probability; 0.5 without smoothing cuts off 2 % of the brain
BIAS_VOXEL = 8.0  # mm, of the grid on which the bias field is fitted
AFFINE = "-a -dof 12 -m NCC 2x2x2 -n 100x30x3"  # options of greedy
NONLINEAR = "-m NCC 4x4x4 -s 4vox 2vox -n 100x50x10 -wp 0"
RESOLUTION = 2.0  # mm
TEMPLATE = "ICBM152 2009a nonlinear symmetric, T1, brain (nilearn)"


class Limits(NamedTuple):
    """The meaning of a quantity, and the values beyond which a scan is doubtful or fails."""

    meaning: str
    fail_below: float = -np.inf
    doubt_below: float = -np.inf
    doubt_above: float = np.inf
    fail_above: float = np.inf


# Chosen by the damaged scans of docs/preprocessing.md.
LIMITS = {
    "brain_volume": Limits("brain with cerebrospinal fluid, ml", 600, 900, 2200, 2600),
    "dice": Limits("Dice overlap with the template's brain", 0.88, 0.92),
    "coverage": Limits("share of the template's brain that the brain covers", 0.85, 0.90),
    "correlation": Limits("correlation with the template inside its brain", 0.30, 0.45),
    "outside_field_of_view": Limits(
        "share of the template's brain outside the scan", doubt_above=0.005, fail_above=0.1
    ),
    "rotation": Limits("rotation against the header's axes, degrees", doubt_above=60),
    "smallest_scale": Limits("smallest scaling of the affine", 0.5, 0.7),
    "largest_scale": Limits("largest scaling of the affine", doubt_above=1.25, fail_above=1.6),
    "signal_to_noise": Limits("bright tissue, in standard deviations of the noise", 2, 5),
    "cut_area": Limits("brain at the border of the scan, square cm", doubt_above=8, fail_above=50),
    "affine_dice": Limits("Dice overlap before nonlinear registration", 0.80, 0.88),
    "smallest_jacobian": Limits("smallest change of volume by nonlinear registration; 0: folded", doubt_below=0.0),
    "white_to_gray": Limits("brightness of white over gray matter, above 1 only in T1-weighted scans", 0.99, 1.06, 2.5),
    "largest_jacobian": Limits("largest change of volume by nonlinear registration", doubt_above=6),
}


def fingerprint(registration_kind: str) -> dict[str, Any]:
    """Return what determines the result: steps, parameters, template, versions of the packages."""
    return {
        "format": FORMAT,
        "registration": registration_kind,
        "template": TEMPLATE,
        "grid": {"shape": MNI152_T1_2MM.shape, "affine": MNI152_T1_2MM.affine.tolist()},
        "steps": [
            "reorient to RAS, background to 0, crop to the head",
            f"brain extraction: deepbet's networks ({NETWORKS_SHA256[:12]}), smoothed by {MASK_SIGMA:g} mm, above "
            f"{MASK_LEVEL:g}; not of extracted brains",
            f"bias field: N4 (SimpleITK) inside the brain at {BIAS_VOXEL:g} mm, mean 1",
            "start: 24 orientations and tilts, correlation at 8 mm",
            f"affine: greedy {AFFINE}",
            *([f"nonlinear: greedy {NONLINEAR}"] if registration_kind == "nonlinear" else []),
            f"one linear resampling, after smoothing finer voxels to {RESOLUTION:g} mm; zero outside the brain",
        ],
        "limits": {
            name: [None if np.isinf(v) else v for v in limits[1:]]
            for name, limits in LIMITS.items()
            if name != "white_to_gray"  # newer than the weights that ship; the brains are the same
        },
        # The builds of one version, such as torch's for CPU and CUDA, count as one way of preparing scans.
        "versions": {package: number.partition("+")[0] for package, number in package_versions().items()},
    }


def fingerprint_key(content: Mapping[str, Any]) -> str:
    """Return the short form of a fingerprint, 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that affect the result."""
    return {package: version(package) for package in PACKAGES}
