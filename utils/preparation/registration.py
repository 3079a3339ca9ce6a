"""Register a brain to the template: a start, an affine, a nonlinear displacement."""

import io
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import nibabel
import numpy as np
import SimpleITK
from nibabel.affines import apply_affine
from picsl_greedy import Greedy3D
from scipy import ndimage
from scipy.spatial.transform import Rotation

from utils.data.images import MNI152_T1_2MM
from utils.preparation.parameters import AFFINE, NONLINEAR
from utils.preparation.template import Template, sample, smooth_to

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0])
SEARCH_STEP = 4  # voxels of the template between the points of the search
SEARCH_TILTS = (-20.0, 0.0, 20.0)  # degrees, about each axis
HEADER_TRUST = 0.05  # gain in correlation from which on another orientation overrules the header
SEED = 1  # greedy jitters its samples
FIXED_BOX = (slice(2, 89), slice(2, 105), slice(0, 83))  # voxels of the template's grid: its brain and 8 mm around


def to_sitk(volume: np.ndarray, affine: np.ndarray) -> SimpleITK.Image:
    """Make a SimpleITK image, whose world is LPS: x and y change sign.

    Parameters
    ----------
    volume : (D, H, W) array
    affine : (4, 4) float array, voxel to RAS mm, without shear
    """
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(volume.T))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((RAS_TO_LPS @ affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin((RAS_TO_LPS @ affine[:3, 3]).tolist())
    return image


def without_shear(affine: np.ndarray) -> np.ndarray:
    """Return the nearest affine with orthogonal axes and the same voxel sizes."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / spacing)
    result = affine.copy()
    result[:3, :3] = left @ right * spacing
    return result


def find_start(
    brain: np.ndarray, mask: np.ndarray, affine: np.ndarray, template: Template
) -> tuple[np.ndarray, np.ndarray | None, float]:
    """Find a rigid start by trying many rotations about the center of the brain.

    Parameters
    ----------
    brain : (D, H, W) float32 array
        0 outside the brain.
    mask : (D, H, W) bool array
    affine : (4, 4) float array, voxel to mm, of the brain
    template : Template

    Returns
    -------
    start : (4, 4) float array
        From mm of the template to mm of the brain.
    turn : (3, 3) float array or None
        How the head is rotated in the header's world, one of the 24
        rotations of a cube; None if the header is right.
    score : float
        Correlation with the template at the start.

    Notes
    -----
    Each of the 24 orientations is tried with tilts of 20 degrees about each
    axis; the score is the correlation at points 8 mm apart. Mirrored
    orientations are not tried: because the template is symmetric, each fits
    as well as one of the 24.
    """
    points = np.stack(
        np.meshgrid(*(np.arange(0, size, SEARCH_STEP) for size in template.brain.shape), indexing="ij"), -1
    )
    points = points.reshape(-1, 3)
    smooth_template = ndimage.gaussian_filter(template.volume, SEARCH_STEP / 2)
    near = ndimage.binary_dilation(template.brain, iterations=SEARCH_STEP)[tuple(points.T)]
    points = points[near]
    wanted = smooth_template[tuple(points.T)]
    template_centre = apply_affine(MNI152_T1_2MM.affine, ndimage.center_of_mass(template.brain))
    from_centre = apply_affine(MNI152_T1_2MM.affine, points) - template_centre
    voxel_size = np.linalg.norm(affine[:3, :3], axis=0)
    smooth_brain = ndimage.gaussian_filter(brain, SEARCH_STEP / voxel_size)
    centre = apply_affine(affine, ndimage.center_of_mass(mask))
    scale = np.cbrt(mask.sum() * voxel_size.prod() / (template.brain.sum() * 8.0))
    to_voxels = np.linalg.inv(affine)
    tilts = [Rotation.from_euler("xyz", angles, degrees=True) for angles in itertools.product(SEARCH_TILTS, repeat=3)]
    turns = cube_rotations()
    best: list[tuple[float, np.ndarray]] = []
    for turn in turns:
        scores = []
        for tilt in tilts:
            rotation = turn @ tilt.as_matrix()
            where = apply_affine(to_voxels, centre + scale * from_centre @ rotation.T)
            found = ndimage.map_coordinates(smooth_brain, where.T, order=1)
            scores.append((float(np.corrcoef(found, wanted)[0, 1]) if found.std() > 0 else -1.0, rotation))
        best.append(max(scores, key=lambda score: score[0]))
    chosen = max(range(len(best)), key=lambda number: best[number][0])
    if best[chosen][0] < best[0][0] + HEADER_TRUST:
        chosen = 0
    rotation = best[chosen][1]
    start = nibabel.affines.from_matvec(rotation, centre - rotation @ template_centre)
    return start, turns[chosen] if chosen else None, best[chosen][0]


def cube_rotations() -> list[np.ndarray]:
    """Return the 24 rotations that map the axes onto the axes; the first is the identity."""
    matrices = [
        np.diag(signs)[list(order)].astype(float)
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1, -1), repeat=3)
    ]
    return [matrix for matrix in matrices if np.linalg.det(matrix) > 0]


def register_affine(brain: np.ndarray, affine: np.ndarray, template: Template, start: np.ndarray) -> np.ndarray:
    """Register a brain to the template by an affine of 12 parameters.

    Parameters
    ----------
    brain : (D, H, W) float32 array
        About 1 in bright tissue, 0 outside the brain.
    affine : (4, 4) float array, voxel to mm
    template : Template
    start : (4, 4) float array, rigid, from mm of the template to mm of the brain

    Returns
    -------
    (4, 4) float array, from mm of the template to mm of the brain

    Notes
    -----
    It runs on one thread: greedy adds up the gradient in the order in which
    threads end, and the brain age of the result differed by up to half a
    year from run to run.

    References
    ----------
    Yushkevich et al., "Fast automatic segmentation of hippocampal subfields
    and medial temporal lobe subregions in 3 Tesla and 7 Tesla T2-weighted
    MRI", Alzheimer's & Dementia 2016 (the registration tool greedy).
    """
    moving = without_shear(np.linalg.inv(start) @ affine)
    greedy = _run_greedy(
        f"{AFFINE} -i fixed moving -o found",
        1, fixed=_in_box(template.volume), moving=to_sitk(brain, moving), found=None,
    )  # fmt: skip
    # By way of the voxels, so that a shear in the header is not lost.
    return affine @ np.linalg.inv(moving) @ greedy["found"]


def register_nonlinear(
    brain: np.ndarray, affine: np.ndarray, template: Template, matrix: np.ndarray, threads: int
) -> np.ndarray:
    """Register a brain to the template by a smooth displacement, in addition to an affine.

    Parameters
    ----------
    brain, affine, template : see `register_affine`
    matrix : (4, 4) float array, from mm of the template to mm of the brain
    threads : int
        The result does not depend on it.

    Returns
    -------
    (91, 109, 91, 3) float32 array
        Displacement in the template's space, applied before `matrix`, mm.
    """
    aligned = sample(smooth_to(brain, np.linalg.norm(affine[:3, :3], axis=0), 2.0), affine, matrix)
    greedy = _run_greedy(
        f"{NONLINEAR} -i fixed moving -o found",
        threads, fixed=_in_box(template.volume), moving=_in_box(aligned), found=None,
    )  # fmt: skip
    field = SimpleITK.GetArrayFromImage(greedy["found"]).transpose(2, 1, 0, 3) @ RAS_TO_LPS.astype(np.float32)
    margins = [(part.start, size - part.stop) for part, size in zip(FIXED_BOX, MNI152_T1_2MM.shape, strict=True)]
    return np.pad(field, [*margins, (0, 0)], mode="edge")


def _in_box(volume: np.ndarray) -> SimpleITK.Image:
    """Cut the surroundings of the template's brain, a third of its grid, from a volume on this grid."""
    corner = nibabel.affines.from_matvec(np.eye(3), [part.start for part in FIXED_BOX])
    return to_sitk(volume[FIXED_BOX], MNI152_T1_2MM.affine @ corner)


def _run_greedy(command: str, threads: int, **images: Any) -> Greedy3D:
    """Run greedy without its output."""
    greedy = Greedy3D()
    with _quiet():
        greedy.execute(f"{command} -seed {SEED} -V 0 -threads {threads}", out=io.StringIO(), **images)
    return greedy


@contextmanager
def _quiet() -> Iterator[None]:
    """Discard what a C++ library prints; its line search reports every harmless end."""
    saved = [os.dup(number) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(nowhere, number)
        yield
    finally:
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)
