"""The figure that compares runs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from utils.analysis.gap_figures import GREY
from utils.analysis.run_comparison import STAGES, Run, curve_of
from utils.common.figures import Figure

LONGEST = 34  # letters of a run's name; of longer ones the end is shown


def short(name: str) -> str:
    """Return a name that fits beside a panel."""
    return name if len(name) <= LONGEST else "..." + name[3 - LONGEST :]


def plot_comparison(runs: Sequence[Run], table: pd.DataFrame) -> Figure:
    """Draw the MAE of each run and its gain over the first, with intervals, and the training curves over each other.

    Parameters
    ----------
    runs : sequence of Run
    table : DataFrame
        Of `utils.analysis.run_comparison.compare`.
    """
    tested = bool(table["mae"].notna().any())
    stages = [stage for stage in STAGES if any(len(_curve(run, stage)) for run in runs)]
    layout: list[Any] = [*([["mae", "gain"]] if tested else []), *([[stages[0], stages[-1]]] if stages else [])]
    heights = [*([0.9 + 0.32 * len(runs)] if tested else []), *([3.2] if stages else [])]
    figure = Figure(figsize=(9.5, sum(heights) + 0.9), layout="constrained")
    panels: dict[Any, Axes] = figure.subplot_mosaic(layout, gridspec_kw={"height_ratios": heights})
    colors = [colormaps["tab10" if len(runs) <= 10 else "tab20"](number % 20) for number in range(len(runs))]
    for axes in panels.values():
        axes.spines[["top", "right"]].set_visible(False)
    if tested:
        _draw_intervals(panels["mae"], panels["gain"], table, colors)
    for stage in stages:
        axes = panels[stage]
        for run, color in zip(runs, colors, strict=True):
            if stage in run.trainings:
                curve, split = curve_of(run.trainings[stage])
                style: Any = {"linestyle": "-" if split == "valid" else ":", "marker": "o" if len(curve) == 1 else ""}
                axes.plot(curve.index, curve, color=color, linewidth=1.3, **style)
        axes.set(xlabel="Epoch", ylabel="MAE (years)", title=f"Training of the {stage}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in panels.values():
        axes.title.set_fontsize(10)
    if stages:
        named = {short(run.name): color for run, color in zip(runs, colors, strict=True)}
        figure.legend(
            handles=[Line2D([], [], color=color, label=name) for name, color in named.items()],
            loc="outside lower center", ncols=min(4, len(runs)), fontsize=7, frameon=False, title_fontsize=8,
            title="MAE after each epoch; solid: of the validation set, dotted: of the training set if there is none",
        )  # fmt: skip
    return figure


def _curve(run: Run, stage: str) -> pd.Series:
    return curve_of(run.trainings[stage])[0] if stage in run.trainings else pd.Series(dtype=float)


def _draw_intervals(left: Axes, right: Axes, table: pd.DataFrame, colors: Sequence[Any]) -> None:
    """Draw the MAE of both stages, and the gain over the first run."""
    places = -np.arange(len(table), dtype=float)

    def draw(axes: Axes, name: str, shift: float, **style: Any) -> None:
        for place, (_, row), color in zip(places, table.iterrows(), colors, strict=True):
            if name in row and np.isfinite(row[name]):
                ends = [[row[name] - row[f"{name}_low"]], [row[f"{name}_high"] - row[name]]]
                axes.errorbar(row[name], place + shift, xerr=ends, capsize=2, color=color, **style)

    draw(left, "mae", 0.12, fmt="o")
    draw(left, "first_stage_mae", -0.18, fmt="s", mfc="white", markersize=4, linewidth=1)
    staged = bool(table["first_stage_mae"].notna().any())
    title = "Accuracy: " + ("brain age (dot), its first stage (square)" if staged else "brain age")
    left.set(xlabel="MAE (years), 95 % interval", title=title)
    left.set_yticks(places, list(map(short, table["run"])), fontsize=8)
    draw(right, "gain", 0, fmt="o")
    right.axvline(0, color=GREY, linewidth=1)
    right.set_yticks(places, ["" if np.isnan(count) else f"N = {count:.0f}" for count in table["common"]], fontsize=8)
    right.set(
        xlabel="Fall of the MAE (years), 95 % interval",
        title=f"Gain over {short(table['run'][table['n'].notna()].iloc[0])}",
    )
    for axes in (left, right):
        axes.set_ylim(places[-1] - 0.6, 0.6)
        axes.tick_params(axis="y", length=0)
