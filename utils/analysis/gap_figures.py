"""Figures of the brain-age gap."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from sklearn.metrics import roc_curve

from utils.common.figures import Figure
from utils.evaluation.reports import MOST_DRAWN

BLUE, RED, GREY = "#3b6ea5", "#b5413d", "0.45"


def _empty(width: float = 5.2, height: float = 3.6) -> tuple[Figure, Axes]:
    """Return a figure and its axes, without the upper and right frame."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plot_gaps(x: np.ndarray, gaps: Mapping[str, np.ndarray], xlabel: str, ylabel: str, target: float) -> Figure:
    """Draw the gap of each correction against another quantity, years, with its trend and the ideal slope `target`."""
    columns = min(2, len(gaps))
    rows = -(-len(gaps) // columns)
    figure = Figure(figsize=(1.0 + 3.0 * columns, 0.4 + 2.9 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    ends = np.array([x.min(), x.max()])
    for axes, (name, gap) in zip(panels, gaps.items(), strict=False):
        axes.set_title(name)
        axes.spines[["top", "right"]].set_visible(False)
        axes.plot(ends, target * ends, color=GREY, linewidth=1)
        axes.scatter(x, gap, s=12, alpha=0.6, color=BLUE, edgecolors="none", rasterized=len(gap) > MOST_DRAWN)
        slope, intercept = np.polyfit(x, gap, 1) if np.ptp(x) > 0 else (0.0, gap.mean())
        axes.plot(ends, slope * ends + intercept, "--", color=RED, label=f"slope {slope:.2f}")
        axes.legend(frameon=False, fontsize=8)
    for axes in panels[len(gaps) :]:
        axes.remove()
    figure.supxlabel(xlabel, fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    return figure


def plot_intervals(table: pd.DataFrame, name: str, xlabel: str, nominal: float | None = None) -> Figure:
    """Draw the quantity `name` of each ``group`` of a table with its interval, and its nominal value as a line."""
    figure, axes = _empty(height=1.2 + 0.32 * len(table))
    values, low, high = (table[f"{name}{end}"].astype(float) for end in ("", "_low", "_high"))
    places = np.arange(len(table))[::-1]
    axes.errorbar(values, places, xerr=[values - low, high - values], fmt="o", color=BLUE, ecolor=GREY, capsize=3)
    if nominal is not None:
        axes.axvline(nominal, color=RED, linestyle="--", linewidth=1, label=f"nominal, {nominal:.0%}")
        figure.legend(frameon=False, fontsize=8, loc="outside upper center")
    axes.set_yticks(places, [f"{group} (N = {n})" for group, n in zip(table["group"], table["n"], strict=True)])
    axes.set(xlabel=xlabel, ylim=(-0.7, len(table) - 0.3))
    axes.set_xlim(left=0)
    return figure


def plot_groups(gaps: Mapping[str, np.ndarray]) -> Figure:
    """Draw the gaps of each group, (N,) float arrays in years, as boxes."""
    figure, axes = _empty(height=1.2 + 0.4 * len(gaps))
    places = np.arange(len(gaps))[::-1]
    axes.boxplot(list(gaps.values()), positions=places, orientation="horizontal", widths=0.5)
    axes.axvline(0, color=GREY, linewidth=1, linestyle=":")
    axes.set_yticks(places, [f"{name} (N = {len(gap)})" for name, gap in gaps.items()])
    axes.set(xlabel="Brain-age gap (years)")
    return figure


def plot_roc(patient: np.ndarray, scores: Mapping[str, np.ndarray], title: str) -> Figure:
    """Draw the ROC curves of several scores of the same subjects, (N,) float arrays."""
    figure, axes = _empty(4.6, 4.4)
    for name, score in scores.items():
        false_rate, true_rate, _ = roc_curve(patient, score)
        axes.plot(false_rate, true_rate, label=name)
    axes.plot([0, 1], [0, 1], ":", color=GREY, label="chance")
    axes.set(xlabel="False positive rate", ylabel="True positive rate", title=title, aspect="equal")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def plot_bland_altman(one: np.ndarray, other: np.ndarray, lines: Sequence[float]) -> Figure:
    """Draw differences of repeated brain ages against their means, with bias and limits of agreement, years."""
    figure, axes = _empty()
    axes.scatter((one + other) / 2, other - one, s=16, alpha=0.7, color=BLUE, edgecolors="none")
    for value, style, label in zip(lines, ("-", "--", "--"), ("bias", "95 % limits", None), strict=True):
        axes.axhline(value, color=RED, linestyle=style, linewidth=1.2, label=label)
    axes.set(xlabel="Mean of the two brain ages (years)", ylabel="Second minus first (years)")
    figure.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=2)
    return figure
