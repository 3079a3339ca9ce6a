"""From scans of any kind to what predict.py reports of each."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from utils.common.errors import InputError
from utils.common.files import replacing
from utils.data.images import (
    DEVIATIONS,
    MNI152_T1_2MM,
    deviation_file,
    model_grid,
    native_voxel_sizes,
    read_image,
    sharpness,
)
from utils.data.scans import ScanStore
from utils.data.subjects import DOUBTFUL, FAIL, Subject, person_of
from utils.data.tables import SEXES, read_label_table
from utils.evaluation.reports import SEX_NAMES
from utils.prediction.model_card import preparation_of
from utils.preparation.preprocessing_jobs import find_raw_scans, record_of
from utils.preparation.quality import TEMPLATE_COLOUR, misplacement, slices
from utils.preparation.splitting import FSL_PRODUCT, fsl_products
from utils.preparation.template import load_template

VOXEL_SIZES = (2, 4, 8)  # mm, of prepared scans
LARGEST_SHIFT = 2  # voxels of 2 mm; brains that are registered well lie 0 or 1 off
LEAST_BACKGROUND = 0.5  # share of the voxels of a brain-extracted scan that are 0
OTHER_SIZE = 1.1  # ratio of voxel sizes that are not alike
MARGIN = 5.0  # years, beyond the training ages, that a picture shows


@dataclass
class Scan:
    """A scan that is to get a brain age.

    Parameters
    ----------
    name : str
        Subject, and session where there is one.
    source : Path
    prepared : Path or None
        Its brain on the 2 mm grid, if there is one.
    chronological_age : float, years; NaN where unknown
    sex : int, 0 female, 1 male, -1 unknown
    failure : str
        Why there is no brain age.
    warnings : list of str
    brain_age : float, years; NaN where it failed
    radius : float, years
        Half the width of the brain age's 90 % interval.
    age_range : (low, high), years
        Of the training of the networks that estimated it.
    weights : str
        The folder of these networks.
    """

    name: str
    source: Path
    prepared: Path | None = None
    chronological_age: float = float("nan")
    sex: int = -1
    failure: str = ""
    warnings: list[str] = field(default_factory=list)
    brain_age: float = float("nan")
    radius: float = float("nan")
    age_range: Sequence[float] = ()
    weights: str = ""

    @property
    def subject(self) -> Subject:
        """What the networks need of it."""
        return Subject(self.name, self.prepared or self.source, self.chronological_age, self.sex)

    def estimate(self) -> str:
        """Say its brain age, the interval, and the gap where it is known."""
        age, radius = self.brain_age, self.radius
        gap = f", gap {age - self.chronological_age:+.1f}" if np.isfinite(self.chronological_age) else ""
        return f"{age:.1f} years ({age - radius:.0f} to {age + radius:.0f}){gap}"


def prepared_voxel_size(path: Path) -> int | None:
    """Return the voxel size, mm, of a brain with 0 around it on a grid of `model_grid`; None of any other file."""
    try:
        image: Any = nibabel.load(path)
        for voxel_size in VOXEL_SIZES:
            if sorted(image.shape[:3]) == sorted(model_grid(voxel_size).shape):
                background = (read_image(path, voxel_size)[0] == 0).mean()
                return voxel_size if background >= LEAST_BACKGROUND else None
    except Exception:  # damaged files raise many types; preprocessing says what is wrong with them
        pass
    return None


def add_labels(scans: Sequence[Scan], label_table: Path | None, sex_of_all: str | None) -> None:
    """Give scans the ages and sexes that a table tells of them.

    Parameters
    ----------
    scans : sequence of Scan, changed in place
    label_table : Path or None
    sex_of_all : str or None
        Such as ``F``, where the table does not tell.

    Raises
    ------
    InputError
        If the table cannot be read, or has something wrong of these scans.
    """
    table = read_label_table(label_table) if label_table else None
    if table and table.complaint:
        print(f"WARNING: {table.complaint}; without it there are no gaps")
    problems: list[str] = []
    for scan in scans:
        scan.sex = SEXES[sex_of_all.lower()] if sex_of_all else scan.sex
        if table is None:
            continue
        known = next(
            (key for key in (scan.name, f"{scan.name}_T1w", person_of(scan.name)) if key in table.problems), ""
        )
        problems += table.problems.get(known, [])
        scan.chronological_age = table.ages.get(known, scan.chronological_age)
        scan.sex = table.sexes.get(known, scan.sex)
        if not known:
            scan.warnings.append(f"no row of {table.path.name} tells of it")
    if problems:
        raise InputError(problems)


def add_preparation(scans: Sequence[Scan], expected: Sequence[Mapping[str, str] | None]) -> None:
    """Warn of scans that were prepared otherwise than those that the weights were trained on."""
    for scan in scans:
        own = preparation_of(scan.subject.path)
        if own not in expected:
            how = (
                f"with {own['registration']} registration, fingerprint {own['fingerprint']}"
                if own
                else "in a way that is not known (no dataset_description.json beside it)"
            )
            scan.warnings.append(f"prepared {how}, unlike the training scans: the estimate may be off")


def assign_weights(scans: Sequence[Scan], folders: Sequence[Path]) -> dict[Path, list[Scan]]:
    """Tell which weights estimate which scans, and warn of prepared brains without local deviations.

    Parameters
    ----------
    scans : sequence of Scan
        Raw ones as `add_records` left them.
    folders : sequence of one or two Path
        Of weights, and of those for brains without deviations.

    Returns
    -------
    dict of Path to list of Scan
        Of the folders; all scans that have not failed, once each.
    """
    groups: dict[Path, list[Scan]] = {folder: [] for folder in folders}
    for scan in scans:
        if scan.failure or scan.prepared is None:
            continue
        lacking = len(folders) > 1 and deviation_file(scan.prepared) is None
        groups[folders[lacking]].append(scan)
        scan.weights = folders[lacking].name
        if lacking:
            scan.warnings.append(
                f"has no {DEVIATIONS}/ beside it: the weights for such brains err more, and their interval holds less "
                "often for other tool chains than theirs; give the raw scan instead"
            )
    return groups


def add_training(scans: Sequence[Scan], training_persons: Sequence[str]) -> None:
    """Warn of persons that the networks were trained on, whose ages they know."""
    known = set(training_persons)
    for scan in scans:
        if person_of(scan.name) in known:
            scan.warnings.append("was trained on, so this is no estimate: its age is known by heart")


def add_records(scans: Mapping[str, Scan], records: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Take over what preprocessing made of raw scans, and what it thinks of them."""
    for record in records:
        scan = scans[record["name"]]
        _add_verdict(scan, record)
        if not scan.failure:
            scan.prepared = folder / f"{scan.name}.nii.gz"


