"""Tables and figures of the ablation."""

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.lines import Line2D
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.ablation_rows import BATCHES, LOSSES, PAPER, Row
from model.building import load_network
from utils.analysis.gap_figures import BLUE, GREY, RED
from utils.common import distributed
from utils.common.checkpoints import load_checkpoint
from utils.common.figures import Figure
from utils.common.files import replacing, write_json
from utils.data.cohort import split_into_folds
from utils.data.dataset import ScanDataset
from utils.data.scans import ScanStore, data_settings
from utils.data.subjects import Subject, person_of
from utils.evaluation.metrics import BOOTSTRAP_RESAMPLES, accuracy, compare_errors
from utils.evaluation.predicting import predict

TERMS = {"error": "error", "ranking": "ranking", "age_difference": "age difference"}
ALPHAS = np.logspace(0, 6, 13)
PROBE_PARTS = 10
NO_GAIN = {"compared_with": "", "common_seeds": 0, "gain": np.nan, "gain_low": np.nan, "gain_high": np.nan}
GRADIENT_HEAD = "gradient norm beside the error's | ranking: first epoch, last | age difference: first epoch, last"


def read_row(root: Path, row: Row, folds: int) -> pd.DataFrame:
    """Return a row's tests, with absolute errors in years; only of seeds with which all folds are finished."""
    folder = "test" if row.second is not None else "first_stage_test"
    tables = [
        pd.read_csv(path, dtype={"subject_id": str, "person": str}).assign(
            seed=path.parents[1].name, fold=path.parents[2].name
        )
        for path in sorted(root.glob(f"{row.name}/fold_*/seed_*/{folder}/predictions.csv"))
    ]
    columns = ["subject_id", "person", "seed", "fold", "chronological_age", "brain_age"]
    table = (pd.concat(tables) if tables else pd.DataFrame()).reindex(columns=columns)
    table["person"] = table["person"].fillna(table["subject_id"].map(person_of))  # of tables before version 0.5
    table = table.assign(error=(table["brain_age"] - table["chronological_age"]).abs())
    return table[table.groupby("seed")["fold"].transform("nunique") == folds]


def errors_by_seed(table: pd.DataFrame) -> pd.DataFrame:
    """Return the errors of a table of `read_row` by subject (index) and seed (columns)."""
    return table.pivot(index="subject_id", columns="seed", values="error")


def interval_over_seeds(values: np.ndarray, persons: Sequence[str], folds: Sequence[str]) -> tuple[float, float]:
    """Return the 95 % interval of a mean by the bootstrap over persons and, within each fold, over seeds.

    Parameters
    ----------
    values : (S, N) float array
        Of each seed and scan. With one seed the interval leaves out how much another training would change.
    persons, folds : sequences of N str
        Whose scan it is, and in which fold it was tested.

    Notes
    -----
    S draws with replacement have only (S - 1) / S of the variance between seeds, so deviations from the mean of the
    seeds are widened by its root.
    """
    rng = np.random.default_rng(0)
    seeds = len(values)
    center = values.mean(0)
    deviations = (values - center) * np.sqrt(seeds / max(1, seeds - 1))
    person = np.unique(np.asarray(persons), return_inverse=True)[1]
    fold = np.unique(np.asarray(folds), return_inverse=True)[1]
    counts, means = np.bincount(person), []
    for _ in range(BOOTSTRAP_RESAMPLES):
        drawn = rng.integers(0, seeds, (seeds, fold.max() + 1))[:, fold]  # the seeds of each scan's fold
        sums = np.bincount(person, center + np.take_along_axis(deviations, drawn, 0).mean(0))
        draw = rng.integers(0, len(counts), len(counts))
        means.append(sums[draw].sum() / counts[draw].sum())
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def describe_row(row: Row, tables: dict[str, pd.DataFrame], root: Path, true_ages: pd.Series | None) -> dict[str, Any]:
    """Return the figures of a row, and its gain over the row that it is compared with.

    Parameters
    ----------
    row : Row
    tables : dict of str to DataFrame
        Of `read_row`, by row.
    root : Path
    true_ages : Series or None, years
        What the pictures of simulated people show, by subject.
    """
    table = tables[row.name]
    errors = errors_by_seed(table)
    once = table.drop_duplicates("subject_id").set_index("subject_id").loc[errors.index]
    age = once["chronological_age"]
    persons, folds = once["person"].tolist(), once["fold"].tolist()
    low, high = interval_over_seeds(errors.to_numpy().T, persons, folds)
    figures = [accuracy(own["chronological_age"].to_numpy(float), own["brain_age"].to_numpy(float))
               for _, own in table.groupby("seed")]  # fmt: skip
    result = {
        "part": row.part, "row": row.name, "meaning": row.meaning, "people": len(set(persons)),
        "seeds": errors.shape[1], "mae": float(errors.to_numpy().mean()), "mae_low": low, "mae_high": high,
        "sd_between_seeds": float(errors.mean().std()),
        "floor": np.nan if true_ages is None else float((true_ages[errors.index] - age).abs().mean()),
        **{name: float(np.mean([own[name] for own in figures])) for name in ("pearson", "spearman")},
        "seconds": seconds_of(root, row), **NO_GAIN,
    }  # fmt: skip
    other = tables[row.reference]
    if row.reference != row.name and len(other):
        others = errors_by_seed(other)
        seeds = [seed for seed in errors if seed in others]
        if seeds:
            gain = (others.loc[errors.index, seeds] - errors[seeds]).to_numpy().T
            low, high = interval_over_seeds(gain, persons, folds)
            result |= {"compared_with": row.reference, "common_seeds": len(seeds), "gain": float(gain.mean()),
                       "gain_low": low, "gain_high": high}  # fmt: skip
    return result


