"""Maps of what in a brain makes a network estimate its age, computed by captum."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from captum.attr import FeatureAblation, IntegratedGradients
from tqdm import tqdm

from model.cascade import Cascade
from utils.data.dataset import ScanDataset, collate, to_device
from utils.prediction.pictures import write_map
from utils.prediction.scan_ages import PredictedScan

CUBE = 16  # mm, side of the cubes that are replaced
STEPS = 16  # of the integral of integrated gradients
CHUNK = 8  # volumes at a time


def explain(
    network: Callable[..., torch.Tensor],
    volume: torch.Tensor,
    mean_volume: torch.Tensor,
    sex: torch.Tensor,
    method: str,
    voxel_size: int,
) -> torch.Tensor:
    """Attribute the brain age of a volume, relative to that of the mean volume, to its voxels.

    Parameters
    ----------
    network : callable
        Maps (B, 1, D, H, W) volumes and (B,) sexes to (B,) ages.
    volume : (1, 1, D, H, W) float32 tensor, normalized
    mean_volume : (1, 1, D, H, W) float32 tensor
        The mean of the training volumes, which replaces the brain, or parts of it.
    sex : (1,) int64 tensor
    method : {"occlusion", "integrated_gradients"}
    voxel_size : int, mm

    Returns
    -------
    (D, H, W) float32 tensor, years
        Positive where the brain looks older than the mean volume. For
        occlusion: the decrease in brain age when the voxel's cube is replaced.
        For integrated gradients: the contribution of the voxel; all
        contributions add up to the difference in brain age (approximately
        for a cascade, which discretizes the first stage's ages).

    References
    ----------
    Zeiler and Fergus, "Visualizing and understanding convolutional
    networks", ECCV 2014; Sundararajan et al., "Axiomatic attribution for
    deep networks", ICML 2017.
    """

    def age(volumes: torch.Tensor) -> torch.Tensor:
        return network(volumes, sex.expand(len(volumes)))

    baseline = torch.where(mean_volume > mean_volume.min(), mean_volume, volume.min())
    if method == "occlusion":
        cubes = number_cubes(volume > volume.min(), CUBE // voxel_size)
        with torch.no_grad():
            values = FeatureAblation(age).attribute(volume, baseline, feature_mask=cubes, perturbations_per_eval=CHUNK)
        values = values * (cubes > 0)
    else:
        values = IntegratedGradients(age).attribute(volume, baseline, n_steps=STEPS, internal_batch_size=CHUNK)
    return values[0, 0].float().detach()


def number_cubes(brain: torch.Tensor, side: int) -> torch.Tensor:
    """Divide a volume into cubes and number those that touch the brain.

    Parameters
    ----------
    brain : (1, 1, D, H, W) bool tensor
    side : int, voxels; 0 counts as 1

    Returns
    -------
    (1, 1, D, H, W) int64 tensor
        0 in all cubes outside the brain.
    """
    places = [torch.arange(size, device=brain.device) // max(1, side) for size in brain.shape[2:]]
    x, y, z = torch.meshgrid(*places, indexing="ij")
    cubes = (x * (places[1][-1] + 1) + y) * (places[2][-1] + 1) + z
    touching = torch.zeros(int(cubes.max()) + 1, dtype=torch.bool, device=brain.device)
    touching[cubes[brain[0, 0]]] = True
    numbers = torch.where(touching, touching.cumsum(0), 0)
    return numbers[cubes][None, None]


def write_maps(
    folder: Path,
    network: Cascade,
    scans: Sequence[PredictedScan],
    dataset: ScanDataset,
    mean_volume: torch.Tensor,
    method: str,
) -> None:
    """Write the map of each scan of a data set as NIfTI and as a picture.

    Parameters
    ----------
    folder : Path
    network : Cascade
    scans : sequence of N PredictedScan
    dataset : ScanDataset of the same N scans
    mean_volume : (1, 1, D, H, W) float32 tensor, on the device of `network`
    method : {"occlusion", "integrated_gradients"}
    """
    folded, voxel_size = network.folded(), dataset.scans.voxel_size
    folded.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    for index, scan in enumerate(tqdm(scans, "maps", unit="scan", disable=None, leave=False)):
        batch = to_device(collate([dataset[index]]), mean_volume.device)
        values = explain(folded, batch["volume"], mean_volume, batch["sex"], method, voxel_size)
        write_map(folder, scan, values.cpu().numpy(), voxel_size)
