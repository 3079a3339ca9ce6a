"""Figures of the brain-age gap."""

from collections.abc import Sequence

import matplotlib
import numpy as np

matplotlib.use("Agg")
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.analysis.diagnosis import ROC_GRID, Classification
from utils.evaluation.reports import MOST_DRAWN

BLUE, RED, GREEN, GREY = "#3b6ea5", "#b5413d", "#4d8b57", "0.45"


def _empty(width: float = 5.2, height: float = 3.6) -> tuple[Figure, Axes]:
    """Return a figure in the house style, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _panels(names: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Return a figure with titled panels of the same scale, two in a row, so that they stay legible on a phone."""
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(1.0 + 3.0 * columns, 0.4 + 2.9 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel().tolist()
    for axes, name in zip(panels, names, strict=False):
        axes.set_title(name)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(names) :]:
        axes.remove()
    return figure, panels[: len(names)]


def plot_gap_against_age(age: np.ndarray, gaps: dict[str, np.ndarray]) -> Figure:
    """Draw the gap against age with its trend, uncorrected and corrected side by side.

    Parameters
    ----------
    age : (N,) float array, years
    gaps : dict of str to (N,) float array, years
        By the name of the correction.
    """
    figure, panels = _panels(list(gaps))
    for axes, gap in zip(panels, gaps.values(), strict=True):
        axes.axhline(0, color=GREY, linewidth=1)
        axes.scatter(age, gap, s=12, alpha=0.6, color=BLUE, edgecolors="none", rasterized=len(gap) > MOST_DRAWN)
        slope, intercept = np.polyfit(age, gap, 1) if np.ptp(age) > 0 else (0.0, gap.mean())
        ends = np.array([age.min(), age.max()])
        axes.plot(ends, slope * ends + intercept, "--", color=RED, label=f"{slope:+.2f} years per year")
        axes.legend(frameon=False, fontsize=8, loc="upper right")
    figure.supxlabel("Chronological age (years)", fontsize=10)
    figure.supylabel("Brain-age gap (years)", fontsize=10)
    return figure


def plot_errors(table: pd.DataFrame, title: str) -> Figure:
    """Draw the MAE of each group with its interval.

    Parameters
    ----------
    table : DataFrame with ``group``, ``n``, ``mae``, ``mae_low``, ``mae_high``
    title : str
    """
    figure, axes = _empty(height=1.2 + 0.32 * len(table))
    places = np.arange(len(table))[::-1]
    axes.errorbar(
        table["mae"], places, xerr=[table["mae"] - table["mae_low"], table["mae_high"] - table["mae"]],
        fmt="o", color=BLUE, ecolor=GREY, capsize=3,
    )  # fmt: skip
    labels = [f"{group} (N = {n})" for group, n in zip(table["group"], table["n"], strict=True)]
    axes.set_yticks(places, labels)
    axes.set(xlabel="MAE (years), 95 % interval", title=title, ylim=(-0.7, len(table) - 0.3))
    axes.set_xlim(left=0)
    return figure


def plot_groups(gaps: dict[str, np.ndarray], correction: str) -> Figure:
    """Draw the gaps of each diagnosis as boxes and points."""
    figure, axes = _empty(height=1.2 + 0.7 * len(gaps))
    rng = np.random.default_rng(0)
    places = np.arange(len(gaps))[::-1]
    axes.boxplot(list(gaps.values()), positions=places, orientation="horizontal", widths=0.5, showfliers=False,
                 medianprops={"color": RED})  # fmt: skip
    for place, gap in zip(places, gaps.values(), strict=True):
        axes.scatter(
            gap, place + rng.uniform(-0.15, 0.15, len(gap)), s=10, alpha=0.5, color=BLUE, edgecolors="none",
            rasterized=len(gap) > MOST_DRAWN,
        )  # fmt: skip
    axes.axvline(0, color=GREY, linewidth=1, linestyle=":")
    axes.set_yticks(places, [f"{name} (N = {len(gap)})" for name, gap in gaps.items()])
    axes.set(xlabel=f"Brain-age gap, {correction} (years)", title="Gap by diagnosis")
    return figure


