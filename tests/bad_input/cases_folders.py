"""Folders of data, and folders for results."""

from pathlib import Path

from tests.bad_input.harness import Case

TRAIN, TEST, PREDICT, PREPROCESS = "train_first_stage.py", "test_first_stage.py", "predict.py", "preprocess.py"


def empty_folder() -> None:
    Path("empty").mkdir()


def fill_output() -> None:
    Path("results").mkdir()
    Path("results/thesis.txt").write_text("chapter 1")


CASES = [
    Case("a folder of scans that does not exist", TRAIN, ["--train_folder", "none"], "none: no such folder"),
    Case("a file where a folder of scans is wanted", TRAIN, ["--train_folder", "data/labels.csv"], "no such folder"),
    Case("an empty folder of scans", TEST, ["--test_folder", "empty"], "holds no .nii or .nii.gz file", empty_folder),
    Case("an empty folder of raw scans", PREPROCESS, ["--input", "empty"], "empty", empty_folder),
    Case("raw scans that do not exist", PREPROCESS, ["--input", "none"], "none"),
    Case("a scan to predict that does not exist", PREDICT, ["--input", "none.nii.gz"], "none.nii.gz"),
    Case("a file that is no scan to predict", PREDICT, ["--input", "data/labels.csv"], "data/labels.csv"),
    Case("preprocessed scans that do not exist", "prepare_dataset.py", ["--preprocessed", "none"], "none: no such folder"),
    Case("training scans that are the validation scans", TRAIN, ["--valid_folder", "data/train"], "in the train split"),
    Case("a folder for results below a file", TRAIN, ["--output_dir", "data/labels.csv/run"], "cannot be written"),
    Case("a folder for results that is a file", TEST, ["--output_dir", "data/labels.csv"], "cannot be written"),
    Case("a folder for results that cannot be made", TRAIN, ["--output_dir", "/dev/null/run"], "cannot be written"),
    Case(
        "a folder for results that is read-only", PREDICT, ["--output_dir", "data/new"], "cannot be written",
        patches={"os.access": lambda path, mode: False},  # the superuser of a test may write everywhere
    ),
    Case("a folder for results that holds another run", TRAIN, ["--output_dir", "runs/first_stage"], "holds a run already"),
    Case(
        "a data set in a folder with other files", "prepare_dataset.py", ["--preprocessed", "data/train", "--output_dir", "results"],
        "holds other files", fill_output,
    ),
    Case(
        "an analysis in a folder with other files", "analyse_brain_age_gap.py",
        ["--predictions", "data/labels.csv", "--output_dir", "results"], "holds other files", fill_output,
    ),
    Case("results in the folder of the training scans", TRAIN, ["--output_dir", "data/train"], "data/train"),
    Case("results in the folder of the tested scans", TEST, ["--output_dir", "data/test"], "data/test"),
    Case("results in the folder of the predicted scans", PREDICT, ["--output_dir", "prepared"], "prepared"),
    Case("results in the folder of the raw scans", PREPROCESS, ["--input", "data/test", "--output_dir", "data/test"], "data/test"),
    Case("a sorter in place of another file", "train_sorter.py", ["--output", "data/labels.csv"], "holds labels.csv already"),
    Case("a demo cohort in a folder with other files", "make_demo_cohort.py", ["--output_dir", "data"], "data"),
]  # fmt: skip