def seconds_of(root: Path, row: Row) -> float:
    """Return how long a row's own networks were trained for a fold and seed, on average, without start and tests."""
    runs = list(root.glob(f"{row.name}/fold_*/seed_*"))
    seconds = 0.0
    for path in root.glob(f"{row.name}/fold_*/seed_*/*_stage/**/metrics.csv"):
        if path.with_name("best.pt").exists():
            people = len(load_checkpoint(path.with_name("best.pt"))["train_subjects"])
            seconds += float((people / pd.read_csv(path)["scans_per_second"]).sum())
    return seconds / len(runs)


def read_gradients(root: Path, row: Row) -> pd.DataFrame:
    """Return the mean norm of each loss term's gradient by epoch, over folds and seeds; empty without one."""
    paths = sorted(root.glob(f"{row.name}/fold_*/seed_*/first_stage/metrics.csv"))
    if not paths:
        return pd.DataFrame()
    table = pd.concat([pd.read_csv(path) for path in paths]).groupby("epoch").mean()
    found = table.filter(regex="^train/.*_gradient$").rename(columns=lambda name: name[6:].removesuffix("_gradient"))
    return found.loc[:, found.any()].rename(columns=lambda name: "error" if name.endswith("_loss") else name)


class Features:
    """The stage that predicts the first stage's features."""

    def predict(self, network: Any, batch: Any) -> dict[str, torch.Tensor]:
        """Return ``features``, (B, F) float32 tensor."""
        return {"features": network.trunk(batch["volume"])}


def probe_errors(root: Path, subjects: Sequence[Subject], cache_folder: Path | None) -> dict[str, Any]:
    """Measure how much of the first stage's errors on new people its own features tell, by a linear probe.

    Parameters
    ----------
    root : Path
        Of the ablation.
    subjects : sequence of Subject
    cache_folder : Path or None

    Returns
    -------
    dict
        ``n``; ``r2``, the share of the errors' variance within folds that ridge regression on the features, the
        brain age and the sex explains, on people outside its own fit; ``gain`` with ``low`` and ``high``: by how many
        years the MAE falls, beside a constant correction.
    """
    device = distributed.start("auto")
    people = {subject.subject_id: subject for subject in subjects}
    ages, constant, probed, names = [], [], [], []
    for path in sorted(root.glob(f"{PAPER}/fold_*/seed_0/first_stage_test/predictions.csv")):
        checkpoint = load_checkpoint(path.parents[1] / "first_stage" / "best.pt")
        table = pd.read_csv(path, dtype={"subject_id": str})
        own = [people[name] for name in table["subject_id"]]
        scans = ScanStore(*data_settings(checkpoint, None), cache_folder)
        scans.prepare([subject.path for subject in own])
        features = predict(
            load_network(checkpoint, 1).to(device), Features(), ScanDataset(own, scans), device, batch_size=8,
            num_workers=0, precision="float32", label="features",
        )["features"]  # fmt: skip
        age, brain_age = table["chronological_age"].to_numpy(float), table["brain_age"].to_numpy(float)
        known = np.column_stack([features, brain_age, [subject.sex for subject in own]])
        parts = list(split_into_folds(own, min(PROBE_PARTS, len({s.person for s in own})), 0))
        ages.append(age)
        constant.append(brain_age + cross_val_predict(DummyRegressor(), known, age - brain_age, cv=parts))
        ridge = make_pipeline(StandardScaler(), RidgeCV(ALPHAS))
        probed.append(brain_age + cross_val_predict(ridge, known, age - brain_age, cv=parts))
        names += [subject.person for subject in own]
    age, before, after = (np.concatenate(parts) for parts in (ages, constant, probed))
    gain = compare_errors(age, after, before, persons=np.array(names))
    r2 = 1 - ((age - after) ** 2).sum() / ((age - before) ** 2).sum()
    return {"n": len(age), "r2": float(r2), "gain": gain["difference"], "low": gain["low"], "high": gain["high"]}


