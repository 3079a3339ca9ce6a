"""Write predictions, metrics and the figure that shows them."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.common.figures import Figure
from utils.common.files import replacing, write_json
from utils.data.preparations import ORIGIN, each_origin, origin_of
from utils.data.subjects import SEX_NAMES, Subject
from utils.evaluation.metrics import Predictions, compare_errors, evaluate_ages

COLOURS, MARKERS = ("#4c72b0", "#dd8452", "#55a868", "#8172b3", "#937860", "#da8bc3"), "os^Dv"  # of groups
MOST_DRAWN = 2000  # points drawn as shapes; more become pixels, so that files stay small
METRIC_ROWS = (  # label, key of `evaluate_ages`, digits
    ("MAE (years)", "mae", 2),
    ("  95 % interval, from", "mae_low", 2),
    ("  to", "mae_high", 2),
    ("RMSE (years)", "rmse", 2),
    ("mean gap (years)", "mean_gap", 2),
    ("Pearson correlation", "pearson", 3),
    ("Spearman correlation", "spearman", 3),
    ("Spearman correlation of gap and age", "gap_age_spearman", 3),
)


def plot_ages(
    chronological_age: np.ndarray,
    brain_age: np.ndarray,
    title: str,
    lines: Sequence[str] = (),
    groups: Sequence[str] = (),
) -> Figure:
    """Draw brain age against chronological age, with the identity and the fit.

    Parameters
    ----------
    chronological_age, brain_age : (N,) float arrays, years
    title : str
    lines : sequence of str
        Written into the figure.
    groups : sequence of N str
        Such as sites, each drawn in a color of its own; none, or all equal: one color.
    """
    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    axes = figure.add_subplot()
    both = np.concatenate([chronological_age, brain_age])
    low, high = float(both.min()) - 3, float(both.max()) + 3
    axes.plot([low, high], [low, high], color="0.4", linewidth=1, label="identity")
    if len(brain_age) > 1 and np.ptp(chronological_age) > 0:
        slope, intercept = np.polyfit(chronological_age, brain_age, 1)
        ends = np.array([chronological_age.min(), chronological_age.max()])
        axes.plot(ends, slope * ends + intercept, "--", color="#c44e52", linewidth=1.5, label=f"fit, slope {slope:.2f}")
    group = np.array(groups if len(groups) else [""] * len(brain_age))
    names = sorted(set(group), key=lambda name: (-(group == name).sum(), name))
    for number, name in enumerate(names):
        chosen = group == name
        axes.scatter(
            chronological_age[chosen], brain_age[chosen], s=18, alpha=0.7, color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)], edgecolors="none", rasterized=len(brain_age) > MOST_DRAWN,
            label=name if len(names) > 1 else None,
        )  # fmt: skip
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal", title=title,
             xlabel="Chronological age (years)", ylabel="Brain age (years)")  # fmt: skip
    axes.text(0.03, 0.97, "\n".join(lines), transform=axes.transAxes, va="top", fontsize=9)
    axes.legend(loc="lower right", frameon=False)
    return figure


def describe_metrics(metrics: dict[str, Any]) -> list[str]:
    """Return the metrics as short lines of text."""

    def number(key: str, digits: int = 2) -> str:
        return "undefined" if metrics[key] is None else f"{metrics[key]:.{digits}f}"

    return [
        f"N = {metrics['n']}, {metrics['age_min']:.1f} to {metrics['age_max']:.1f} years (SD {number('age_sd', 1)})",
        f"MAE = {number('mae')} years (95 % interval {number('mae_low')} to {number('mae_high')})",
        f"RMSE = {number('rmse')}, mean gap = {number('mean_gap')} years",
        f"Pearson = {number('pearson', 3)}, Spearman = {number('spearman', 3)}",
        f"Spearman of gap and age = {number('gap_age_spearman', 3)}",
    ]


def report_files(npz_name: str = "predictions.npz", plot_name: str = "brain_age.png") -> list[str]:
    """Return the names of the files that `write_report` writes."""
    return ["predictions.csv", npz_name, "metrics.json", plot_name]


def write_report(
    folder: Path,
    subjects: Sequence[Subject],
    predictions: Predictions,
    title: str,
    columns: Sequence[str] = (),
    npz_name: str = "predictions.npz",
    plot_name: str = "brain_age.png",
    stage_report: Callable[[Predictions], tuple[dict[str, float], str]] | None = None,
    groups: Sequence[str] = (),
    weights_sha256: str | Sequence[str] = "",
) -> dict[str, Any] | None:
    """Write predictions as ``.csv`` and ``.npz``, and metrics and a figure if ages are known.

    Parameters
    ----------
    folder : Path
    subjects : sequence of N Subject
    predictions : dict of str to (N,) float array, years
    title : str
        Of the figure.
    columns : sequence of str
        Predictions to write besides the brain age. With ``first_stage_age``
        among them, the first stage's metrics are written, too, and the
        difference with its interval.
    npz_name, plot_name : str
        File names.
    stage_report : callable
        Returns further metrics, and a warning to write with them.
    groups : sequence of N str
        For `plot_ages`; none where there are no groups.
    weights_sha256 : str or sequence of N str
        SHA-256 of the files of weights, separated by blanks; of all subjects, or of each.

    Returns
    -------
    dict or None
        The metrics of the subjects with a known age; None if there are none.
    """
    age = predictions["chronological_age"]
    table: dict[str, np.ndarray] = {
        "subject_id": np.array([subject.subject_id for subject in subjects]),
        "person": np.array([subject.person for subject in subjects]),
        "chronological_age": age,
        "sex": np.array([SEX_NAMES[subject.sex] for subject in subjects]),
        "brain_age": predictions["brain_age"],
        "brain_age_gap": predictions["brain_age"] - age,
        **{name: predictions[name] for name in columns},
    }
    weights = np.broadcast_to(weights_sha256, len(subjects)).tolist()
    origins = [origin_of(subject.path, own) for subject, own in zip(subjects, weights, strict=True)]
    table |= {name: np.array([origin[name] for origin in origins]) for name in ORIGIN}
    with replacing(folder / "predictions.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        for row in zip(*table.values(), strict=True):
            writer.writerow(
                [cell if isinstance(cell, str) else "" if np.isnan(cell) else f"{cell:.4f}" for cell in row]
            )
    with replacing(folder / npz_name) as temporary, temporary.open("wb") as file:
        np.savez(file, **table)  # type: ignore[arg-type]
    known = np.isfinite(age)
    if not known.any():
        return None
    persons = table["person"][known]
    metrics = evaluate_ages(age[known], predictions["brain_age"][known], persons=persons)
    if stage_report:
        scalars, warning = stage_report({name: values[known] for name, values in predictions.items()})
        metrics |= {name: value if np.isfinite(value) else None for name, value in scalars.items()}
        metrics["warning"] = warning or None
        if "first_stage_age" in columns:
            first = predictions["first_stage_age"][known]
            metrics["first_stage"] = evaluate_ages(age[known], first, persons=persons)
            metrics["gain_interval"] = compare_errors(
                age[known], predictions["brain_age"][known], first, persons=persons
            )
    metrics["provenance"] = each_origin({name: table[name] for name in ORIGIN})
    write_json(folder / "metrics.json", metrics)
    figure = plot_ages(
        age[known], predictions["brain_age"][known], title, describe_metrics(metrics),
        np.array(groups)[known].tolist() if len(groups) else (),
    )  # fmt: skip
    with replacing(folder / plot_name) as temporary:
        figure.savefig(temporary, dpi=150, format=Path(plot_name).suffix.lstrip(".") or "png")
    return metrics


def announce_report(folder: Path, name: str, metrics: dict[str, Any] | None) -> None:
    """Print the metrics, of two stages side by side, and the folder of the files."""
    print(f"{name}: predictions and figure in {folder}")
    if metrics is None:
        print("  no age is known, so there are no metrics")
        return
    print("  " + describe_metrics(metrics)[0])
    stages = {"first stage": metrics["first_stage"], name: metrics} if "first_stage" in metrics else {name: metrics}
    print("  " + " " * 36 + "".join(f"{stage:>14}" for stage in stages))
    for label, key, digits in METRIC_ROWS:
        values = ["undefined" if m[key] is None else f"{m[key]:.{digits}f}" for m in stages.values()]
        print(f"  {label:<36}" + "".join(f"{value:>14}" for value in values))
    if "gain_interval" in metrics:
        gain = metrics["gain_interval"]
        print(
            f"  gain over the first stage, MAE: {gain['difference']:.2f} years "
            f"(95 % interval {gain['low']:.2f} to {gain['high']:.2f})"
        )
    if metrics.get("coverage") is not None:
        print(f"  the 90 % intervals hold the age of {100 * metrics['coverage']:.0f} % of the subjects")
    if metrics.get("residual_sd") is not None:
        print(f"  SD of the residual within equal discretized ages: {metrics['residual_sd']:.2f} years")
    if metrics.get("warning"):
        print(metrics["warning"])
