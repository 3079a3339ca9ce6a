"""Simulate brains that age: mean anatomy of real brains, imaginary individuals.

Nothing here was measured on a person. With these cohorts every part of the
project can be tried, and tested against a known truth.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel
import numpy as np
import pandas as pd
from nibabel.affines import apply_affine
from scipy import ndimage
from tqdm import tqdm

from utils.common.choices import PATIENT_GAPS
from utils.common.errors import InputError
from utils.common.files import check_writable, read_json, write_json
from utils.common.interruption import ignore_interrupts
from utils.common.machine import usable_cores
from utils.data.images import MNI152_T1_2MM, coarsen_volume, model_grid
from utils.data.subjects import SEX_NAMES
from utils.preparation.template import load_template, load_tissue_maps

FORMAT = 2  # increase it when the same subject and seed give another volume
NOTE = """SIMULATED brains, not scans of persons: mean anatomy (ICBM152 2009a), warped and
changed in brightness at random, with effects of ageing that follow the true brain
age in labels.csv. Use them to try the software, never as evidence on brains.
"""

YOUNGEST, OLDEST = 20.0, 90.0  # years
GAP_SD = 3.0  # years, of healthy subjects' true brain-age gap
PATIENT_YOUNGEST = 55.0  # years
VENTRICLE_BOX = np.array([[-32.0, 32], [-50, 32], [-8, 34]])  # mm, MNI152
SHAPE_SD = 2.0  # mm, of individual shape
SHAPE_SCALE = 16.0  # mm, length over which individual shape varies


@dataclass(frozen=True)
class SimulatedSubject:
    """An imaginary person.

    Parameters
    ----------
    subject_id : str
    age, true_brain_age : float, years
    sex : int, 0 female, 1 male
    diagnosis : {"HC", "MCI", "AD"}
    split : {"train", "valid", "test", "patients"}
    """

    subject_id: str
    age: float
    true_brain_age: float
    sex: int
    diagnosis: str
    split: str


@dataclass(frozen=True)
class Anatomy:
    """Mean anatomy on the grid of MNI152_T1_2mm.

    Parameters
    ----------
    grey, white, brain : (91, 109, 91) float32 arrays, fractions of a voxel
    widening : (3, 91, 109, 91) float32 array
        Vectors that point away from the ventricles and shrink with the distance.
    """

    grey: np.ndarray
    white: np.ndarray
    brain: np.ndarray
    widening: np.ndarray


@lru_cache(maxsize=1)
def load_anatomy() -> Anatomy:
    """Read the ICBM152 2009a tissue maps of nilearn's package.

    References
    ----------
    Fonov et al., "Unbiased average age-appropriate atlases for pediatric
    studies", NeuroImage 2011.
    """

    grey, white = load_tissue_maps()
    brain = load_template().brain.astype(np.float32)
    fluid = np.clip(brain - grey - white, 0, 1)
    mm = apply_affine(MNI152_T1_2MM.affine, np.moveaxis(np.indices(MNI152_T1_2MM.shape), 0, -1))
    in_box = np.all((mm > VENTRICLE_BOX[:, 0]) & (mm < VENTRICLE_BOX[:, 1]), axis=-1)
    ventricles = (ndimage.gaussian_filter(fluid, 0.7) > 0.4) & in_box
    distance = ndimage.distance_transform_edt(~ventricles) - ndimage.distance_transform_edt(ventricles)
    smooth = ndimage.gaussian_filter(distance, 1.5).astype(np.float32)
    # The gradient of the smoothed distance vanishes midway, so that the warp never folds.
    widening = np.stack(np.gradient(smooth)) * np.exp(-np.abs(distance) / 5.0)
    return Anatomy(grey, white, brain, widening.astype(np.float32))


def draw_subjects(
    healthy: int,
    patients: int = 0,
    seed: int = 0,
    fractions: tuple[float, float] = (0.7, 0.15),
    patient_gaps: Mapping[str, float] = PATIENT_GAPS,
) -> list[SimulatedSubject]:
    """Draw the persons of a cohort.

    Parameters
    ----------
    healthy : int
        Healthy subjects in the splits train, valid and test.
    patients : int
        Subjects of each patient group, all in the split ``patients``.
    seed : int
    fractions : tuple of 2 float
        Shares of the healthy subjects for training and validation.
    patient_gaps : mapping of diagnosis to float, years
        Mean true gap of each patient group.
    """
    rng = np.random.default_rng(seed)
    width = max(4, len(str(healthy + len(patient_gaps) * patients)))
    subjects: list[SimulatedSubject] = []

    def add(number: int, diagnosis: str, mean_gap: float, youngest: float, splits: np.ndarray) -> None:
        # Ages are evenly spaced, so that small splits cover the whole range, too.
        ages = youngest + (OLDEST - youngest) * (rng.permutation(number) + rng.uniform(size=number)) / max(1, number)
        for age, split in zip(ages, splits, strict=True):
            subjects.append(
                SimulatedSubject(
                    subject_id=f"simulated-{len(subjects) + 1:0{width}d}",
                    age=round(float(age), 2),
                    true_brain_age=round(float(age + mean_gap + GAP_SD * rng.standard_normal()), 2),
                    sex=int(rng.integers(2)),
                    diagnosis=diagnosis,
                    split=str(split),
                )
            )

    train, valid = (round(fraction * healthy) for fraction in fractions)
    add(healthy, "HC", 0.0, YOUNGEST, np.repeat(["train", "valid", "test"], [train, valid, healthy - train - valid]))
    for diagnosis, mean_gap in patient_gaps.items():
        add(patients, diagnosis, mean_gap, PATIENT_YOUNGEST, np.repeat("patients", patients))
    return subjects


def simulate_volume(subject: SimulatedSubject, seed: int, voxel_size: int = 2) -> np.ndarray:
    """Simulate the brain-extracted T1-weighted volume of a person.

    With increasing true brain age, ventricles and sulci widen, the cortex
    thins, white matter darkens and lesions appear. Shape, ventricles, sulci,
    brightness of the tissues, remaining fluid at the surface, bias field and
    noise vary at random, so that intensity statistics tell little about age.

    Parameters
    ----------
    subject : SimulatedSubject
    seed : int
        Seed of the cohort; the volume depends only on it and the subject.
    voxel_size : int, mm

    Returns
    -------
    (D, H, W) uint8 array on `utils.data.images.model_grid` of `voxel_size`
    """
    anatomy = load_anatomy()
    rng = np.random.default_rng((seed, int(subject.subject_id.rsplit("-", 1)[1])))
    ageing = np.clip((subject.true_brain_age - YOUNGEST) / (OLDEST - YOUNGEST), -0.1, 1.3)
    shift = _smooth_noise(rng, 3, SHAPE_SCALE) * (SHAPE_SD / 2)  # voxels
    size = 1 + 0.012 * rng.standard_normal() + (0.01 if subject.sex else -0.01)
    widen = 0.2 + 3.2 * max(ageing, 0) ** 1.3 + 0.2 * rng.standard_normal() + (0.1 if subject.sex else 0)  # voxels
    indices = np.indices(anatomy.brain.shape, dtype=np.float32)
    centre = np.array(anatomy.brain.shape, np.float32)[:, None, None, None] / 2
    source = centre + (indices - centre) / size + shift - np.float32(widen) * anatomy.widening
    grey, white, brain = (
        ndimage.map_coordinates(part, source, order=1) for part in (anatomy.grey, anatomy.white, anatomy.brain)
    )
    exposure = np.clip(2.2 * ndimage.gaussian_filter(1 - grey - white, 1.2), 0, 1)
    thinning = np.clip(0.1 + 0.75 * ageing + 0.12 * rng.standard_normal(), 0, 1)
    grey = grey * (1 - thinning * exposure)
    fluid, grey_level, white_level = (
        np.array([0.22, 0.62, 1.0]) + np.array([0.0, 0.03, -0.07]) * ageing + 0.06 * rng.standard_normal(3)
    )
    rim = rng.uniform(0.1, 1.0)
    mask = (brain > 0.5) | (ndimage.gaussian_filter(brain, 2.2) > 1 - 0.92 * rim)
    volume = fluid * (1 - grey - white) + grey_level * grey + white_level * white
    volume -= 0.35 * _lesions(rng, white * (np.linalg.norm(anatomy.widening, axis=0) > 0.05), 10 * max(ageing, 0) ** 2)
    volume = np.clip(volume, 0.02, None) ** rng.uniform(0.75, 1.3)
    volume *= np.exp(0.12 * _smooth_noise(rng, 1, 60.0)[0])
    noise = rng.uniform(0.02, 0.05) * rng.standard_normal((2, *volume.shape))
    volume = np.hypot(volume + noise[0], noise[1]) * mask
    if voxel_size > 2:
        volume = coarsen_volume(volume, voxel_size // 2)
    return np.clip(np.ceil(160 * volume), 0, 255).astype(np.uint8)


def _smooth_noise(rng: np.random.Generator, channels: int, scale: float) -> np.ndarray:
    """Draw smooth noise of standard deviation 1 that varies over `scale` mm, (channels, 91, 109, 91)."""
    shape = MNI152_T1_2MM.shape
    coarse = [int(np.ceil(2 * size / scale)) + 3 for size in shape]
    noise = rng.standard_normal((channels, *coarse)).astype(np.float32)
    zoom = [size / (n - 2) for size, n in zip(shape, coarse, strict=True)]
    offset = [1 / z for z in zoom]
    fields = [
        ndimage.affine_transform(
            field, offset, offset=rng.uniform(0, 1, 3), output_shape=shape, order=2, mode="nearest"
        )
        for field in noise
    ]
    stacked = np.stack(fields)
    return (stacked / max(float(stacked.std()), 1e-6)).astype(np.float32)


def _lesions(rng: np.random.Generator, where: np.ndarray, expected: float) -> np.ndarray:
    """Draw round lesions in the white matter around the ventricles."""
    result = np.zeros(where.shape, np.float32)
    candidates = np.argwhere(where > 0.7)
    for _ in range(rng.poisson(expected)):
        centre = candidates[rng.integers(len(candidates))]
        radius = rng.uniform(0.8, 2.2)  # voxels
        reach = int(np.ceil(3 * radius))
        low = np.maximum(centre - reach, 0)
        box = tuple(slice(a, b) for a, b in zip(low, centre + reach + 1, strict=True))
        grid = np.indices(result[box].shape) + low[:, None, None, None] - centre[:, None, None, None]
        result[box] = np.maximum(result[box], np.exp(-(grid**2).sum(0) / (2 * radius**2)))
    return result * (where > 0)


def write_cohort(folder: Path, subjects: Sequence[SimulatedSubject], seed: int, voxel_size: int, workers: int) -> bool:
    """Write scans, ``labels.csv``, ``cohort.json`` and a note, all of them or none.

    Parameters
    ----------
    folder : Path
        For a folder of each split.
    subjects : sequence of SimulatedSubject
    seed : int
        Of the volumes.
    voxel_size : int, mm
    workers : int
        Processes.

    Returns
    -------
    bool
        False if the folder already holds this cohort.

    Raises
    ------
    InputError
        If the folder holds anything else.
    """
    content = {
        "simulated": True, "seed": seed, "voxel_size": voxel_size, "format": FORMAT,
        "subjects": [asdict(subject) for subject in subjects],
    }  # fmt: skip
    check_writable(folder)
    if folder.exists() and any(folder.iterdir()):
        with suppress(OSError, ValueError):
            if read_json(folder / "cohort.json") == content:
                return False
        raise InputError(f"{folder}: holds other files; set another OUTPUT_DIR (--output_dir)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory(dir=folder.parent, prefix=".") as temporary,
        ProcessPoolExecutor(
            max(1, min(workers, usable_cores())), get_context("spawn"), ignore_interrupts
        ) as pool,  # safe beside torch
    ):
        partial = Path(temporary) / folder.name
        jobs = pool.map(write_scan, subjects, repeat(partial), repeat(seed), repeat(voxel_size), chunksize=4)
        list(tqdm(jobs, "simulating brains", len(subjects), unit="brain", disable=None, leave=False))
        frame = pd.DataFrame(content["subjects"])
        frame["sex"] = frame["sex"].map(SEX_NAMES)
        frame.to_csv(partial / "labels.csv", index=False)
        (partial / "README.txt").write_text(NOTE, encoding="utf-8")
        write_json(partial / "cohort.json", content)
        partial.rename(folder)  # replaces an empty folder
    return True


def write_scan(subject: SimulatedSubject, folder: Path, seed: int, voxel_size: int) -> Path:
    """Simulate a volume and write it into the folder of the subject's split; return the file."""
    image = nibabel.Nifti1Image(simulate_volume(subject, seed, voxel_size), model_grid(voxel_size).affine)
    image.header["descrip"] = b"SIMULATED brain, not a person"
    image.header.set_xyzt_units("mm")
    image.set_sform(image.affine, "mni")
    image.set_qform(image.affine, "mni")
    path = folder / subject.split / f"{subject.subject_id}.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path
