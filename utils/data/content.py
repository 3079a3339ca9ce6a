"""Tell by its voxels what is no T1-weighted scan: masks, segmentations, probability maps."""

import numpy as np

SPACING = 2.0  # mm, between the voxels that are compared
FOREGROUND = 0.1  # share of the 99th percentile; noise around a head has few values
FEWEST_VALUES = 10  # different intensities; scans stored in 8 bits have 180 and more
# Share of neighbors of equal intensity: 0.04 in scans, 0.5 if stored in 12 levels, 0.75 and more in segmentations.
MOST_EQUAL = 0.6
SATURATED = 0.98  # of the maximum
# Share of the voxels: 0.01 in scans, 0.07 if the brightest 5 % are clipped, 0.3 and more in maps of white matter.
MOST_SATURATED = 0.2


def why_no_scan(volume: np.ndarray, voxel_size: np.ndarray) -> str:
    """Say why a volume cannot be a T1-weighted scan.

    Parameters
    ----------
    volume : (D, H, W) float32 array, finite, 0 in the background
    voxel_size : (3,) float array, mm

    Returns
    -------
    str
        Empty for what may be a scan of any scanner; what is not above 0 does not count.
    """
    steps = [max(1, round(SPACING / size)) for size in voxel_size]
    volume = volume[tuple(slice(None, None, step) for step in steps)]
    inside = volume > 0
    if not inside.any():
        return "is empty, no voxel is above 0; repeat its preprocessing"
    values = volume[inside]
    if np.ptp(values) == 0:
        return f"is constant, every voxel above 0 is {values[0]:g}; give a T1-weighted image, not a mask"
    inside = volume > FOREGROUND * np.percentile(values, 99)
    values = volume[inside]
    different = len(np.unique(values))
    if different < FEWEST_VALUES:
        return f"holds only {different} different intensities, as a segmentation does; give a T1-weighted image"
    saturated = np.mean(values >= SATURATED * values.max())
    if saturated > MOST_SATURATED:
        return (
            f"looks like a probability map or a smoothed mask: {saturated:.0%} of its voxels have the highest "
            "intensity, of those of a scan about 1 %; give a T1-weighted image"
        )
    equal = _equal_neighbors(volume, inside)
    if equal > MOST_EQUAL:
        return (
            f"looks like a label image: {equal:.0%} of its neighboring voxels are equal, of those of a scan about 5 %; "
            "give a T1-weighted image"
        )
    return ""


def _equal_neighbors(volume: np.ndarray, inside: np.ndarray) -> float:
    """Return the share of equal ones among the pairs of neighbors that are both inside."""
    equal = pairs = 0
    for axis in range(3):
        one, other = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
        both = inside[one] & inside[other]
        equal += int(np.count_nonzero(both & (volume[one] == volume[other])))
        pairs += int(np.count_nonzero(both))
    return equal / max(1, pairs)
