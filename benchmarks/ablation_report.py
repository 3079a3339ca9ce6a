"""Tables and figures of the ablation."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.ablation_rows import NETWORK, PAPER, Row
from model.building import load_network
from utils.common.checkpoints import load_checkpoint
from utils.common.files import replacing, write_json
from utils.data.dataset import ScanDataset
from utils.data.scans import ScanStore, data_settings
from utils.data.subjects import Subject, person_of
from utils.evaluation.metrics import BOOTSTRAP_RESAMPLES, accuracy, compare_errors
from utils.evaluation.predicting import predict

BLUE, RED, GREY = "#3b6ea5", "#b5413d", "0.45"
TERMS = {"mse_loss": "squared error", "ranking": "ranking", "age_difference": "age difference"}
ALPHAS = np.logspace(0, 6, 13)
PARTS_OF_BOUND = 10


def read_row(root: Path, row: Row) -> pd.DataFrame:
    """Return a row's tests: subject, seed, age, brain age; empty before any is finished."""
    folder = "test" if row.second is not None else "first_stage_test"
    tables = [
        pd.read_csv(path, dtype={"subject_id": str}).assign(seed=path.parents[1].name, fold=path.parents[2].name)
        for path in sorted(root.glob(f"{row.name}/fold_*/seed_*/{folder}/predictions.csv"))
    ]
    columns = ["subject_id", "seed", "fold", "chronological_age", "brain_age"]
    return pd.concat(tables)[columns] if tables else pd.DataFrame(columns=columns)


def interval_over_seeds(values: np.ndarray, persons: Sequence[str]) -> tuple[float, float]:
    """Return the 95 % interval of a mean by the bootstrap over seeds and persons.

    Parameters
    ----------
    values : (S, N) float array
        Of each seed and scan.
    persons : sequence of N str
    """
    rng = np.random.default_rng(0)
    own = np.unique(np.asarray(persons), return_inverse=True)[1]
    sums, counts = np.stack([np.bincount(own, row) for row in values]), np.bincount(own)
    means = []
    for _ in range(BOOTSTRAP_RESAMPLES):
        draw = rng.integers(0, len(counts), len(counts))
        mean = sums[rng.integers(0, len(sums), len(sums))].mean(0)
        means.append(mean[draw].sum() / counts[draw].sum())
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def errors_of(table: pd.DataFrame) -> pd.DataFrame:
    """Return absolute errors, years, by subject (index) and seed (columns); only seeds that all folds have finished."""
    error = (table["brain_age"] - table["chronological_age"]).abs()
    return table.assign(error=error).pivot(index="subject_id", columns="seed", values="error").dropna(axis=1)


def describe_row(row: Row, tables: dict[str, pd.DataFrame], root: Path) -> dict[str, Any]:
    """Return the figures of a row, and its gain over the row that it is compared with."""
    table = tables[row.name]
    errors = errors_of(table)
    persons = [person_of(name) for name in errors.index]
    low, high = interval_over_seeds(errors.to_numpy().T, persons)
    by_seed = [accuracy(own["chronological_age"].to_numpy(float), own["brain_age"].to_numpy(float))
               for seed, own in table.groupby("seed") if seed in errors]  # fmt: skip
    pearson, spearman = (float(np.mean([figures[name] for figures in by_seed])) for name in ("pearson", "spearman"))
    result = {
        "part": row.part, "row": row.name, "meaning": row.meaning, "people": len(errors), "seeds": errors.shape[1],
        "mae": float(errors.to_numpy().mean()), "mae_low": low, "mae_high": high, "pearson": pearson,
        "spearman": spearman, "seconds": seconds_of(root, row), "compared_with": row.reference,
    }  # fmt: skip
    if row.reference != row.name and len(tables.get(row.reference, ())):
        other = errors_of(tables[row.reference])
        seeds = [seed for seed in errors if seed in other]
        gain = (other.loc[errors.index, seeds] - errors[seeds]).to_numpy().T
        result["gain"] = float(gain.mean())
        result["gain_low"], result["gain_high"] = interval_over_seeds(gain, persons)
    return result


def seconds_of(root: Path, row: Row) -> float:
    """Return the seconds that one training of a row took on average, without start and tests."""
    trainings = {}
    stage = "first_stage" if row.second is None else "second_stage"
    for path in root.glob(f"{row.name}/fold_*/seed_*/{stage}/**/metrics.csv"):
        own = path.parent
        table = np.load(own / "train_discretized_age.npy") if (own / "train_discretized_age.npy").exists() else None
        count = len(table) if table is not None else len(load_checkpoint(own / "best.pt")["train_subjects"])
        trainings[path] = float((count / pd.read_csv(path)["scans_per_second"]).sum())
    runs = len(list(root.glob(f"{row.name}/fold_*/seed_*/{stage}/best.pt")))
    return sum(trainings.values()) / max(1, runs)


