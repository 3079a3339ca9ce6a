"""The MNI152 template on the model's grid, from the nilearn package."""

from functools import lru_cache
from typing import Any, NamedTuple

import nibabel
import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

from utils.data.images import MNI152_T1_2MM

BRAIN_LEVEL = 0.1  # share of the brightest voxel; darker voxels are outside the brain
SIGMA_PER_WIDTH = 1 / np.sqrt(8 * np.log(2))  # standard deviation of a Gaussian of full width at half maximum 1


class Template(NamedTuple):
    """Mean anatomy on the grid of ``MNI152_T1_2mm``.

    Parameters
    ----------
    volume : (91, 109, 91) float32 array
        T1-weighted, at a resolution of 2 mm, 0 outside the brain.
    brain : (91, 109, 91) bool array
    """

    volume: np.ndarray
    brain: np.ndarray


@lru_cache(maxsize=1)
def load_template() -> Template:
    """Read the template.

    Notes
    -----
    Every voxel center of the 2 mm grid is one of the template's 1 mm grid,
    so no interpolation is needed.

    References
    ----------
    Fonov et al., "Unbiased average age-appropriate atlases for pediatric
    studies", NeuroImage 2011.
    """
    from nilearn.datasets import load_mni152_template  # takes most of a second to import

    image = load_mni152_template(resolution=1)
    brain = ndimage.binary_fill_holes(on_model_grid(image) > BRAIN_LEVEL)
    smooth = smooth_to(image.get_fdata(dtype=np.float32), np.ones(3), 2.0)
    volume = on_model_grid(nibabel.Nifti1Image(smooth, image.affine))
    return Template(np.where(brain, volume, 0).astype(np.float32), brain)


@lru_cache(maxsize=1)
def load_tissue_maps() -> tuple[np.ndarray, np.ndarray]:
    """Read the template's probabilities of gray and of white matter, (91, 109, 91) float32 arrays."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template

    return on_model_grid(load_mni152_gm_template(resolution=1)), on_model_grid(load_mni152_wm_template(resolution=1))


def on_model_grid(image: Any) -> np.ndarray:
    """Sample an image in MNI152 space on the 2 mm grid; clip it to 0..1."""
    from nilearn.image import resample_img

    resampled = resample_img(
        image, MNI152_T1_2MM.affine, MNI152_T1_2MM.shape, interpolation="linear",
        force_resample=True, copy_header=True,
    )  # fmt: skip
    return np.clip(resampled.get_fdata(dtype=np.float32), 0, 1)


def smooth_to(volume: np.ndarray, voxel_size: np.ndarray, resolution: float) -> np.ndarray:
    """Smooth axes with finer voxels to a resolution, so that coarser sampling causes no aliasing.

    Parameters
    ----------
    volume : (D, H, W) float32 array
    voxel_size : (3,) float array, mm
    resolution : float, mm
        Full width at half maximum; coarser axes are left unchanged.
    """
    width = np.sqrt(np.maximum(resolution**2 - voxel_size**2, 0))  # mm
    return ndimage.gaussian_filter(volume, width * SIGMA_PER_WIDTH / voxel_size)


def sample(
    volume: np.ndarray, affine: np.ndarray, matrix: np.ndarray, displacement: np.ndarray | None = None
) -> np.ndarray:
    """Resample a volume to the template's grid by one linear interpolation through all transforms.

    Parameters
    ----------
    volume : (D, H, W) float32 array
    affine : (4, 4) float array, voxel to mm, of the volume
    matrix : (4, 4) float array, from mm of the template to mm of the volume
    displacement : (91, 109, 91, 3) float32 array, mm, or None

    Returns
    -------
    (91, 109, 91) float32 array, 0 outside the volume
    """
    where = voxel_coordinates(affine, matrix, displacement)
    return ndimage.map_coordinates(volume, where, order=1, output=np.float32)


def voxel_coordinates(affine: np.ndarray, matrix: np.ndarray, displacement: np.ndarray | None = None) -> np.ndarray:
    """Return where each voxel of the template is in a volume, (3, 91, 109, 91) float64 array, voxels."""
    grid = apply_affine(MNI152_T1_2MM.affine, np.moveaxis(np.indices(MNI152_T1_2MM.shape), 0, -1))
    if displacement is not None:
        grid = grid + displacement
    return np.moveaxis(apply_affine(np.linalg.inv(affine) @ matrix, grid), -1, 0)
