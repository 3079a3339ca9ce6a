"""What is known of each scan: brain age, interval and warnings; calibrated, tabulated, described."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from model.conventions import UNKNOWN_SEX
from utils.common.errors import MOST_PROBLEMS_SHOWN, InputError, shortened
from utils.common.files import replacing
from utils.data.image_files import open_image
from utils.data.preparations import ORIGIN, origin_of
from utils.data.scan_folders import file_name_of
from utils.data.subjects import SEX_NAMES, UNKNOWN_AGE, Subject
from utils.evaluation.metrics import INTERVAL_COVERAGE, interval_radius
from utils.prediction.calibration import Calibration, fit_calibration, prior_of

COARSEST = 2.5  # mm, of the voxels of raw scans; those of the training scans have 2 mm or less


@dataclass
class PredictedScan:
    """A scan whose brain age is estimated, and what is known of it so far.

    Parameters
    ----------
    name : str
        Of subject and session.
    source : Path
    prepared : Path or None
        The brain on the 2 mm grid of MNI152, once there is one.
    chronological_age : float, years; NaN where unknown
    sex : int, 0 female, 1 male, -1 unknown
    person : str
        Whose scan it is, if a table says so; empty: the name tells.
    failure : str
        Why there is no brain age; empty otherwise.
    warnings : list of str
    brain_age : float, years; NaN where it failed
    radius : float, years
        Half the width of the brain age's 90 % interval.
    interval_from : str
        The errors that the interval comes from.
    uncalibrated_age : float, years
        The brain age before calibration; NaN without one.
    distance : float
        From the training scans; see `utils.prediction.likeness.measure_distance`.
    unlike : bool
        Whether the scan is unlike the training scans.
    age_range : (low, high), years
        Ages of the training subjects.
    """

    name: str
    source: Path
    prepared: Path | None = None
    chronological_age: float = UNKNOWN_AGE
    sex: int = UNKNOWN_SEX
    person: str = ""
    failure: str = ""
    warnings: list[str] = field(default_factory=list)
    brain_age: float = UNKNOWN_AGE
    radius: float = UNKNOWN_AGE
    interval_from: str = ""
    uncalibrated_age: float = UNKNOWN_AGE
    distance: float = np.nan
    unlike: bool = False
    age_range: Sequence[float] = ()

    @property
    def subject(self) -> Subject:
        """The scan as the data set takes it."""
        return Subject(
            self.name, self.prepared or self.source, self.chronological_age, self.sex, person=self.person
        )  # fmt: skip

    @property
    def table_key(self) -> str:
        """The name by which a label table is searched."""
        return file_name_of(self.source)

    @property
    def interval(self) -> tuple[float, float]:
        """The bounds of the brain age's 90 % interval, years; no age is below 0."""
        return max(0.0, self.brain_age - self.radius), self.brain_age + self.radius

    @property
    def status(self) -> str:
        """``ok``, ``unlike training scans`` or ``failed``."""
        return "failed" if self.failure else "unlike training scans" if self.unlike else "ok"

    def estimate(self) -> str:
        """Return brain age, interval and, where the age is known, gap in words."""
        age, (low, high) = self.brain_age, self.interval
        gap = f", gap {age - self.chronological_age:+.1f}" if np.isfinite(self.chronological_age) else ""
        return f"{age:.1f} years ({low:.0f} to {high:.0f}){gap}"


def add_intervals(scans: Sequence[PredictedScan], manifest: Mapping[str, Any], scanner: str) -> None:
    """Set the intervals of the brain ages, years.

    Parameters
    ----------
    scans : sequence of PredictedScan with brain ages, changed in place
    manifest : mapping
        Of the weights.
    scanner : str
        The training site on whose scanner the scans were made; empty: one that training never saw.

    Raises
    ------
    InputError
        If the training knew no such site.
    """
    errors, source = interval_errors(manifest, scanner)
    radius = interval_radius(errors, INTERVAL_COVERAGE)
    for scan in scans:
        scan.radius, scan.interval_from = radius, source
        scan.age_range = manifest["age_range"]


def interval_errors(manifest: Mapping[str, Any], scanner: str) -> tuple[np.ndarray, str]:
    """Return the absolute errors, (N,) float array, years, that intervals come from, and which they are."""
    sites = manifest.get("unseen_site_gaps", {})
    if scanner and scanner not in sites:
        raise InputError(
            f"--scanner {scanner}: the weights were trained on "
            + (f"the scanners {', '.join(sites)}" if sites else "scanners without names")
            + "; give one of them, or leave SCANNER empty for a scanner that training never saw"
        )
    if scanner or not sites:
        return np.asarray(manifest["out_of_fold_errors"]), "training scanners"
    return np.abs(np.concatenate([np.asarray(gaps) for gaps in sites.values()])), "unseen scanners"


