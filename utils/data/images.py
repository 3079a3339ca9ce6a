"""Read NIfTI images onto the model's grid."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from nibabel.affines import from_matvec
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from scipy import ndimage
from threadpoolctl import threadpool_limits

from utils.common.errors import InputError
from utils.data.content import why_no_scan
from utils.data.image_files import UnusableScanError, open_image, read_voxels

MOST_NEGATIVE = 0.05  # of the voxels that are not 0
LARGEST_BRAIN = 0.42  # of the grid's voxels; brains fill 0.27 to 0.32 of them, heads 0.49 and more
LOST_AFFINE = (
    "its affine is the identity, so that voxel size, orientation and place are lost; save it again with the affine of "
    "the image that it was made from"
)


class Grid(NamedTuple):
    """A voxel grid: its shape, and the affine from voxel indices to mm."""

    shape: tuple[int, int, int]
    affine: np.ndarray


MNI152_T1_2MM = Grid(
    (91, 109, 91),
    np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]]),
)
BRAIN_BOX = ((6, 85), (6, 101), (0, 79))  # first and last voxel, of 2 mm, of the brain in MNI152 space
GRAY, BRIGHTEST = 0.6, 1.6  # gray matter, and the most that any voxel gets, where white matter is 1
LEAST_MIXTURE_VOXELS = 100
MIXTURE_VOXELS = 20_000  # that the tissues' means are estimated from
VOXEL_SIZES = (2, 4, 8)  # mm, of prepared scans
STORAGE_ORDER = "LAS"  # FSL's MNI152_T1_2mm: the first axis runs to the left


def model_grid(voxel_size: int) -> Grid:
    """Return the grid on which a network of this voxel size works.

    Parameters
    ----------
    voxel_size : int, mm
        2 gives the grid of FSL's ``MNI152_T1_2mm``; a multiple of 2 gives
        the grid of `coarsen_volume`. Both are their own mirror images, left
        to right.

    Raises
    ------
    ValueError
        If `voxel_size` is no positive multiple of 2.
    """
    if voxel_size < 2 or voxel_size % 2:
        raise ValueError(f"voxel size is {voxel_size} mm; expected 2, 4 or another multiple of 2")
    factor = voxel_size // 2
    width, depth, height = MNI152_T1_2MM.shape
    starts = [_first(size, factor) for size in MNI152_T1_2MM.shape]
    affine = MNI152_T1_2MM.affine @ from_matvec(np.eye(3) * factor, starts)
    return Grid((_cells(width, factor), _cells(depth, factor), _cells(height, factor)), affine)


def _first(size: int, factor: int) -> int:
    """Return the voxel at the center of the first cell of a coarser axis; the middle voxel is one of these centers."""
    return (size - 1) // 2 % factor


def _cells(size: int, factor: int) -> int:
    """Return the number of cells of a coarser axis."""
    return len(range(_first(size, factor), size, factor))


def brain_box(voxel_size: int) -> tuple[tuple[int, int], ...]:
    """Return the first and last voxel of the brain along each axis of a model's grid."""
    factor = voxel_size // 2
    starts = [_first(size, factor) for size in MNI152_T1_2MM.shape]
    return tuple(
        (max(0, (first - start) // factor), -(-(last - start) // factor))
        for (first, last), start in zip(BRAIN_BOX, starts, strict=True)
    )


def coarsen_volume(volume: np.ndarray, factor: int) -> np.ndarray:
    """Average cubes of `factor` voxels a side, around the middle voxel and others at multiples of `factor` from it.

    Parameters
    ----------
    volume : (D, H, W) float array
    factor : int
        1 leaves the volume as it is.

    Returns
    -------
    (D', H', W') float array
        See `model_grid`.

    Notes
    -----
    Voxels on the border between two cubes count half in each, and voxels
    beyond the volume are 0. Cubes that began at the first voxel would lie
    half a cube off their mirror images, because the grid of
    ``MNI152_T1_2mm`` has an odd number of voxels.
    """
    if factor == 1:
        return volume
    weights = np.ones(factor + 1 - factor % 2) / factor
    if factor % 2 == 0:
        weights[[0, -1]] /= 2
    for axis, size in enumerate(volume.shape):
        volume = np.moveaxis(ndimage.convolve1d(volume, weights, axis, mode="constant"), axis, 0)
        volume = np.moveaxis(volume[_first(size, factor) :: factor], 0, axis)
    return np.ascontiguousarray(volume)


class Brain(NamedTuple):
    """A scan that passed all checks, before it is averaged to a coarser grid.

    Parameters
    ----------
    path : Path
    volume : (D, H, W) float32 array, in the axis order of FSL's ``MNI152_T1_2mm``
    voxel_size : int, mm
    slope, intercept : float
        The file's scaling of its stored numbers.
    """

    path: Path
    volume: np.ndarray
    voxel_size: int
    slope: float
    intercept: float


def read_brain(path: Path, voxel_size: int) -> Brain:
    """Read a brain-extracted scan on the model's grid, or on that of 2 mm.

    Axes are reordered and flipped without resampling.

    Parameters
    ----------
    path : Path to a ``.nii`` or ``.nii.gz`` file
    voxel_size : int, mm, of the model's grid

    Raises
    ------
    InputError
        If the file cannot be read, its grid is another one, or its voxels
        show no brain-extracted T1-weighted scan.
    """
    try:
        with open_image(path) as image:
            affine = np.asarray(image.affine, dtype=np.float64)
            change, grid = _place_on(model_grid(voxel_size), image.shape[:3], affine)
            data = read_voxels(image)
            slope, intercept = (float(getattr(image.dataobj, name)) for name in ("slope", "inter"))
        volume = np.ascontiguousarray(apply_orientation(data, change))
        _check_brain(volume, grid)
    except UnusableScanError as error:
        raise InputError(f"{path}: {error}") from error
    return Brain(path, volume, round(grid.affine[1, 1]), slope, intercept)


def read_image(path: Path, voxel_size: int) -> np.ndarray:
    """Read a scan onto the model's grid; one of 2 mm is averaged. See `read_brain`.

    Returns
    -------
    (D, H, W) float32 array
    """
    brain = read_brain(path, voxel_size)
    return coarsen_volume(brain.volume, voxel_size // brain.voxel_size)


def _check_brain(volume: np.ndarray, grid: Grid) -> None:
    """Refuse voxels on a grid that show no brain-extracted T1-weighted scan."""
    if not np.isfinite(volume).all():
        raise UnusableScanError("holds voxels that are not finite; replace them, by 0 outside the brain")
    reason = why_no_scan(volume, np.abs(np.diag(grid.affine)[:3]))
    if reason:
        raise UnusableScanError(reason)
    above, below = (float(np.mean(part)) for part in (volume > 0, volume < 0))
    if below > MOST_NEGATIVE * (above + below):
        raise UnusableScanError(
            f"{below / (above + below):.0%} of its voxels that are not 0 are negative, "
            "but only voxels above 0 count as brain; give the scan before normalization"
        )
    if above > LARGEST_BRAIN:
        raise UnusableScanError(
            f"{above:.0%} of its voxels are above 0, of those of a brain at most {LARGEST_BRAIN:.0%}: a head, or a "
            "background that is not 0; preprocess it"
        )


def _place_on(grid: Grid, shape: tuple[int, ...], affine: np.ndarray) -> tuple[np.ndarray, Grid]:
    """Return how axes change to the storage order, and the grid of the voxels: the model's, or that of 2 mm."""
    if np.allclose(affine, np.eye(4)):
        raise UnusableScanError(LOST_AFFINE)
    axes = np.abs(affine[:3, :3]) > 1e-3 * np.abs(affine[:3, :3]).max()
    if not np.isfinite(affine).all() or (axes.sum(0) != 1).any() or (axes.sum(1) != 1).any():
        raise UnusableScanError(
            "its affine is not a scaled permutation of the axes, so the scan is oblique to MNI152 "
            "space; register it to MNI152 first"
        )
    change = ornt_transform(io_orientation(affine), axcodes2ornt(STORAGE_ORDER))
    affine = affine @ inv_ornt_aff(change, shape)
    shape = tuple(shape[int(axis)] for axis in np.argsort(change[:, 0]))
    for candidate in (grid, MNI152_T1_2MM):
        if shape == candidate.shape and np.allclose(np.diag(affine)[:3], np.diag(candidate.affine)[:3], atol=1e-2):
            shift = np.abs(affine[:3, 3] - candidate.affine[:3, 3]).max()
            if shift > 1:
                raise UnusableScanError(
                    f"its origin lies {shift:g} mm off that of MNI152_T1_2mm; "
                    "register it to MNI152, or correct its header"
                )
            return change, candidate
    sizes = "x".join(f"{abs(size):g}" for size in np.diag(affine)[:3])
    expected = " or ".join(
        f"{'x'.join(map(str, candidate.shape))} voxels of {round(candidate.affine[1, 1])} mm"
        for candidate in ([MNI152_T1_2MM, grid] if grid.shape != MNI152_T1_2MM.shape else [grid])
    )
    size = round(float(affine[1, 1]))
    coarser = size > 2 and size % 2 == 0 and shape == model_grid(size).shape
    raise UnusableScanError(
        f"has {'x'.join(map(str, shape))} voxels of {sizes} mm; expected {expected} in MNI152 space; "
        + (f"train with VOXEL_SIZE={size} (--voxel_size {size})" if coarser else "register it to MNI152_T1_2mm")
    )


def encode_volume(volume: np.ndarray, slope: float, intercept: float) -> tuple[np.ndarray, float, float]:
    """Encode a volume in the smallest type that gives back exactly the same numbers.

    Parameters
    ----------
    volume : (D, H, W) float32 array
    slope, intercept : float
        A scaling that may turn the volume into whole numbers.

    Returns
    -------
    voxels : (D, H, W) uint8, int16 or float32 array
    slope, intercept : float
        In float32, ``voxels * slope + intercept`` is `volume`.
    """
    numbers = np.rint((volume - np.float32(intercept)) / np.float32(slope)) if slope else volume
    for kind in (np.uint8, np.int16):
        limits = np.iinfo(kind)
        if limits.min <= numbers.min() and numbers.max() <= limits.max:
            voxels = numbers.astype(kind)
            if np.array_equal(voxels.astype(np.float32) * np.float32(slope) + np.float32(intercept), volume):
                return voxels, slope, intercept
    return volume, 1.0, 0.0


def find_tissue_means(volume: np.ndarray) -> tuple[float, float, float]:
    """Return the mean intensities of fluid, gray and white matter of a T1-weighted brain.

    Parameters
    ----------
    volume : (D, H, W) float32 array, not constant where it is above 0

    Raises
    ------
    ValueError
        If hardly any voxel is above 0.

    Notes
    -----
    The means of a mixture of three normal distributions.
    """
    from sklearn.mixture import GaussianMixture  # takes a second to import

    inside = volume[volume > 0].astype(np.float64)
    if inside.size < LEAST_MIXTURE_VOXELS:
        raise ValueError(
            f"has only {inside.size} voxels above 0, too few to tell fluid, gray and white matter; "
            "give a T1-weighted brain"
        )
    unit = np.percentile(inside, 99)  # the mixture is not to depend on the unit
    some = inside[:: max(1, inside.size // MIXTURE_VOXELS), None] / unit
    some = some[some[:, 0] <= 1.2 * np.percentile(some, 99.5)]  # without vessels
    start = np.percentile(some, [10, 50, 85])[:, None]
    with threadpool_limits(1):  # the last digits depend on the number of threads
        mixture = GaussianMixture(3, means_init=start, random_state=0, max_iter=200, tol=1e-4).fit(some)
    fluid, gray, white = unit * np.sort(mixture.means_[:, 0])
    return float(fluid), float(gray), float(white)


def scale_by_tissue(volume: np.ndarray) -> np.ndarray:
    """Map the mean intensities of the three tissues to fixed values, so that all scanners' scans look alike.

    Parameters
    ----------
    volume : (D, H, W) float32 array, a T1-weighted brain, not constant where it is above 0

    Returns
    -------
    (D, H, W) float32 array
        0 in cerebrospinal fluid and outside the brain, `GRAY` in gray
        matter, 1 in white matter, straight lines between them and beyond,
        at most `BRIGHTEST`.

    Notes
    -----
    Because fluid becomes as dark as the background, it matters little how
    much of the outer fluid a brain mask leaves. Contrast differs between
    scanners: gray matter had 0.84, 0.74 and 0.70 of white matter's
    intensity on three.
    """
    fluid, gray, white = find_tissue_means(volume)
    least = 1e-3 * (white or 1.0)  # keeps volumes without contrast finite
    darker = GRAY * np.clip((volume - fluid) / max(gray - fluid, least), 0, 1)
    brighter = (1 - GRAY) * np.maximum((volume - gray) / max(white - gray, least), 0)
    return np.where(volume > 0, np.minimum(darker + brighter, BRIGHTEST), 0).astype(np.float32)


def brain_statistics(volume: np.ndarray, normalization: str = "brain") -> tuple[float, float]:
    """Return the mean and the standard deviation of the authors' normalization.

    Parameters
    ----------
    volume : (D, H, W) float array, not constant where it is above 0
    normalization : {"brain", "legacy"}
        ``legacy`` gives the deviation that the authors' code used until
        2023-11-21, which weights of that time expect.

    Returns
    -------
    mean, deviation : float
        Of the voxels above 0.

    Notes
    -----
    For ``legacy``, with n voxels above 0, their mask m and mean M, the
    deviation is sqrt(sum over all voxels of (v m - M)^2 / n): each voxel
    outside adds M^2.

    References
    ----------
    The authors' ``load_data.py``; `utils.data.dataset.normalize` applies them.
    """
    inside = volume[volume > 0].astype(np.float64)
    mean = inside.mean()
    variance = inside.var()
    if normalization == "legacy":
        variance += (volume.size - inside.size) * mean**2 / inside.size
    return float(mean), float(np.sqrt(variance))