def read_gradients(root: Path, row: Row) -> pd.DataFrame:
    """Return the mean length of each loss term's gradient on the brain ages, by epoch, over folds and seeds."""
    paths = sorted(root.glob(f"{row.name}/fold_*/seed_*/first_stage/metrics.csv"))
    if row.first is None or not paths:
        return pd.DataFrame()
    table = pd.concat([pd.read_csv(path) for path in paths]).groupby("epoch").mean()
    found = table.filter(regex="^train/.*_gradient$")
    return found.rename(columns=lambda name: name.removeprefix("train/").removesuffix("_gradient"))


class Features:
    """The stage that predicts the first stage's features besides its age."""

    def predict(self, network: Any, batch: Any) -> dict[str, torch.Tensor]:
        """Return ``brain_age``, (B,), and ``features``, (B, F)."""
        return {"brain_age": network(batch["volume"], batch["sex"]), "features": network.trunk(batch["volume"])}


def bound_of_second_stage(root: Path, subjects: Sequence[Subject], cache_folder: Path | None) -> dict[str, Any]:
    """Measure how much of the first stage's error on new people its own features tell.

    Parameters
    ----------
    root : Path
        Of the ablation.
    subjects : sequence of Subject
    cache_folder : Path or None

    Returns
    -------
    dict
        ``n``; ``r2``, the share of the error's variance that ridge regression on the features, the brain age and
        the sex explains on people outside its own fit; ``gain`` with ``low`` and ``high``: by how many years the MAE
        falls once the regression is subtracted.
    """
    by_name = {subject.subject_id: subject for subject in subjects}
    ages, before, after = [], [], []
    names: list[str] = []
    for path in sorted(root.glob(f"{PAPER}/fold_*/seed_0/first_stage_test/predictions.csv")):
        checkpoint = load_checkpoint(path.parents[1] / "first_stage" / "best.pt")
        scans = ScanStore(*data_settings(checkpoint, None), cache_folder)
        own = [by_name[name] for name in pd.read_csv(path, dtype={"subject_id": str})["subject_id"]]
        scans.prepare([subject.path for subject in own])
        found = predict(
            load_network(checkpoint, 1), Features(), ScanDataset(own, scans), torch.device("cpu"), batch_size=8,
            num_workers=0, precision="float32", label="features",
        )  # fmt: skip
        sex = np.array([subject.sex for subject in own])
        known = np.column_stack([found["features"], found["brain_age"], sex])
        error = found["chronological_age"] - found["brain_age"]
        model = make_pipeline(StandardScaler(), RidgeCV(ALPHAS))
        predicted = cross_val_predict(model, known, error, cv=KFold(PARTS_OF_BOUND, shuffle=True, random_state=0))
        ages.append(found["chronological_age"])
        before.append(found["brain_age"])
        after.append(found["brain_age"] + predicted)
        names += [subject.subject_id for subject in own]
    age, one, other = (np.concatenate(parts).astype(float) for parts in (ages, before, after))
    residual = age - one
    persons = np.array([person_of(name) for name in names])
    gain = compare_errors(age, other, one, persons=persons)
    r2 = 1 - ((age - other) ** 2).sum() / ((residual - residual.mean()) ** 2).sum()
    return {"n": len(age), "r2": float(r2), "mae": float(np.abs(residual).mean()), "gain": gain["difference"],
            "low": gain["low"], "high": gain["high"]}  # fmt: skip


def floor_of(label_table: Path) -> float | None:
    """Return the MAE, years, of the brain ages that simulated pictures show; None for real people."""
    table = pd.read_csv(label_table) if label_table.suffix == ".csv" else pd.DataFrame()
    if "true_brain_age" not in table:
        return None
    return float((table["true_brain_age"] - table["age"]).abs().mean())


