"""Flags: the authors' names, wrong values, and the defaults of bash scripts, parsers and the reference page."""

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import PurePath

import pytest

from benchmarks.ablation import ablation_parser
from benchmarks.throughput import throughput_parser
from tests.conftest import ROOT
from utils.options import analysis, prediction, preparation, testing, training

PARSERS = {
    "train_first_stage": training.training_parser(1),
    "train_second_stage": training.training_parser(2),
    "test_first_stage": testing.testing_parser(1),
    "test_second_stage": testing.testing_parser(2),
    "preprocess": preparation.preprocessing_parser(),
    "prepare_dataset": preparation.dataset_parser(),
    "make_demo_cohort": preparation.cohort_parser(),
    "train_sorter": training.sorter_parser(),
    "cross_validate": prediction.cross_validation_parser(),
    "predict": prediction.prediction_parser(),
    "analyse_brain_age_gap": analysis.gap_parser(),
    "compare_runs": analysis.comparison_parser(),
    "throughput": throughput_parser(),
    "ablation": ablation_parser(),
}
BASH_SCRIPTS = {path.stem.removeprefix("bash_"): path for path in sorted(ROOT.glob("bash_*.sh"))}
NO_FLAGS = {
    "DATA",
    "RECIPE",
    "CUDA_VISIBLE_DEVICES",
    "PROCESSES",
    "NODES",
    "NODE_RANK",
    "RENDEZVOUS",
    "MAX_RESTARTS",
}  # what other variables are made of, and how scripts are run


@dataclass
class Variable:
    """A variable of a bash script."""

    default: str
    comment: str


def variables_of(script: str) -> dict[str, Variable]:
    """Return the variables to which a bash script gives defaults."""
    line = r'^(?:export )?([A-Z_]+)="\$\{\1:?-(.*)\}"[ \t]*(?:# *(.*))?$'
    found = re.findall(line, BASH_SCRIPTS[script].read_text(), re.M)
    return {name: Variable(default, comment) for name, default, comment in found}


def resolve(text: str, variables: dict[str, str]) -> str:
    """Replace variables, and ``$(dirname ...)`` of one, as bash does."""
    text = re.sub(r"\$([A-Z_]+)", lambda match: {"HERE": str(ROOT), **variables}[match[1]], text)
    return re.sub(r'\$\(dirname "([^"]*)"\)', lambda match: str(PurePath(match[1]).parent), text)


def resolved_defaults(script: str) -> dict[str, str]:
    """Return the defaults of a bash script's variables as Python gets them."""
    defaults: dict[str, str] = {}
    for name, variable in variables_of(script).items():  # a variable stands below those that it is made of
        defaults[name] = resolve(variable.default, defaults)
    return defaults


def test_the_authors_flags_work(capsys) -> None:
    released = (
        "--batch_size 8 --epochs 150 --lr 1e-5 --weight_decay 5e-4 --loss mse --aux_loss ranking --lbd 10 --beta 0.1 "
        "--first_stage_net a/best.pth.tar --train_folder t --valid_folder v --excel_path x.xls --model ScaleDense "
        "--output_dir o --dis_range 10 --sorter s.pt --use_gender False --schedular cosine --warmup_epoch 2 "
        "--min_lr 1e-6"
    )
    args = PARSERS["train_second_stage"].parse_args(released.split())
    assert (args.ranking_weight, args.age_difference_weight, args.age_interval) == (10, 0.1, 10)
    assert args.ranking == "sodeep"
    first = PARSERS["train_first_stage"].parse_args(["--model", "ScaleDense", "--use_gender", "False"])
    assert (first.model, first.use_sex) == ("scaledense", False)
    assert (str(args.first_stage_checkpoint), str(args.label_table)) == ("a/best.pth.tar", "x.xls")
    assert (args.scheduler, args.warmup_epochs, args.minimum_learning_rate) == ("cosine", 2, 1e-6)
    PARSERS["train_second_stage"].parse_args(["--test_folder", "t", "--print_freq", "40", "--warmup_lr_init", "1e-7"])
    assert "--print_freq" in capsys.readouterr().out
    PARSERS["test_second_stage"].parse_args(
        ["--model", "ScaleDense", "--model_name", "m.tar", "--sorter", "s", "--lbd", "10"]
    )
    args = PARSERS["test_first_stage"].parse_args(["--npz_name", "a.npz", "--plot_name", "b.png"])
    assert (args.npz_name, args.plot_name) == ("a.npz", "b.png")


@pytest.mark.parametrize("script", PARSERS)
def test_bash_variables_are_flags_with_the_same_defaults(script) -> None:
    variables, text = variables_of(script), BASH_SCRIPTS[script].read_text()
    assert len(variables) == len(re.findall(r"^(?:export )?[A-Z_]+=", text, re.M)) > 3
    actions = {action.dest: action for action in PARSERS[script]._actions}
    for name, default in resolved_defaults(script).items():
        assert len(variables[name].comment) > 3, f"{name} has no comment"
        if name in NO_FLAGS:
            continue
        assert re.search(rf'--{name.lower()}[ =]"\${name}"', text), f"{name} is not passed on"
        expected = actions[name.lower()].default
        if "dirname" in variables[name].default:  # a default that follows another flag
            assert expected is None
        else:
            assert (expected or "") == default, name


