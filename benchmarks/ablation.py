"""Measure what each part of TSAN is worth, on folds of people, through the training and test scripts."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, pairwise
from typing import TYPE_CHECKING, Any

from benchmarks.ablation_rows import PAPER, Row, make_rows
from utils.common.errors import InputError, run_command
from utils.options.flags import (
    Parser,
    add_label_table,
    add_shard,
    count,
    flag,
    flags_of,
    folds,
    labels,
    number,
    optional_path,
    paths,
    whole,
)
from utils.options.training import parse_training_flags

TABLE = "train_discretized_age.npy"  # the last file that a first stage writes

if TYPE_CHECKING:
    from utils.data.subjects import Subject
    from utils.prediction.script_runs import Step


def ablation_parser() -> Parser:
    """Return the parser of this script."""
    parser = Parser(
        "Train TSAN with and without each of its parts, on the same folds and seeds, and compare them.\n\n"
        "Runs the training and test scripts with the variables of the environment, and those of each row\n"
        "(benchmarks/ablation_rows.py). Writes ablation.csv, ablation.md, gradients.csv, probe.json and figures.\n"
        "What is finished is not run again; a second call goes on, and makes the tables of what there is."
    )
    flag(parser, "--scan_folder", "data/train data/valid data/test", paths, "folders of prepared scans")
    add_label_table(parser, "data/labels.csv")
    flag(parser, "--output_dir", "runs/ablation", Path, "folder for everything; a second call goes on with it")
    flag(parser, "--rows", "all", labels, "names of rows, separated by commas; all: every row")
    flag(parser, "--folds", "3", folds, "parts of the people, each tested by networks trained on the others")
    flag(parser, "--seeds", "1", count, "trainings of each row in each fold; several tell chance from effect")
    flag(parser, "--first_epochs", "30", count, "passes over the training people in the first stage")
    flag(parser, "--second_epochs", "10", count, "passes over the training people in the second stage")
    flag(parser, "--narrow", "40,60", _range, "range of ages, years, for the rows with a narrow one")
    flag(parser, "--sorter", "runs/sorter_16.pt", Path, "of bash_train_sorter.sh, of the length of a batch; for SoDeep")
    add_shard(parser, "rows that build on another one wait for a second call")
    flag(parser, "--jobs", "1", count, "trainings side by side; they share the GPUs, or the cores")
    flag(parser, "--num_workers", "8", whole, "processes that read scans, of each training")
    flag(parser, "--cache_folder", "runs/cache", optional_path, "where decoded scans are kept; '': nowhere")
    return parser


def _range(text: str) -> tuple[float, float]:
    """Read two ages, such as ``40,60``."""
    low, _, high = text.partition(",")
    return number(low, 0), number(high, number(low, 0), above=True)


@dataclass(frozen=True)
class Place:
    """Where the trainings of one fold and one seed lie."""

    root: Path
    fold: str
    seed: int

    def folder(self, row: str) -> Path:
        """Return the folder of a row."""
        return self.root / row / self.fold / f"seed_{self.seed}"

    def first_stage(self, row: str) -> Path:
        """Return the folder of a row's first stage."""
        return self.folder(row) / "first_stage"

    def scans(self, part: str, row: Row) -> Path:
        """Return the folder of links to the people of a part, such as ``train``, for a row."""
        ages = f"_{row.age_range[0]:g}-{row.age_range[1]:g}" if row.age_range else ""
        return self.root / "splits" / self.fold / f"{part}{ages}"