def plot_roc(title: str, machine: Classification, plain: Classification) -> Figure:
    """Draw the classifier's ROC curve with the spread over its splits, and that of the gap alone."""
    figure, axes = _empty(4.6, 4.4)
    curves = machine.roc_curves()
    axes.plot(ROC_GRID, curves.T, color=BLUE, alpha=min(0.5, 3 / len(curves)), linewidth=0.7)
    mean, sd = curves.mean(0), curves.std(0)
    axes.fill_between(
        ROC_GRID, np.clip(mean - sd, 0, 1), np.clip(mean + sd, 0, 1), color=BLUE, alpha=0.2, label="SD over splits"
    )
    axes.plot(ROC_GRID, mean, color=BLUE, linewidth=2, label=f"SVM on the gap, AUC {machine.auc():.2f}")
    axes.plot(ROC_GRID, plain.roc_curves()[0], "--", color=RED, label=f"the gap, no classifier, AUC {plain.auc():.2f}")
    axes.plot([0, 1], [0, 1], ":", color=GREY, label="chance")
    axes.set(xlabel="False positive rate", ylabel="True positive rate", title=title, aspect="equal")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def plot_coverage(table: pd.DataFrame, nominal: float) -> Figure:
    """Draw the share of intervals that hold the age, in each age bin.

    Parameters
    ----------
    table : DataFrame with ``age_bin``, ``interval``, ``coverage``, ``coverage_low``, ``coverage_high``
    nominal : float
    """
    figure, axes = _empty()
    bins = list(dict.fromkeys(table["age_bin"]))
    for shift, color, (kind, rows) in zip(
        (-0.12, 0.12), (BLUE, GREEN), table.groupby("interval", sort=False), strict=True
    ):
        places = np.array([bins.index(bin_) for bin_ in rows["age_bin"]]) + shift
        axes.errorbar(
            places, rows["coverage"],
            yerr=[rows["coverage"] - rows["coverage_low"], rows["coverage_high"] - rows["coverage"]],
            fmt="o", color=color, ecolor=color, capsize=3, label=kind,
        )  # fmt: skip
    axes.axhline(nominal, color=RED, linestyle="--", linewidth=1, label=f"promised, {nominal:.0%}")
    axes.set_xticks(range(len(bins)), bins, rotation=45)
    axes.set(ylim=(0, 1.02), ylabel="Share that holds the age", xlabel="Chronological age (years)")
    figure.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=3)
    return figure


def plot_bland_altman(one: np.ndarray, other: np.ndarray, lines: Sequence[float]) -> Figure:
    """Draw differences of repeated brain ages against their means.

    Parameters
    ----------
    one, other : (N,) float arrays, years
    lines : bias and the two limits of agreement, years
    """
    figure, axes = _empty()
    axes.scatter((one + other) / 2, other - one, s=16, alpha=0.7, color=BLUE, edgecolors="none")
    for value, style, label in zip(lines, ("-", "--", "--"), ("bias", "95 % limits", None), strict=True):
        axes.axhline(value, color=RED, linestyle=style, linewidth=1.2, label=label)
    axes.set(xlabel="Mean of the two brain ages (years)", ylabel="Second minus first (years)", title="Repeated scans")
    axes.legend(frameon=False, fontsize=8)
    return figure


def plot_slopes(slopes: dict[str, np.ndarray]) -> Figure:
    """Draw how many years of brain age pass in a year, for each group."""
    figure, panels = _panels(list(slopes))
    for axes, own in zip(panels, slopes.values(), strict=True):
        axes.hist(own, bins="auto", color=BLUE, alpha=0.8)
        axes.axvline(1, color=GREY, linestyle=":", label="ageing by the calendar")
        axes.axvline(own.mean(), color=RED, label=f"mean, {own.mean():.2f}")
        axes.legend(frameon=False, fontsize=8)
    figure.supxlabel("Years of brain age per year", fontsize=10)
    figure.supylabel("Persons", fontsize=10)
    return figure


def plot_truth(true_gap: np.ndarray, gaps: dict[str, np.ndarray]) -> Figure:
    """Draw estimated against true gaps, by correction."""
    figure, panels = _panels(list(gaps))
    ends = np.array([true_gap.min(), true_gap.max()])
    for axes, gap in zip(panels, gaps.values(), strict=True):
        axes.plot(ends, ends, color=GREY, linewidth=1, label="identity")
        axes.scatter(true_gap, gap, s=12, alpha=0.6, color=BLUE, edgecolors="none", rasterized=len(gap) > MOST_DRAWN)
        slope, intercept = np.polyfit(true_gap, gap, 1)
        axes.plot(ends, slope * ends + intercept, "--", color=RED, label=f"slope {slope:.2f}")
        axes.legend(frameon=False, fontsize=8, loc="upper left")
    figure.supxlabel("True gap (years)", fontsize=10)
    figure.supylabel("Estimated gap (years)", fontsize=10)
    return figure