@pytest.mark.parametrize("script", BASH_SCRIPTS)
def test_the_reference_page_has_the_variables_and_defaults_of_the_bash_scripts(script) -> None:
    documented = {name: default for (of, name), default in documented_variables().items() if of == script}
    assert documented == {name: variable.default for name, variable in variables_of(script).items()}


def documented_variables() -> dict[tuple[str, str], str]:
    """Return the defaults in docs/variables.md by script and variable.

    A heading names the scripts of the rows below it; ``none`` stands for an empty default.
    """
    found: dict[tuple[str, str], str] = {}
    scripts: list[str] = []
    for line in (ROOT / "docs" / "variables.md").read_text().splitlines():
        if line.startswith("## "):
            scripts = line.removeprefix("## ").split(", ")
            assert set(scripts) <= BASH_SCRIPTS.keys(), line
        elif line.startswith("| `"):
            name, default, meaning = (cell.strip() for cell in line.strip("|").split(" | "))
            assert meaning, line
            for script in scripts:
                key = script, name.strip("`")
                assert key not in found, f"{key} twice"
                found[key] = "" if default == "none" else default.strip("`")
    return found


# Prints a script's help, and on the error stream which large packages that took.
HELP = """
import runpy, sys
script, sys.argv = sys.argv[1], [sys.argv[1], "--help"]
try:
    runpy.run_path(script, run_name="__main__")
finally:
    large = {"torch", "pandas", "nibabel", "numpy", "scipy", "sklearn", "matplotlib"}
    print(*large.intersection(sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize("script", PARSERS)
def test_help_explains_each_flag_without_large_packages(script) -> None:
    own = ROOT / f"{script}.py"
    path = own if own.exists() else ROOT / "benchmarks" / own.name
    result = subprocess.run(
        [sys.executable, "-c", HELP, path], capture_output=True, text=True, check=False, cwd=ROOT
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr.strip() == "", "imported before the flags are read"
    for action in PARSERS[script]._actions:
        if action.help is not argparse.SUPPRESS:
            assert len(action.help) > 5, action.dest
            assert action.option_strings[0] in result.stdout
    assert "(default: " in result.stdout


@pytest.mark.parametrize(
    "flag",
    [
        "--batch_size 0", "--batch_size x", "--epochs -1", "--lr 0", "--lr nan", "--use_sex maybe", "--model vgg",
        "--model perceptron", "--normalization local_sd", "--augmentation shift", "--folds 1", "--plateau_factor 1",
        "--min_lr 1", "--warmup_epochs 100", "--beta inf", "--unknown 1", "--age_interval 0", "--epoch 3",
        "--scheduler plateau", "--ranking sodeep", "--ranking sodeep --sorter s.pt --ranking_weight 0",
        "--keep best --valid_folder=", "--scheduler plateau --warmup_epochs 0 --valid_folder=", "--freeze_blocks 1",
    ],
)  # fmt: skip
def test_wrong_flags_end_with_one_line_and_status_2(flag, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        training.parse_training_flags(1, flag.split())
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "--help explains every flag" in line


def test_misspelt_variables_are_named(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["train_first_stage.py"])
    PARSERS["train_first_stage"].parse_args()
    assert "WARNING" not in capsys.readouterr().out
    for name in ("BATCHSIZE", "EPOCH", "LEARNINGRATE", "RECIPES"):
        monkeypatch.setenv(name, "4")
    PARSERS["train_first_stage"].parse_args()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"WARNING: the variable {name} means nothing here; did you mean {meant}?"
        for name, meant in (("BATCHSIZE", "BATCH_SIZE"), ("EPOCH", "EPOCHS"), ("LEARNINGRATE", "LEARNING_RATE"),
                            ("RECIPES", "RECIPE"))
    ]  # fmt: skip


def test_no_variable_of_another_script_looks_misspelt(monkeypatch, capsys) -> None:
    for script in BASH_SCRIPTS:
        for name in variables_of(script):
            monkeypatch.setenv(name, "1")
    for script, parser in PARSERS.items():
        monkeypatch.setattr(sys, "argv", [script])
        parser.parse_args()
        assert "WARNING" not in capsys.readouterr().out, script


def test_the_second_stage_takes_the_grid_and_the_normalization_of_the_first() -> None:
    args = training.parse_training_flags(2, [])
    assert args.normalization is None
    assert not {"voxel_size", "field_of_view"} & set(vars(args))


def test_a_second_stage_may_freeze_only_what_is_not_random(capsys) -> None:
    assert training.parse_training_flags(2, ["--freeze_blocks", "1"]).freeze_blocks == 1  # starts from the first stage
    with pytest.raises(SystemExit):
        training.parse_training_flags(2, ["--freeze_blocks", "1", "--start_from_first_stage", "false"])
    assert "--freeze_blocks would keep random weights; give --initial_weights" in capsys.readouterr().err


def test_shell_scripts_are_strict() -> None:
    assert len(BASH_SCRIPTS) >= 11
    for script in [*BASH_SCRIPTS.values(), *(ROOT / "recipes").glob("*.sh")]:
        text = script.read_text()
        assert "rm -rf" not in text
        if script.parent == ROOT and script.name != "bash_setup.sh":
            assert "set -euo pipefail" in text, script.name
        assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