def read_true_ages(label_table: Path) -> pd.Series | None:
    """Return the brain ages, years, that simulated pictures show, by subject; None for real people."""
    if label_table.suffix != ".csv":
        return None
    table = pd.read_csv(label_table, dtype={"subject_id": str})
    return table.set_index("subject_id")["true_brain_age"] if "true_brain_age" in table else None


def is_clear(row: Any) -> bool:
    """Tell whether several seeds show that a row differs from the one that it is compared with."""
    return bool(row.common_seeds > 1 and (row.gain_low > 0 or row.gain_high < 0))


def plot_gains(table: pd.DataFrame, title: str) -> Figure:
    """Draw the gain of each row over the row that it is compared with, with its interval."""
    compared = table[table["gain"].notna()]
    figure = Figure(figsize=(8.5, 1.3 + 0.25 * (len(compared) + compared["part"].nunique())), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.axvline(0, color=GREY, linewidth=1)
    labels = []
    for part, rows in groupby(compared.itertuples(), key=lambda row: row.part):
        labels.append(rf"$\bf{{{part.replace(' ', chr(92) + ' ')}}}$")
        for row in rows:
            axes.errorbar(
                row.gain, -len(labels), xerr=[[row.gain - row.gain_low], [row.gain_high - row.gain]], fmt="o",
                capsize=3, color=(BLUE if row.gain > 0 else RED) if is_clear(row) else GREY,
                mfc=None if row.common_seeds > 1 else "white",
            )  # fmt: skip
            labels.append(row.meaning)
    axes.set_yticks([-place for place in range(len(labels))], labels, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(0.6 - len(labels), 0.6), xlabel="Gain over the row compared with: fall of the MAE (years)")
    axes.set_title(title, fontsize=10)
    return figure


def plot_gradients(gradients: dict[str, tuple[str, pd.DataFrame]], title: str) -> Figure:
    """Draw the norm of each weighted term's gradient with respect to the brain ages, a panel a row."""
    columns = min(4, len(gradients))
    lines = -(-len(gradients) // columns)
    figure = Figure(figsize=(1.2 + 2.7 * columns, 1.2 + 2.2 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    colors = dict(zip(TERMS, (GREY, BLUE, RED), strict=True))
    for axes, (meaning, table) in zip(panels, gradients.values(), strict=False):
        for name in table:
            axes.plot(table.index + 1, table[name], color=colors[str(name)])
        axes.set_yscale("log")
        axes.set_title(meaning, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(gradients) :]:
        axes.remove()
    handles = [Line2D([], [], color=colors[name], label=term) for name, term in TERMS.items()]
    figure.legend(handles=handles, frameon=False, fontsize=9, loc="outside upper center", ncols=3, title=title)
    figure.supxlabel("Epoch", fontsize=9)
    figure.supylabel("Gradient norm of the weighted term", fontsize=9)
    return figure


def to_markdown(table: pd.DataFrame) -> str:
    """Write the table as Markdown, a heading a part."""
    meanings = dict(zip(table["row"], table["meaning"], strict=True))
    simulated = table["floor"].notna().any()
    columns = "people | seeds | MAE, years (95 % interval) | r | Spearman | gain, years (95 % interval) | over | s"
    columns = columns.replace("| r |", "| floor | r |") if simulated else columns
    lines = []
    for part, rows in groupby(table.itertuples(), key=lambda row: row.part):
        lines += [f"| {part} | {columns} |", "|" + " --- |" * (columns.count("|") + 2)]
        for row in rows:
            gain = "" if np.isnan(row.gain) else f"{row.gain:+.2f} ({row.gain_low:+.2f} to {row.gain_high:+.2f})"
            cells = [
                row.meaning, row.people, row.seeds, f"{row.mae:.2f} ({row.mae_low:.2f} to {row.mae_high:.2f})",
                *([f"{row.floor:.2f}"] if simulated else []), f"{row.pearson:.3f}", f"{row.spearman:.3f}",
                f"**{gain}**" if is_clear(row) else gain, meanings.get(row.compared_with, ""), f"{row.seconds:.0f}",
            ]  # fmt: skip
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        lines.append("")
    compared = table[table["gain"].notna()]
    lines += [
        f"{len(compared)} comparisons: about {len(compared) / 20:.0f} would be clear of zero by chance. Intervals "
        "of rows with one seed are over people alone; another training may change the gain by more. Bold: several "
        "seeds, and clear of zero. r: Pearson. s: seconds of training per fold, without networks of other rows."
    ]
    if simulated:
        lines.append("floor: the MAE of reading each picture's true brain age exactly.")
    several = table[table["seeds"] > 1]
    if len(several):
        sd = np.sqrt((several["sd_between_seeds"] ** 2).mean())
        lines.append(f"Between seeds, the MAE of a row has a standard deviation of {sd:.2f} years.")
    return "\n".join(lines) + "\n"


def gradient_table(gradients: dict[str, tuple[str, pd.DataFrame]]) -> str:
    """Write the gradient norms of ranking and age difference relative to that of the error, as Markdown."""
    lines = [f"| {GRADIENT_HEAD} |", "| --- | --- | --- |"]
    for meaning, table in gradients.values():
        cells = []
        for term in ("ranking", "age_difference"):
            share = table[term] / table["error"] if term in table else pd.Series(dtype=float)
            ends = [f"{float(f'{share.iloc[place]:.2g}'):g}" for place in (0, -1) if len(share)]
            cells.append(", ".join(ends))
        lines.append(f"| {meaning} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_results(
    root: Path,
    rows: Sequence[Row],
    subjects: Sequence[Subject],
    label_table: Path,
    folds: int,
    cache_folder: Path | None,
) -> None:
    """Write tables and figures of all rows that have results; none before any has.

    Parameters
    ----------
    root : Path
        Of the ablation.
    rows : sequence of Row
    subjects : sequence of Subject
    label_table : Path
    folds : int
    cache_folder : Path or None
    """
    tables = {row.name: read_row(root, row, folds) for row in rows}
    done = [row for row in rows if len(tables[row.name])]
    if not done:
        return
    true_ages = read_true_ages(label_table)
    table = pd.DataFrame([describe_row(row, tables, root, true_ages) for row in done])
    table.to_csv(root / "ablation.csv", index=False)
    text = to_markdown(table)
    title = f"{len(subjects)} {'real scans' if true_ages is None else 'simulated brains'}"
    plot_gains(table, title).savefig(root / "ablation.png", dpi=150)
    gradients = {row.name: (row.meaning, read_gradients(root, row)) for row in done if row.part in (LOSSES, BATCHES)}
    gradients = {name: found for name, found in gradients.items() if found[1].shape[1] > 1}
    if gradients:
        everything = pd.concat({name: found for name, (_, found) in gradients.items()}, names=["row"])
        everything.to_csv(root / "gradients.csv")
        plot_gradients(gradients, title).savefig(root / "gradients.png", dpi=150)
        text += "\n" + gradient_table(gradients)
    if len(tables[PAPER]):
        path = root / "probe.json"
        if not path.exists():
            write_json(path, probe_errors(root, subjects, cache_folder))
        probe = json.loads(path.read_text(encoding="utf-8"))
        text += (
            f"\nA linear probe: ridge regression on the first stage's features explains {100 * probe['r2']:.0f} % of "
            f"the variance of its errors on {probe['n']} new people, and lowers the MAE by {probe['gain']:.2f} years "
            f"({probe['low']:.2f} to {probe['high']:.2f}).\n"
        )
    with replacing(root / "ablation.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)
