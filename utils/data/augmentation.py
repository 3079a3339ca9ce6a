"""Random changes of training volumes, on their device; the same seed gives the same changes."""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch.nn import functional

from utils.common.distributed import Share
from utils.data.draws import Draws

CHANGED_SHARE = 0.5  # of the volumes whose intensities change: networks must know clean ones, too
LARGEST_ROTATION = 5.0  # degrees, about each axis
LARGEST_SCALING = 0.05  # logarithm of the stretch, along each axis
LARGEST_GAIN = 0.1  # logarithm of the factor
LARGEST_GAMMA = 0.1  # logarithm of the exponent
LARGEST_BIAS = 0.1  # logarithm of the factor, of each term of the bias field
LARGEST_NOISE = 0.05  # of the brain's mean, standard deviation
LARGEST_BLUR = 0.5  # voxels, standard deviation along each axis: as of slices of up to 5 mm on a grid of 4 mm
CURVE_STEPS = 4  # of a contrast curve, from 0 to bright tissue
CURVE_SPREAD = 0.3  # of the logarithm of the slope of each step
BRIGHT = 1.5  # bright tissue, in means of the brain


def augment(
    volumes: torch.Tensor, names: Collection[str], seed: Sequence[int], share: Share | None = None
) -> torch.Tensor:
    """Change each volume in its own way.

    Parameters
    ----------
    volumes : (B, D, H, W) float32 tensor, the first axis left to right, 0 outside the brain
    names : collection of str
        Some of `AUGMENTATIONS`: ``flip`` mirrors half of the volumes left to
        right; ``rotation`` and ``scaling`` resample; ``blur`` smooths each
        axis; ``erosion`` darkens the rim of the brain, as other brain masks
        do; ``gain``, ``gamma``, ``contrast``, ``bias_field`` and ``noise``
        change the intensities. These leave half of the volumes as they are.
    seed : sequence of int
    share : Share or None
        What `volumes` are of a joint batch; None: all of it.

    Returns
    -------
    (B, D, H, W) float32 tensor
    """
    draws = Draws((*seed, 2), share or Share(len(volumes)))  # trailing zeros would count for nothing
    if "flip" in names:
        volumes = _flip(volumes, draws)
    if "rotation" in names or "scaling" in names:
        volumes = _resample(volumes, "rotation" in names, "scaling" in names, draws)
    if set(names) - {"flip", "rotation", "scaling"}:
        chosen = torch.from_numpy(draws.uniform(0, 1) < CHANGED_SHARE).to(volumes.device, non_blocking=True)
        changed = _blur(volumes, draws) if "blur" in names else volumes
        changed = _erode(changed, draws) if "erosion" in names else changed
        changed = _change_intensities(changed, names, draws)
        volumes = torch.where(chosen[:, None, None, None], changed, volumes)
    return volumes


