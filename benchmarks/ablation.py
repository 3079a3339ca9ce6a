"""Measure what each part of TSAN is worth, on folds of people, through the training and test scripts."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING

from benchmarks.ablation_rows import Row, make_rows
from utils.common.errors import InputError, run_command
from utils.options.flags import (
    Parser,
    add_label_table,
    count,
    flag,
    flags_of,
    folds,
    number,
    optional_path,
    paths,
    whole,
)
from utils.options.training import parse_training_flags

if TYPE_CHECKING:
    from utils.data.subjects import Subject

Step = tuple[Path, Callable[[str], None]]  # the file that shows that it is done, and what does it on a device


def ablation_parser() -> Parser:
    """Return the parser of this script."""
    parser = Parser(
        "Train TSAN with and without each of its parts, on the same folds and seeds, and compare them.\n\n"
        "Runs the training and test scripts with the variables of the environment, and those of each row\n"
        "(benchmarks/ablation_rows.py). Writes ablation.csv, ablation.md, gradients.csv, bound.json and figures.\n"
        "What is finished is not run again; a second call goes on, and makes the tables of what there is."
    )
    flag(parser, "--scan_folder", "data/train data/valid data/test", paths, "folders of prepared scans")
    add_label_table(parser, "data/labels.csv")
    flag(parser, "--output_dir", "runs/ablation", Path, "folder for everything; a second call goes on with it")
    flag(parser, "--rows", "all", str, "names of rows, separated by commas, or all")
    flag(parser, "--folds", "3", folds, "parts of the people, each tested by networks trained on the others")
    flag(parser, "--seeds", "1", count, "trainings of each row in each fold")
    flag(parser, "--first_epochs", "20", count, "passes over the training people, first stage")
    flag(parser, "--second_epochs", "6", count, "the same, second stage")
    flag(parser, "--batch_size", "16", count, "scans in a batch")
    flag(parser, "--blocks", "4", count, "of the network")
    flag(parser, "--narrow", "40,60", _range, "narrow range of ages, years, of the rows that try one")
    flag(parser, "--sorter", "runs/sorter_16.pt", optional_path, "of bash_train_sorter.sh, of length BATCH_SIZE")
    flag(parser, "--jobs", "1", count, "trainings side by side, on several GPUs or cores")
    flag(parser, "--num_workers", "8", whole, "processes that read scans, of each training")
    flag(parser, "--cache_folder", "runs/cache", optional_path, "where decoded scans are kept; '': nowhere")
    return parser


def _range(text: str) -> tuple[float, float]:
    """Read two ages, such as ``40,60``."""
    low, _, high = text.partition(",")
    return number(low, 0), number(high, number(low, 0), above=True)


@dataclass(frozen=True)
class Place:
    """Where the trainings of a row in one fold with one seed lie."""

    root: Path
    fold: str
    seed: int

    def of(self, row: str) -> Path:
        """Return the folder of a row."""
        return self.root / row / self.fold / f"seed_{self.seed}"

    def scans(self, part: str, row: Row) -> Path:
        """Return the folder of links to the people of a part, such as ``train``, for a row."""
        ages = f"_{row.age_range[0]:g}-{row.age_range[1]:g}" if row.age_range else ""
        return self.root / "splits" / self.fold / f"{part}{ages}"


def steps(row: Row, place: Place, common: dict[str, object], epochs: tuple[int, int]) -> Iterator[Step]:
    """Yield what trains and tests a row in one fold with one seed.

    Parameters
    ----------
    row : Row
    place : Place
    common : dict
        Variables of all trainings and tests.
    epochs : (int, int)
        Of the first and the second stage.
    """
    from utils.prediction.script_runs import run_script

    own, first = place.of(row.name), place.of(row.name if row.first is not None else row.of) / "first_stage"
    train, test = place.scans("train", row), place.scans("test", row)
    learns = [place.scans(part, row) for part in ("half_1", "half_2")] if row.halves else [train, train]
    tested = {**common, "TEST_FOLDER": test, "FIRST_STAGE_CHECKPOINT": first / "best.pt"}
    trained = {**common, "VALID_FOLDER": "", "TEST_FOLDER": "", "SEED": place.seed}

    def script(name: str, *flags: str, **variables: object) -> Callable[[str], None]:
        log = own / f"{name.removeprefix('bash_').removesuffix('.sh')}.log"
        return lambda device: run_script(log, name, flags, {**variables, "CUDA_VISIBLE_DEVICES": device}, jobs)

    jobs = int(str(common["JOBS"]))
    if row.first is not None:
        variables = {**trained, "EPOCHS": epochs[0], "TRAIN_FOLDER": learns[0], "OUTPUT_DIR": first, **row.first}
        yield first / "train_discretized_age.npy", script("bash_train_first_stage.sh", "--resume", **variables)
        folder = own / "first_stage_test"
        variables = {**tested, "CHECKPOINT": first / "best.pt", "OUTPUT_DIR": folder}
        yield folder / "predictions.csv", script("bash_test_first_stage.sh", **variables)
    if row.second is None:
        return
    second, tables = own / "second_stage", first
    if row.halves:
        tables = own / "ages"
        variables = {**tested, "TEST_FOLDER": learns[1], "CHECKPOINT": first / "best.pt", "OUTPUT_DIR": tables}
        yield tables / "train_discretized_age.npy", script("bash_test_first_stage.sh", SPLIT="train", **variables)
    if "AGE_INTERVAL" in row.second:
        source, step = tables / "train_discretized_age.npy", float(str(row.second["AGE_INTERVAL"]))
        tables = own / "ages"
        yield tables / source.name, lambda _: discretize_anew(source, tables / source.name, step)
    variables = {
        **trained, "EPOCHS": epochs[1], "TRAIN_FOLDER": learns[1], "FIRST_STAGE_CHECKPOINT": first / "best.pt",
        "DISCRETIZED_AGE_FOLDER": tables, "OUTPUT_DIR": second, **row.second,
    }  # fmt: skip
    yield second / "best.pt", script("bash_train_second_stage.sh", "--resume", **variables)
    variables = {**tested, "CHECKPOINT": second / "best.pt", "OUTPUT_DIR": own / "test"}
    yield own / "test" / "predictions.csv", script("bash_test_second_stage.sh", **variables)


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
        for row in rows:
            low, high = row.age_range or (0, float("inf"))
            for name, chosen in (("train", rest), ("test", part)):
                own = [subjects[i] for i in chosen if low <= subjects[i].chronological_age <= high]
                link_scans(place.scans(name, row), own)
                if row.halves and name == "train":
                    for half, (_, members) in enumerate(split_into_folds(own, 2, 0), 1):
                        link_scans(place.scans(f"half_{half}", row), [own[i] for i in members])
    return names


def run_steps(chains: Sequence[tuple[str, list[Step]]], jobs: int) -> None:
    """Do the steps that are not done yet, several chains side by side, each on a device of its own."""
    from tqdm import tqdm

    devices: SimpleQueue[str] = SimpleQueue()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")
    for index in range(jobs):
        devices.put(visible[index % len(visible)])
    with tqdm(total=len(chains), unit="training", disable=None) as bar, ThreadPoolExecutor(jobs) as pool:

        def run(chain: tuple[str, list[Step]]) -> None:
            name, todo = chain
            device = devices.get()
            try:
                for product, do in todo:
                    if not product.exists():
                        bar.set_description(name)
                        if not sys.stderr.isatty():
                            print(f"{name}: {product.parent.name}", flush=True)
                        do(device)
            finally:
                devices.put(device)
            bar.update()

        running = [pool.submit(run, chain) for chain in chains]
        try:
            for done in running:
                done.result()
        except BaseException:
            for other in running:
                other.cancel()
            raise


def main() -> None:
    args = ablation_parser().parse_args()
    # Imported here, so that --help and wrong flags answer at once.
    from hashlib import sha256

    import numpy as np

    from benchmarks.ablation_report import write_results
    from utils.common.files import check_writable
    from utils.data.cohort import load_cohort
    from utils.prediction.script_runs import arguments_of_training, check_recorded

    check_writable(args.output_dir)
    epochs = args.first_epochs, args.second_epochs
    cohort = load_cohort({folder.name: folder for folder in args.scan_folder}, args.label_table, None)
    subjects = sorted((s for part in cohort.values() for s in part), key=lambda subject: subject.subject_id)
    age_sd = float(np.std([subject.chronological_age for subject in subjects]))
    rows = make_rows(age_sd, args.narrow, args.sorter, epochs, args.batch_size, args.blocks)
    if args.rows != "all":
        asked = args.rows.split(",")
        unknown = sorted(set(asked) - {row.name for row in rows})
        if unknown:
            raise InputError(f"--rows: no row {unknown[0]}; expected some of {', '.join(row.name for row in rows)}")
        asked += [row.of for row in rows if row.name in asked and row.second is not None]
        rows = [row for row in rows if row.name in asked]
    if any(row.first and row.first.get("RANKING") == "sodeep" for row in rows) and not args.sorter.is_file():
        raise InputError(f"{args.sorter}: no such sorter; run LENGTH={args.batch_size} bash bash_train_sorter.sh")
    shared = {"BATCH_SIZE": args.batch_size, "BLOCKS": args.blocks}
    trainings = [
        flags_of(parse_training_flags(stage, arguments_of_training(stage, EPOCHS=epochs[stage - 1], **shared)))
        for stage in (1, 2)
    ]
    people = sha256("\n".join(subject.subject_id for subject in subjects).encode()).hexdigest()
    others = {"SHA-256 of the names of the scans": people, "--folds": args.folds, "--narrow": args.narrow}
    check_recorded(args.output_dir / "settings.json", args.label_table, trainings, others)
    names = split(subjects, rows, args.output_dir, args.folds)
    common = {
        **shared, "LABEL_TABLE": args.label_table, "NUM_WORKERS": args.num_workers, "JOBS": args.jobs,
        "CACHE_FOLDER": args.cache_folder or "",
    }  # fmt: skip
    for seed in range(args.seeds):
        for second in (False, True):  # second stages build on finished first ones
            chains = [
                (f"{row.name}, {name}, seed {seed}", [*steps(row, Place(args.output_dir, name, seed), common, epochs)])
                for row in rows
                if (row.second is not None) == second
                for name in names
            ]
            run_steps(chains, args.jobs)
    write_results(args.output_dir, rows, subjects, args.label_table, args.cache_folder)
    print(f"tables and figures: {args.output_dir}")


if __name__ == "__main__":
    run_command(main)
