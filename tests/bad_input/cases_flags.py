"""Flags and variables."""

from tests.bad_input.harness import Case

TRAIN, TEST, PREDICT = "train_first_stage.py", "test_first_stage.py", "predict.py"
CASES = [
    Case("a negative batch size", TRAIN, ["--batch_size", "-4"], "--batch_size"),
    Case("no epochs", TRAIN, ["--epochs", "0"], "--epochs: 0 is too small; expected at least 1"),
    Case("a word where a number is wanted", TRAIN, ["--learning_rate", "fast"], "'fast' is not a number"),
    Case("a number that is not finite", TRAIN, ["--weight_decay", "inf"], "'inf' is not a finite number"),
    Case("a number too large for any memory", TRAIN, ["--batch_size", "9" * 30], "--batch_size"),
    Case("a name of an unknown network", TRAIN, ["--model", "resnet"], "invalid choice: 'resnet'"),
    Case("a name of an unknown augmentation", TRAIN, ["--augmentation", "flip,warp"], "'warp' is not among"),
    Case("a misspelt flag", TRAIN, ["--bach_size", "4"], "did you mean --batch_size?"),
    Case("a flag of another script", TEST, ["--learning_rate", "1"], "unrecognized arguments: --learning_rate"),
    Case("a flag without its value", TRAIN, ["--epochs"], "--epochs: expected one argument"),
    Case("a path that begins with a dash", TEST, ["--output_dir", "-results"], "put ./ before a path"),
    Case("a word without a flag", PREDICT, ["scan.nii.gz"], "unrecognized arguments: scan.nii.gz"),
    Case("neither true nor false", TRAIN, ["--use_sex", "maybe"], "'maybe' is neither true nor false"),
    Case("one fold", TRAIN, ["--folds", "1"], "1 fold leaves nothing to train on"),
    Case("more folds than subjects", TRAIN, ["--folds", "13"], "13 folds of 12 training subjects"),
    Case("no folds for cross-validation", "cross_validate.py", ["--folds", "0"], "needs at least 2 folds"),
    Case("a voxel size that is no multiple of 2 mm", TRAIN, ["--voxel_size", "3"], "voxel size is 3 mm"),
    Case("a network too deep for its volumes", TRAIN, ["--blocks", "9"], "does not survive"),
    Case("flags that contradict each other", TRAIN, ["--keep", "best", "--valid_folder", ""], "needs --valid_folder"),
    Case("shares that are none", "prepare_dataset.py", ["--fractions", "70,30"], "is not three shares"),
    Case("shares that are all 0", "prepare_dataset.py", ["--fractions", "0,0,0"], "is not three shares"),
    Case("a part of more than all", "preprocess.py", ["--shard", "9/8"], "'9/8' is no part"),
    Case("a range of ages that is empty", "train_sorter.py", ["--youngest", "80", "--oldest", "20"], "widen the range"),
    Case("an age that is not finite", "train_sorter.py", ["--oldest", "inf"], "--oldest"),
    Case(
        "a correction without data for its fit", "analyse_brain_age_gap.py", ["--correction", "linear-gap"],
        "--correction needs --fit_predictions",
    ),
    Case("a path in quotes that never end", "analyse_brain_age_gap.py", ["--predictions", "'a.csv"], "cannot be split"),
    Case("a GPU where there is none", TEST, ["--device", "cuda"], "no CUDA GPU is visible"),
    Case("a GPU where there is none, for preprocessing", "preprocess.py",
         ["--input", "prepared", "--device", "cuda"], "no CUDA GPU is visible"),
    Case(
        "two processes and one GPU", TRAIN, ["--device", "cuda"],
        "2 processes need as many GPUs, but 1 can be seen",
        variables={"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        patches={"torch.cuda.is_available": lambda: True, "torch.cuda.device_count": lambda: 1},
    ),
    Case("a word where a number of processes is wanted", "bash_train_first_stage.sh", [], "PROCESSES", variables={"PROCESSES": "two"}),
    Case(
        "code in place of a number of processes", "bash_train_first_stage.sh", [], "PROCESSES",
        variables={"PROCESSES": "PATH[$(touch harmed)]"},
    ),
    Case(
        "a recipe that does not exist", "bash_train_second_stage.sh", [], "RECIPE=recipes/best.sh: no such file",
        variables={"RECIPE": "recipes/best.sh"},
    ),
    Case("a flag for the demo", "bash_demo.sh", ["--epochs", "3"], "bash_demo.sh takes no flags"),
]  # fmt: skip