def steps(row: Row, place: Place, shared: Mapping[str, object], epochs: tuple[int, int], jobs: int) -> Iterator["Step"]:
    """Yield what trains and tests a row in one fold with one seed.

    Parameters
    ----------
    row : Row
    place : Place
    shared : mapping
        Variables of all trainings and tests.
    epochs : (int, int)
        Of the first and the second stage.
    jobs : int
        How many chains of steps run side by side.
    """
    from utils.prediction.script_runs import Step, run_script

    own = place.folder(row.name)
    first = place.first_stage(row.name if row.first is not None else PAPER)
    parts = ("half_1", "half_2") if row.halves else ("train", "train")
    train_folders = [place.scans(part, row) for part in parts]
    test = {
        **shared,
        "TEST_FOLDER": place.scans("test", row),
        "FIRST_STAGE_CHECKPOINT": first / "best.pt",
        "OVERWRITE": "true",
    }  # an unfinished test is made again
    train = {**shared, "VALID_FOLDER": "", "TEST_FOLDER": "", "SEED": place.seed}

    def step(product: Path, script: str, *flags: str, **variables: object) -> Step:
        name = script.removeprefix("bash_").removesuffix(".sh")

        def run(devices: Mapping[str, str]) -> None:
            run_script(own / f"{name}.log", script, flags, {**variables, **devices}, jobs)

        return Step(f"{row.name}, {place.fold}, seed {place.seed}: {name}", product, run)

    if row.first is not None:
        variables = {**train, "EPOCHS": epochs[0], "TRAIN_FOLDER": train_folders[0], "OUTPUT_DIR": first, **row.first}
        yield step(first / TABLE, "bash_train_first_stage.sh", "--resume", **variables)
        folder = own / "first_stage_test"
        variables = {**test, "CHECKPOINT": first / "best.pt", "OUTPUT_DIR": folder}
        yield step(folder / "predictions.csv", "bash_test_first_stage.sh", **variables)
    if row.second is None:
        return
    second, tables = own / "second_stage", first
    if row.halves:
        tables = own / "ages"
        variables = {**test, "TEST_FOLDER": train_folders[1], "CHECKPOINT": first / "best.pt", "OUTPUT_DIR": tables}
        yield step(tables / TABLE, "bash_test_first_stage.sh", SPLIT="train", **variables)
    if "AGE_INTERVAL" in row.second:
        source, age_interval = tables / TABLE, float(str(row.second["AGE_INTERVAL"]))
        tables = own / "ages"
        target = tables / source.name
        yield Step(f"{row.name}: ages", target, lambda _: discretize_anew(source, target, age_interval))
    variables = {
        **train, "EPOCHS": epochs[1], "TRAIN_FOLDER": train_folders[1], "FIRST_STAGE_CHECKPOINT": first / "best.pt",
        "DISCRETIZED_AGE_FOLDER": tables, "OUTPUT_DIR": second, **row.second,
    }  # fmt: skip
    yield step(second / "best.pt", "bash_train_second_stage.sh", "--resume", **variables)
    variables = {**test, "CHECKPOINT": second / "best.pt", "OUTPUT_DIR": own / "test"}
    yield step(own / "test" / "predictions.csv", "bash_test_second_stage.sh", **variables)


def discretize_anew(source: Path, target: Path, age_interval: float) -> None:
    """Write a table of discretized ages again with another interval, years."""
    import numpy as np

    from utils.data.discretized_ages import write_discretized_ages

    table = np.load(source, allow_pickle=False)
    write_discretized_ages(
        target, table["subject_id"].tolist(), table["brain_age"], age_interval, str(table["first_stage_sha256"][0]),
        table["out_of_fold"],
    )  # fmt: skip


def split(subjects: Sequence["Subject"], rows: Sequence[Row], root: Path, number_of_folds: int) -> list[str]:
    """Make folders of links for every fold; return the names of the folds."""
    from utils.data.cohort import split_into_folds
    from utils.prediction.script_runs import link_scans

    names = []
    for index, (rest, part) in enumerate(split_into_folds(subjects, number_of_folds, 0), 1):
        names.append(f"fold_{index}")
        place = Place(root, names[-1], 0)
        for row in {(row.age_range, row.halves): row for row in rows}.values():
            low, high = row.age_range or (0, float("inf"))
            own = {
                name: [subjects[i] for i in chosen if low <= subjects[i].chronological_age <= high]
                for name, chosen in (("train", rest), ("test", part))
            }
            if row.halves:
                for half, (_, members) in enumerate(split_into_folds(own["train"], 2, 0), 1):
                    own[f"half_{half}"] = [own["train"][i] for i in members]
            for name, people in own.items():
                link_scans(place.scans(name, row), people)
    return names