def add_verdicts(scans: Sequence[Scan]) -> None:
    """Take over what preprocessing thought of prepared scans; where it has not made them, look where they lie."""
    for scan in scans:
        if scan.prepared is None or scan.failure:
            continue
        record = record_of(scan.prepared)
        if record:
            _add_verdict(scan, record)
            continue
        shift = np.abs(misplacement(read_image(scan.prepared, 2)[0], load_template())).max()
        if shift >= LARGEST_SHIFT:
            scan.warnings.append(
                f"lies about {2 * shift} mm off the template of MNI152, or is turned: the estimate may be off by "
                "many years; register it, or give the raw scan"
            )


def _add_verdict(scan: Scan, record: Mapping[str, Any]) -> None:
    """Note a verdict with its reasons."""
    reasons = "; ".join(record["reasons"])
    if record["verdict"] == FAIL:
        scan.failure = reasons
    elif record["verdict"] == DOUBTFUL:
        scan.warnings.append(f"preprocessing is doubtful: {reasons}")


def check_scans(scans: Sequence[Scan], store: ScanStore) -> list[Scan]:
    """Return the scans that can be read, and note why the others cannot."""
    for scan in scans:
        scan.failure = "; ".join(store.prepare([scan.subject.path]))
    return [scan for scan in scans if not scan.failure]


