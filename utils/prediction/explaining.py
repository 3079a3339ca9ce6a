"""Maps of where a network looks, by captum."""

from collections.abc import Callable

import torch
from captum.attr import FeatureAblation, IntegratedGradients

CUBE = 16  # mm, side of the cubes that are covered
STEPS = 16  # of the path that integrated gradients follow
CHUNK = 8  # volumes at a time


def explain(
    network: Callable[..., torch.Tensor],
    volume: torch.Tensor,
    reference: torch.Tensor,
    sex: torch.Tensor,
    method: str,
    voxel_size: int,
) -> torch.Tensor:
    """Share out among the voxels what makes a brain's age differ from a reference.

    Parameters
    ----------
    network : callable
        Maps (B, 1, D, H, W) volumes and (B,) sexes to (B,) ages.
    volume : (1, 1, D, H, W) float32 tensor, normalized
    reference : (1, 1, D, H, W) float32 tensor
        What is put in place of the brain: the mean of the training volumes.
    sex : (1,) int64 tensor
    method : {"occlusion", "integrated_gradients"}
    voxel_size : int, mm

    Returns
    -------
    (D, H, W) float32 tensor, years
        Above 0 where the brain looks older than the reference does there. Of
        occlusion, by how much the age falls when the voxel's cube is covered;
        of integrated gradients, the part of a voxel, all of which add up to
        the difference of the ages (of a cascade nearly, for it rounds).

    References
    ----------
    Zeiler and Fergus, "Visualizing and understanding convolutional
    networks", ECCV 2014; Sundararajan et al., "Axiomatic attribution for
    deep networks", ICML 2017.
    """

    def age(volumes: torch.Tensor) -> torch.Tensor:
        return network(volumes, sex.expand(len(volumes)))

    reference = torch.where(reference > reference.min(), reference, volume.min())
    if method == "occlusion":
        cubes = number_cubes(volume > volume.min(), CUBE // voxel_size)
        with torch.no_grad():
            values = FeatureAblation(age).attribute(volume, reference, feature_mask=cubes, perturbations_per_eval=CHUNK)
        values = values * (cubes > 0)
    else:
        values = IntegratedGradients(age).attribute(volume, reference, n_steps=STEPS, internal_batch_size=CHUNK)
    return values[0, 0].float().detach()


def number_cubes(brain: torch.Tensor, side: int) -> torch.Tensor:
    """Part a volume into cubes, and number those that touch the brain.

    Parameters
    ----------
    brain : (1, 1, D, H, W) bool tensor
    side : int, voxels; less than 1 means 1

    Returns
    -------
    (1, 1, D, H, W) int64 tensor
        0 in the cubes outside the brain, which count as one.
    """
    places = [torch.arange(size, device=brain.device) // max(1, side) for size in brain.shape[2:]]
    x, y, z = torch.meshgrid(*places, indexing="ij")
    cubes = (x * (places[1][-1] + 1) + y) * (places[2][-1] + 1) + z
    touching = torch.zeros(int(cubes.max()) + 1, dtype=torch.bool, device=brain.device)
    touching[cubes[brain[0, 0]]] = True
    numbers = torch.where(touching, touching.cumsum(0), 0)
    return numbers[cubes][None, None]