def check_rows(
    rows: Sequence[Row], training_flags: Callable[[int, Mapping[str, object]], dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Return the flags of each row's trainings; refuse a row that is trained like the one it is compared with.

    Parameters
    ----------
    rows : sequence of Row
    training_flags : callable
        Gives the flags of a stage with some variables.
    """
    flags: dict[str, list[dict[str, Any]]] = {}
    seen: dict[str, tuple[object, ...]] = {}
    for row in rows:
        flags[row.name] = [
            training_flags(stage, own) for stage, own in ((1, row.first), (2, row.second)) if own is not None
        ]
        if row.first is None:
            flags[row.name].insert(0, flags[PAPER][0])
        seen[row.name] = (flags[row.name], row.age_range, row.halves)
    for row in rows:
        if row.name != row.reference and seen[row.name] == seen.get(row.reference):
            raise InputError(
                f"row {row.name} ({row.meaning}) is trained like the row {row.reference}, because of a variable in the "
                "environment or the recipe; leave that variable out, or the row (ROWS, --rows)"
            )
    return flags


def main() -> None:
    args = ablation_parser().parse_args()
    if not args.folds:
        raise InputError("--folds: needs at least 2 folds")
    # Imported here, so that --help and wrong flags answer at once.
    import numpy as np

    from benchmarks.ablation_report import write_results
    from model.sorter import load_sorter
    from utils.common.errors import user_errors
    from utils.common.files import check_writable
    from utils.common.log_file import keep_log
    from utils.data.cohort import load_cohort
    from utils.prediction.script_runs import arguments_of_training, check_recorded, run_chains, unfinished

    check_writable(args.output_dir, *args.scan_folder)
    epochs = args.first_epochs, args.second_epochs

    def training_flags(stage: int, variables: Mapping[str, object]) -> dict[str, Any]:
        given = {"EPOCHS": epochs[stage - 1], "VALID_FOLDER": "", **variables}
        return flags_of(parse_training_flags(stage, arguments_of_training(stage, **given)))

    plain = [training_flags(stage, {}) for stage in (1, 2)]
    if any(flags["initial_weights"] for flags in plain):
        raise InputError("INITIAL_WEIGHTS: all rows would have the network of these weights; leave it empty")
    cohorts = [
        load_cohort({"scan": folder}, args.label_table, None, use_sex=plain[0]["use_sex"])["scan"]
        for folder in args.scan_folder
    ]
    subjects = sorted((subject for part in cohorts for subject in part), key=lambda subject: subject.subject_id)
    ids = [subject.subject_id for subject in subjects]
    for name, following in pairwise(ids):
        if name == following:
            raise InputError(f"--scan_folder: {name} is in several folders; keep one")
    age_sd = float(np.std([subject.chronological_age for subject in subjects]))
    every_row = make_rows(plain, age_sd, args.narrow, args.sorter)
    rows = choose_rows(every_row, args.rows)
    if any(row.name == "sodeep" for row in rows):
        if not args.sorter.is_file() and args.rows == ["all"]:
            print(f"note: the row sodeep is left out: there is no sorter {args.sorter} (bash_train_sorter.sh)")
            rows = [row for row in rows if row.name != "sodeep"]
        else:
            with user_errors("--sorter"):
                length = load_sorter(args.sorter).length
            if length != plain[0]["batch_size"]:
                raise InputError(f"{args.sorter}: ranks {length} ages, but a batch has {plain[0]['batch_size']}")
    flags = check_rows(rows, training_flags)
    names = split(subjects, rows, args.output_dir, args.folds)
    digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()
    others = {"scans": f"{len(ids)} (SHA-256 of their names: {digest})", "--folds": args.folds}
    for row in rows:
        check_recorded(args.output_dir / row.name / "settings.json", args.label_table, flags[row.name],
                       {**others, "range of ages": row.age_range})  # fmt: skip
    shared = {"LABEL_TABLE": args.label_table, "NUM_WORKERS": args.num_workers, "CACHE_FOLDER": args.cache_folder or ""}
    keep_log(args.output_dir, shard=args.shard)
    left = []
    try:
        for seed in range(args.seeds):
            for second in (False, True):  # second stages build on finished first ones
                chosen = [row for row in rows if (row.second is not None) == second]
                places = [Place(args.output_dir, name, seed) for name in names]
                work = [(row, place) for row in chosen for place in places]
                chains = [[*steps(row, place, shared, epochs, args.jobs)] for row, place in work]
                ready = [row.first is not None or (place.first_stage(PAPER) / TABLE).exists() for row, place in work]
                run_chains([*compress(args.shard.of(chains), args.shard.of(ready))], args.jobs)
                left += unfinished(chains)
    finally:
        write_results(args.output_dir, every_row, subjects, args.label_table, args.folds, args.cache_folder)
        print(f"tables and figures: {args.output_dir}")
    if left:
        print(f"left to other shards, or to this command again: {len(left)} scripts, such as {left[0]}")


def choose_rows(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """Return the rows of these names, those that they are compared with, and those that they build on."""
    if list(names) == ["all"]:
        return list(rows)
    by_name = {row.name: row for row in rows}
    chosen: dict[str, None] = {}
    for name in names:
        if name not in by_name:
            raise InputError(f"--rows: no row {name}; expected some of {', '.join(by_name)}")
        row = by_name[name]
        needed = [row.reference, *([PAPER] if row.first is None else []), name]
        chosen |= dict.fromkeys([*(by_name[other].reference for other in needed), *needed])
    return [row for row in rows if row.name in chosen]


if __name__ == "__main__":
    run_command(main)