def add_sharpness(scans: Sequence[Scan], expected: Sequence[float] | None) -> None:
    """Warn of scans that are less or more sharp than nearly all that the weights were trained on."""
    if expected is None:
        return
    low, high = expected
    for scan in scans:
        value = sharpness(scan.subject.path)
        if value < low or value > high:
            how = "less sharp, as by motion or interpolation," if value < low else "sharper, as of another protocol,"
            scan.warnings.append(
                f"{how} than 95 % of the training scans ({value:.2f}; theirs {low:.2f} to {high:.2f}): "
                "the estimate may be off by years"
            )


def add_voxel_sizes(scans: Sequence[Scan], expected: Sequence[float] | None) -> None:
    """Warn of scans with voxels of another size than the training scans, which show more or less of what is fine."""
    if expected is None:
        return
    low, high = expected
    for scan in scans:
        sizes = native_voxel_sizes(scan.subject.path)
        if sizes and (min(sizes) < low / OTHER_SIZE or max(sizes) > high * OTHER_SIZE):
            shown = "x".join(f"{size:.2g}" for size in sizes)
            scan.warnings.append(
                f"voxels of {shown} mm, the training scans' were of {low:.2g} to {high:.2g} mm: the estimate may be "
                "off by years"
            )


def add_ages(scans: Sequence[Scan], brain_ages: np.ndarray, radius: float, age_range: Sequence[float]) -> None:
    """Give scans their brain ages, and warn of ages that training did not cover."""
    low, high = age_range
    for scan, brain_age in zip(scans, brain_ages, strict=True):
        scan.brain_age, scan.radius, scan.age_range = float(brain_age), radius, age_range
        for what, age in (("brain age", scan.brain_age), ("chronological age", scan.chronological_age)):
            if age < low or age > high:
                scan.warnings.append(f"{what} {age:.1f} is outside the training range, {low:.0f} to {high:.0f} years")


def write_table(path: Path, scans: Sequence[Scan]) -> None:
    """Write ``predictions.csv``, a row for each scan; cells of unknown numbers are empty."""

    def number(value: float) -> str:
        return f"{value:.2f}" if np.isfinite(value) else ""

    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["subject_id", "chronological_age", "sex", "brain_age", "interval_low", "interval_high", "brain_age_gap",
             "status", "warnings", "weights", "scan"]
        )  # fmt: skip
        for scan in scans:
            age, radius = scan.brain_age, scan.radius
            writer.writerow(
                [scan.name, number(scan.chronological_age), SEX_NAMES[scan.sex], number(age), number(age - radius),
                 number(age + radius), number(age - scan.chronological_age), "failed" if scan.failure else "ok",
                 scan.failure or "; ".join(scan.warnings), scan.weights, str(scan.source)]
            )  # fmt: skip