def plot_gains(table: pd.DataFrame, title: str) -> Figure:
    """Draw the gain of each row over the row that it is compared with, with its interval."""
    compared = table[table["gain"].notna()]
    figure = Figure(figsize=(8.0, 1.3 + 0.27 * (len(compared) + compared["part"].nunique())), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.axvline(0, color=GREY, linewidth=1)
    place, ticks, labels = 0, [], []
    for part, rows in groupby(compared.itertuples(), key=lambda row: row.part):
        axes.text(0.0, place, str(part), transform=axes.get_yaxis_transform(), weight="bold", fontsize=9, va="center",
                  ha="right")  # fmt: skip
        place -= 1
        for row in rows:
            clear = row.gain_low > 0 or row.gain_high < 0
            axes.errorbar(
                row.gain, place, xerr=[[row.gain - row.gain_low], [row.gain_high - row.gain]], fmt="o", capsize=3,
                color=(BLUE if row.gain > 0 else RED) if clear else GREY,
            )  # fmt: skip
            ticks.append(place)
            labels.append(row.meaning)
            place -= 1
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.set(ylim=(place + 0.3, 0.7), xlabel="MAE of the row compared with, minus MAE (years); right of 0 is better")
    axes.set_title(title, fontsize=10)
    return figure


def plot_gradients(gradients: dict[str, tuple[str, pd.DataFrame]], title: str) -> Figure:
    """Draw the length of each term's gradient on the brain ages over the epochs, a panel a row."""
    columns = min(4, len(gradients))
    lines = -(-len(gradients) // columns)
    figure = Figure(figsize=(0.8 + 2.9 * columns, 0.9 + 2.4 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, (meaning, table) in zip(panels, gradients.values(), strict=False):
        for name, color in zip(TERMS, (GREY, BLUE, RED), strict=True):
            if name in table and table[name].any():
                axes.plot(table.index + 1, table[name], color=color)
        axes.set_yscale("log")
        axes.set_title(meaning, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(gradients) :]:
        axes.remove()
    lines_of_terms = [Line2D([], [], color=color, label=term)
                      for term, color in zip(TERMS.values(), (GREY, BLUE, RED), strict=True)]  # fmt: skip
    figure.legend(handles=lines_of_terms, frameon=False, fontsize=9, loc="outside upper center", ncols=3, title=title)
    figure.supxlabel("Epoch", fontsize=9)
    figure.supylabel("Gradient of the weighted term", fontsize=9)
    return figure


def to_markdown(table: pd.DataFrame, floor: float | None) -> str:
    """Write the table as Markdown, a heading a part."""
    lines = []
    if floor is not None:
        lines += [
            f"The simulated ages differ from what the pictures show by {floor:.2f} years: no MAE can be lower.",
            "",
        ]
    columns = "people | MAE, years (95 % interval) | Pearson | Spearman | gain, years (95 % interval) | over | seconds"
    for part, rows in groupby(table.itertuples(), key=lambda row: row.part):
        lines += [f"| {part} | {columns} |", "| --- | --- | --- | --- | --- | --- | --- | --- |"]
        for row in rows:
            gain = "" if np.isnan(row.gain) else f"{row.gain:+.2f} ({row.gain_low:+.2f} to {row.gain_high:+.2f})"
            if row.gain_low > 0 or row.gain_high < 0:
                gain = f"**{gain}**"
            over = row.compared_with if gain else ""
            lines.append(
                f"| {row.meaning} | {row.people} | {row.mae:.2f} ({row.mae_low:.2f} to {row.mae_high:.2f}) | "
                f"{row.pearson:.3f} | {row.spearman:.3f} | {gain} | {over} | {row.seconds:.0f} |"
            )
        lines.append("")
    return "\n".join(lines)


def gradient_table(gradients: dict[str, tuple[str, pd.DataFrame]]) -> str:
    """Write, as Markdown, how strongly the weighted terms pull on the brain ages beside the squared error."""
    lines = [
        "| gradient beside the squared error's | ranking: first epoch, last | age difference: first epoch, last |",
        "| --- | --- | --- |",
    ]
    for meaning, table in gradients.values():
        cells = []
        for term in ("ranking", "age_difference"):
            share = table[term] / table["mse_loss"] if term in table and table[term].any() else pd.Series(dtype=float)
            cells.append(f"{share.iloc[0]:.2g}, {share.iloc[-1]:.2g}" if len(share) else "")
        lines.append(f"| {meaning} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_results(
    root: Path, rows: Sequence[Row], subjects: Sequence[Subject], label_table: Path, cache_folder: Path | None
) -> None:
    """Write tables and figures of all rows that have results.

    Parameters
    ----------
    root : Path
        Of the ablation.
    rows : sequence of Row
    subjects : sequence of Subject
    label_table : Path
    cache_folder : Path or None
    """
    tables = {row.name: read_row(root, row) for row in rows}
    done = [row for row in rows if len(tables[row.name]) and errors_of(tables[row.name]).shape[1]]
    table = pd.DataFrame([{"gain": np.nan, "gain_low": np.nan, "gain_high": np.nan}
                          | describe_row(row, tables, root) for row in done])  # fmt: skip
    table.to_csv(root / "ablation.csv", index=False)
    floor = floor_of(label_table)
    text = to_markdown(table, floor)
    title = f"{len(subjects)} {'real scans' if floor is None else 'simulated brains'}"
    plot_gains(table, title).savefig(root / "ablation.png", dpi=150)
    gradients = {row.name: (row.meaning, read_gradients(root, row)) for row in done if row.part != NETWORK}
    gradients = {name: found for name, found in gradients.items() if found[1].any().sum() > 1}
    if gradients:
        everything = pd.concat({name: found for name, (_, found) in gradients.items()}, names=["row"])
        everything.to_csv(root / "gradients.csv")
        plot_gradients(gradients, title).savefig(root / "gradients.png", dpi=150)
    if PAPER in [row.name for row in done]:
        bound = bound_of_second_stage(root, subjects, cache_folder)
        write_json(root / "bound.json", bound)
        text += (
            f"Ridge regression on the first stage's features explains {100 * bound['r2']:.0f} % of the variance of "
            f"its errors on {bound['n']} new people, and lowers the MAE by {bound['gain']:.2f} years "
            f"({bound['low']:.2f} to {bound['high']:.2f}).\n"
        )
    text += "\n" + gradient_table(gradients)
    with replacing(root / "ablation.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)
