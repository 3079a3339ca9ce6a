"""Pictures and maps of scans with brain ages."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch.utils.data import Dataset
from tqdm import tqdm

from utils.common.errors import InputError
from utils.common.figures import Figure
from utils.common.files import replacing
from utils.common.machine import usable_cores
from utils.data.images import MNI152_T1_2MM, model_grid, read_image
from utils.data.loading import WorkerLoader
from utils.evaluation.metrics import INTERVAL_COVERAGE
from utils.prediction.scan_ages import PredictedScan
from utils.preparation.quality import TEMPLATE_COLOUR, slices
from utils.preparation.template import load_template

MARGIN = 5.0  # years shown on either side of the training ages
AGE_COLOUR, TRUTH_COLOUR = "#4c72b0", "#c44e52"


def draw_scans(folder: Path, scans: Sequence[PredictedScan], num_workers: int) -> None:
    """Draw a picture of each scan, in worker processes.

    Raises
    ------
    InputError
        If one cannot be written.
    """
    workers = min(num_workers, len(scans), usable_cores())
    loader = WorkerLoader(_Drawing(folder, scans), workers, tuple, batch_size=None)
    for _ in tqdm(loader, "pictures", len(scans), unit="scan", disable=None, leave=False):
        pass


class _Drawing(Dataset[Any]):
    """Draws a scan wherever a loader asks for it, and gives nothing."""

    def __init__(self, folder: Path, scans: Sequence[PredictedScan]) -> None:
        self.folder, self.scans = folder, scans

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, index: int) -> tuple[()]:
        path = self.folder / f"{self.scans[index].name}.png"
        try:
            draw_scan(path, self.scans[index])
        except OSError as error:
            raise InputError(
                f"{path}: cannot be written ({error.strerror}); make room, or set PICTURES=false"
            ) from error
        return ()


def draw_scan(path: Path, scan: PredictedScan) -> None:
    """Draw slices of the brain with the template's outline, and the brain age on an axis.

    Parameters
    ----------
    path : Path of the PNG file
    scan : PredictedScan with a brain age
    """
    volume = read_image(scan.subject.path, 2)
    figure = Figure(figsize=(9, 5.6), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    picture, axis = figure.subplots(2, 1, height_ratios=[6, 1])
    picture.imshow(slices(volume, volume, load_template().brain, TEMPLATE_COLOUR))
    picture.set_axis_off()
    picture.set_title(f"{scan.name}: brain age {scan.estimate()}", loc="left", fontsize=13, fontweight="bold")
    axis.axvspan(*scan.age_range, color="0.92", label="training ages")
    sides = np.abs(np.array(scan.interval) - scan.brain_age)[:, None]
    axis.errorbar(
        scan.brain_age, 0, xerr=sides, fmt="o", color=AGE_COLOUR, capsize=5, markersize=9,
        label=f"brain age, {100 * INTERVAL_COVERAGE:.0f} % interval",
    )  # fmt: skip
    if np.isfinite(scan.chronological_age):
        axis.plot(
            scan.chronological_age, 0, "|", color=TRUTH_COLOUR, markersize=18, markeredgewidth=3,
            label="chronological age",
        )  # fmt: skip
    low, high = min(scan.age_range[0], scan.interval[0]), max(scan.age_range[1], scan.interval[1])
    axis.set(xlim=(low - MARGIN, high + MARGIN), ylim=(-1, 2), yticks=[], xlabel="years")
    axis.legend(loc="upper left", ncols=3, frameon=False, fontsize=9, borderaxespad=0.1)
    if scan.warnings:
        axis.annotate(
            "\n".join(f"warning: {warning}" for warning in scan.warnings), (0, -0.9), xycoords="axes fraction",
            va="top", fontsize=9, color=TRUTH_COLOUR, annotation_clip=False, wrap=True,
        )  # fmt: skip
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")


def write_map(folder: Path, scan: PredictedScan, values: np.ndarray, voxel_size: int) -> None:
    """Write a map of `utils.prediction.explaining.explain` as NIfTI and as a picture over the brain.

    Parameters
    ----------
    folder : Path
    scan : PredictedScan
    values : (D, H, W) float array, years, on the model's grid
    voxel_size : int, mm
    """
    from nilearn.plotting import plot_stat_map

    image = nibabel.Nifti1Image(values.astype(np.float32), model_grid(voxel_size).affine)
    with replacing(folder / f"{scan.name}_map.nii.gz") as temporary:
        nibabel.save(image, temporary)
    figure = Figure(figsize=(11, 6), facecolor="white")
    FigureCanvasAgg(figure)
    background = nibabel.Nifti1Image(read_image(scan.subject.path, 2), MNI152_T1_2MM.affine)
    largest = float(np.percentile(np.abs(values[values != 0]), 99.5)) if values.any() else 1.0
    plot_stat_map(
        image, bg_img=background, display_mode="mosaic", cut_coords=5, figure=figure, vmax=largest,
        threshold=0.2 * largest, black_bg=False, draw_cross=False, annotate=False,
        title=f"{scan.name}: red where it looks older (years)",
    )  # fmt: skip
    with replacing(folder / f"{scan.name}_map.png") as temporary:
        figure.savefig(temporary, dpi=100, format="png")