def draw_scan(path: Path, scan: Scan) -> None:
    """Draw the brain in slices with the template's outline, and its age on an axis.

    Parameters
    ----------
    path : Path of the PNG file
    scan : Scan with a brain age
    """
    volume = read_image(scan.subject.path, 2)[0]
    figure = Figure(figsize=(9, 5.6), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    picture, axis = figure.subplots(2, 1, height_ratios=[6, 1])
    picture.imshow(slices(volume, volume, load_template().brain, TEMPLATE_COLOUR))
    picture.set_axis_off()
    known = np.isfinite(scan.chronological_age)
    picture.set_title(f"{scan.name}: brain age {scan.estimate()}", loc="left", fontsize=13, fontweight="bold")
    axis.axvspan(*scan.age_range, color="0.92", label="training ages")
    axis.errorbar(
        scan.brain_age,
        0,
        xerr=scan.radius,
        fmt="o",
        color="#4c72b0",
        capsize=5,
        markersize=9,
        label="brain age, 90 % interval",
    )
    if known:
        axis.plot(
            scan.chronological_age, 0, "|", color="#c44e52", markersize=18, markeredgewidth=3, label="chronological age"
        )
    low = min(scan.age_range[0], scan.brain_age - scan.radius)
    high = max(scan.age_range[1], scan.brain_age + scan.radius)
    axis.set(xlim=(low - MARGIN, high + MARGIN), ylim=(-1, 2), yticks=[], xlabel="years")
    axis.legend(loc="upper left", ncols=3, frameon=False, fontsize=9, borderaxespad=0.1)
    if scan.warnings:
        axis.annotate(
            "\n".join(f"warning: {warning}" for warning in scan.warnings), (0, -0.9), xycoords="axes fraction",
            va="top", fontsize=9, color="#c44e52", annotation_clip=False, wrap=True,
        )  # fmt: skip
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")


def write_map(folder: Path, scan: Scan, values: np.ndarray, voxel_size: int) -> None:
    """Write a map of where the network looks as NIfTI, and as a picture over the brain.

    Parameters
    ----------
    folder : Path
    scan : Scan
    values : (D, H, W) float array, years, on the model's grid
    voxel_size : int, mm
    """
    from nilearn.plotting import plot_stat_map

    image = nibabel.Nifti1Image(values.astype(np.float32), model_grid(voxel_size).affine)
    with replacing(folder / f"{scan.name}_map.nii.gz") as temporary:
        nibabel.save(image, temporary)
    figure = Figure(figsize=(11, 6), facecolor="white")
    FigureCanvasAgg(figure)
    background = nibabel.Nifti1Image(read_image(scan.subject.path, 2)[0], MNI152_T1_2MM.affine)
    largest = float(np.percentile(np.abs(values[values != 0]), 99.5)) if values.any() else 1.0
    plot_stat_map(
        image, bg_img=background, display_mode="mosaic", cut_coords=5, figure=figure, vmax=largest,
        threshold=0.2 * largest, black_bg=False, draw_cross=False, annotate=False,
        title=f"{scan.name}: red looks older (years)",
    )  # fmt: skip
    with replacing(folder / f"{scan.name}_map.png") as temporary:
        figure.savefig(temporary, dpi=100, format="png")


def describe(scans: Sequence[Scan]) -> Iterator[str]:
    """Say of each scan a line, and of all of them one."""
    width = max(len(scan.name) for scan in scans)
    for scan in scans:
        if scan.failure:
            yield f"{scan.name:<{width}}  failed: {scan.failure}"
            continue
        yield "; ".join([f"{scan.name:<{width}}  {scan.estimate()}", *scan.warnings])
    usable = [scan for scan in scans if not scan.failure]
    warned = sum(bool(scan.warnings) for scan in usable)
    if len({scan.weights for scan in usable}) > 1:
        yield "WARNING: these ages come from different weights (see the column weights); do not compare them"
    yield (
        f"{len(scans)} scan{'' if len(scans) == 1 else 's'}: {len(usable)} with a brain age, "
        f"{warned} of them with a warning, "
        f"{len(scans) - len(usable)} failed"
    )


def find_scans(source: Path) -> list[Scan]:
    """List the scans of a file, a folder, a BIDS data set or fsl_anat's folders, and which of them are prepared.

    Raises
    ------
    InputError
        If there is none, or two would get the same name.
    """
    fsl = fsl_products(source.parent.parent if source.name == FSL_PRODUCT else source)
    if fsl:
        return [_scan(name, path) for name, path in fsl.items() if source.is_dir() or path == source]
    return [_scan(found.name, found.path) for found in find_raw_scans(source)]


def _scan(name: str, path: Path) -> Scan:
    """Tell a prepared scan from a raw one; note that averages of a prepared one serve as neither."""
    voxel_size = prepared_voxel_size(path)
    if voxel_size in (None, 2):
        return Scan(name, path, path if voxel_size else None)
    reason = f"is a prepared brain averaged to {voxel_size} mm; give the brain at 2 mm, or the raw scan"
    return Scan(name, path, path, failure=reason)