def _flip(volumes: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Mirror half of the volumes left to right."""
    flips = torch.from_numpy(draws.uniform(0, 1) < 0.5).to(volumes.device, non_blocking=True)
    return torch.where(flips[:, None, None, None], volumes.flip(1), volumes)


def _resample(volumes: torch.Tensor, rotate: bool, scale: bool, draws: Draws) -> torch.Tensor:
    """Turn and stretch each volume about its centre."""
    count, sizes = len(volumes), np.array(volumes.shape[1:])
    angles = draws.uniform(-LARGEST_ROTATION, LARGEST_ROTATION, 3) * rotate
    stretches = np.exp(draws.uniform(-LARGEST_SCALING, LARGEST_SCALING, 3) * scale)
    matrices = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * stretches[:, None]
    # torch counts from -1 to 1 over each axis, and names the last axis first.
    matrices = (matrices * sizes / sizes[:, None])[:, ::-1, ::-1]
    affine = np.concatenate([matrices, np.zeros((count, 3, 1))], 2).astype(np.float32)
    grid = functional.affine_grid(
        torch.from_numpy(affine).to(volumes.device, non_blocking=True),
        [count, 1, *volumes.shape[1:]],
        align_corners=False,
    )
    return functional.grid_sample(volumes[:, None], grid, align_corners=False)[:, 0]


def _blur(volumes: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Smooth each volume along each axis by a Gaussian of a width of its own, as thick slices do."""
    sigma = torch.from_numpy(draws.uniform(0.01, LARGEST_BLUR, 3).astype(np.float32)).T[..., None]
    weights = torch.softmax(-0.5 * (torch.arange(-2.0, 3.0) / sigma) ** 2, 2).to(volumes.device, non_blocking=True)
    for axis, kernels in enumerate(weights, 1):
        moved = functional.pad(volumes.movedim(axis, -1), (2, 2))
        size = volumes.shape[axis]
        parts = (kernels[:, k, None, None, None] * moved[..., k : k + size] for k in range(5))
        volumes = sum(parts, torch.zeros(())).movedim(-1, axis)
    return volumes


def _erode(volumes: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Darken the outermost voxels of each brain by a factor of its own."""
    factors = draws.uniform(0, 1).astype(np.float32)
    brain = (volumes > 0).float()
    core = -functional.max_pool3d(-brain[:, None], 3, 1, 1)[:, 0]
    darker = volumes * torch.from_numpy(factors).to(volumes.device, non_blocking=True)[:, None, None, None]
    return torch.where(core < brain, darker, volumes)


def _bend(volumes: torch.Tensor, mean: torch.Tensor, draws: Draws) -> torch.Tensor:
    """Change the contrast by a rising curve of straight pieces through 0 and bright tissue."""
    slopes = np.exp(draws.normal(CURVE_SPREAD, CURVE_STEPS + 2))
    heights = np.concatenate([np.zeros((len(volumes), 1)), np.cumsum(slopes, 1)], 1)
    curve = torch.from_numpy((heights / heights[:, CURVE_STEPS, None]).astype(np.float32)).to(
        volumes.device, non_blocking=True
    )
    bright = BRIGHT * mean
    place = (CURVE_STEPS * volumes / bright).clamp(0, CURVE_STEPS + 1.999)
    step = place.long()
    low, high = (curve.gather(1, (step + k).flatten(1)).view_as(place) for k in (0, 1))
    return bright * (low + (high - low) * (place - step))


def _change_intensities(volumes: torch.Tensor, names: Collection[str], draws: Draws) -> torch.Tensor:
    """Change the contrast, the brightness, and add noise inside the brain."""
    device = volumes.device

    def draw(largest: float, terms: int = 1) -> torch.Tensor:
        return torch.from_numpy(draws.uniform(-largest, largest, terms).astype(np.float32)).to(
            device, non_blocking=True
        )

    brain = volumes > 0
    mean = (volumes.sum((1, 2, 3)) / brain.sum((1, 2, 3)).clamp_min(1))[:, None, None, None].clamp_min(1e-6)
    exponent = torch.exp(draw(LARGEST_GAMMA))[..., None, None] if "gamma" in names else 1.0
    changed = mean * (volumes.clamp_min(0) / mean) ** exponent
    if "contrast" in names:
        changed = _bend(changed, mean, draws)
    if "gain" in names:
        changed = changed * torch.exp(draw(LARGEST_GAIN))[..., None, None]
    if "bias_field" in names:
        axes = (torch.linspace(-1, 1, size, device=device) for size in volumes.shape[1:])
        x, y, z = torch.meshgrid(*axes, indexing="ij")
        terms = torch.stack([x, y, z, x * x, y * y, z * z, x * y, x * z, y * z])
        terms = terms - terms.mean((1, 2, 3), keepdim=True)
        changed = changed * torch.exp(torch.einsum("bt,tdhw->bdhw", draw(LARGEST_BIAS, len(terms)), terms))
    if "noise" in names:
        generator, noise = torch.Generator(device), torch.empty_like(volumes)
        for one, seed in zip(noise, draws.integers(2**31), strict=True):
            one.normal_(generator=generator.manual_seed(int(seed)))
        changed = changed + LARGEST_NOISE * draw(1.0).abs()[..., None, None] * mean * noise
    # What was brain stays brain: `utils.data.dataset.normalize` takes voxels above 0 for it.
    return torch.where(brain, changed.clamp_min(1e-6 * mean), volumes)