def calibrate(
    scans: Sequence[PredictedScan], people: Sequence[tuple[PredictedScan, float]], manifest: Mapping[str, Any]
) -> Calibration:
    """Calibrate all brain ages by healthy people of the same scanner.

    Parameters
    ----------
    scans : sequence of PredictedScan, changed in place
    people : sequence of (PredictedScan, age in years)
        Of `utils.prediction.scan_labels.calibration_people`.
    manifest : mapping
        Of the weights.
    """
    gaps = [np.asarray(own) for own in manifest.get("unseen_site_gaps", {}).values() if own]
    errors = np.asarray(manifest["out_of_fold_errors"])
    prior = prior_of(gaps) if gaps else (float(errors.mean()), float(np.sqrt(np.mean(errors**2))))
    used, ages = zip(*people, strict=True)
    calibration = fit_calibration(np.array(ages), np.array([scan.brain_age for scan in used]), *prior)
    calibrated, radii = calibration.apply(np.array([scan.brain_age for scan in scans]))
    for scan, age, radius in zip(scans, calibrated, radii, strict=True):
        scan.uncalibrated_age, scan.brain_age, scan.radius = scan.brain_age, float(age), float(radius)
        scan.interval_from = f"calibration by {calibration.people} people"
    for scan in used:
        scan.warnings.append("was used for the calibration; its gap is smaller than that of others")
    return calibration


def add_likeness(scans: Sequence[PredictedScan], limit: float) -> None:
    """Mark scans that are unlike the training scans, and widen their intervals.

    Parameters
    ----------
    scans : sequence of PredictedScan with distances, changed in place
    limit : float
        What hardly any training scan exceeds.
    """
    for scan in scans:
        if scan.distance > limit:
            scan.unlike = True
            scan.radius *= scan.distance / limit
            scan.warnings.append(
                f"is unlike the training scans (distance {scan.distance:.2f}, expected at most {limit:.2f}); the "
                "estimate may be off by many years"
            )


def add_coarseness(scans: Sequence[PredictedScan]) -> None:
    """Mark raw scans whose voxels are coarser than those of all training scans, and widen their intervals.

    The same scans stored at 3 mm were estimated 9 years older (docs/results.md).
    """
    for scan in scans:
        if scan.prepared != scan.source:
            with open_image(scan.source) as image:
                size = float(max(image.header.get_zooms()[:3]))
            if size > COARSEST:
                scan.unlike = True
                scan.radius *= size / 2
                scan.warnings.append(f"has voxels of {size:g} mm, coarser than the training scans; it may look too old")


def add_age_warnings(scans: Sequence[PredictedScan], manifest: Mapping[str, Any]) -> None:
    """Warn of ages outside the training range, or outside that of the errors that the interval comes from."""
    youngest, oldest = manifest.get("unseen_site_ages", (0.0, np.inf))
    for scan in scans:
        if scan.interval_from == "unseen scanners" and not youngest <= scan.brain_age <= oldest:
            scan.warnings.append(
                f"no scanner that was held out had people of {scan.brain_age:.0f} years (only {youngest:.0f} to "
                f"{oldest:.0f}), so the interval may be too narrow"
            )
        low, high = scan.age_range
        for what, age in (("brain age", scan.brain_age), ("chronological age", scan.chronological_age)):
            if age < low or age > high:
                scan.warnings.append(f"{what} {age:.1f} is outside the training range, {low:.0f} to {high:.0f} years")


def write_table(path: Path, scans: Sequence[PredictedScan], weights_sha256: str) -> None:
    """Write one row for each scan, with the SHA-256 of the weights; unknown numbers are left empty."""

    def number(value: float) -> str:
        return f"{value:.2f}" if np.isfinite(value) else ""

    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["subject_id", "person", "chronological_age", "sex", "brain_age", "interval_low", "interval_high",
             "brain_age_gap", "interval_from", "uncalibrated_age", "status", "warnings", "scan", *ORIGIN]
        )  # fmt: skip
        for scan in scans:
            known = np.isfinite(scan.brain_age)
            writer.writerow(
                [scan.name, scan.subject.person, number(scan.chronological_age), SEX_NAMES[scan.sex],
                 number(scan.brain_age), *(number(bound) if known else "" for bound in scan.interval),
                 number(scan.brain_age - scan.chronological_age), scan.interval_from, number(scan.uncalibrated_age),
                 scan.status, scan.failure or "; ".join(scan.warnings), str(scan.source),
                 *origin_of(scan.subject.path, weights_sha256).values()]
            )  # fmt: skip


def describe(scans: Sequence[PredictedScan]) -> Iterator[str]:
    """Yield a line for each scan, of many only for those that failed, and a summary."""
    shown = scans if len(scans) <= MOST_PROBLEMS_SHOWN else [scan for scan in scans if scan.failure]
    width = max((len(scan.name) for scan in shown), default=0)
    lines = []
    for scan in shown:
        outcome = [f"failed: {scan.failure}"] if scan.failure else [scan.estimate(), *scan.warnings]
        lines.append(f"{scan.name:<{width}}  {'; '.join(outcome)}")
    yield from shortened(lines)
    usable = [scan for scan in scans if not scan.failure]
    warned = sum(bool(scan.warnings) for scan in usable)
    unlike = sum(scan.unlike for scan in usable)
    yield (
        f"{len(scans)} scan{'' if len(scans) == 1 else 's'}: {len(usable)} with a brain age, {warned} of them with a "
        f"warning, {unlike} unlike the training scans, {len(scans) - len(usable)} failed"
    )
