"""Flags: the authors' names, wrong values, and the defaults of the bash scripts."""

import re
import subprocess
import time
from argparse import SUPPRESS

import pytest

from tests.conftest import ROOT, run_script
from utils.options import everything as options

PARSERS = {
    "train_first_stage": options.training_parser(1),
    "train_second_stage": options.training_parser(2),
    "test_first_stage": options.testing_parser(1),
    "test_second_stage": options.testing_parser(2),
    "preprocess": options.preprocessing_parser(),
    "prepare_dataset": options.dataset_parser(),
    "make_demo_cohort": options.cohort_parser(),
    "train_sorter": options.sorter_parser(),
    "cross_validate": options.cross_validation_parser(),
    "predict": options.prediction_parser(),
    "analyse_brain_age_gap": options.gap_parser(),
    "throughput": options.throughput_parser(),
}


def test_the_authors_flags_work(capsys) -> None:
    released = (
        "--batch_size 8 --epochs 150 --lr 1e-5 --weight_decay 5e-4 --loss mse --aux_loss ranking --lbd 10 --beta 0.1 "
        "--first_stage_net a/best.pth.tar --train_folder t --valid_folder v --excel_path x.xls --model ScaleDense "
        "--output_dir o --dis_range 10 --sorter s.pt --use_gender False --schedular cosine --warmup_epoch 2 --min_lr 1e-6"
    )
    args = PARSERS["train_second_stage"].parse_args(released.split())
    assert (args.ranking_weight, args.age_difference_weight, args.age_interval) == (10, 0.1, 10)
    assert (args.ranking, args.model, args.use_sex) == ("sodeep", "scaledense", False)
    assert (str(args.first_stage_checkpoint), str(args.label_table)) == ("a/best.pth.tar", "x.xls")
    assert (args.scheduler, args.warmup_epochs, args.minimum_learning_rate) == ("cosine", 2, 1e-6)
    PARSERS["train_second_stage"].parse_args(["--test_folder", "t", "--print_freq", "40", "--warmup_lr_init", "1e-7"])
    assert "--print_freq is taken from the authors' scripts, and ignored" in capsys.readouterr().out
    PARSERS["test_second_stage"].parse_args(
        ["--model", "ScaleDense", "--model_name", "m.tar", "--sorter", "s", "--lbd", "10"]
    )
    args = PARSERS["test_first_stage"].parse_args(["--npz_name", "a.npz", "--plot_name", "b.png"])
    assert (args.npz_name, args.plot_name) == ("a.npz", "b.png")


@pytest.mark.parametrize("script", PARSERS)
def test_bash_variables_agree_with_the_flags(script) -> None:
    """Each variable is a flag of the same name with the same default."""
    text = (ROOT / f"bash_{script}.sh").read_text()
    data = re.search(r'^DATA="\$\{DATA:-(.*)\}"', text, re.M)
    variables = dict(re.findall(r'^([A-Z_]+)="\$\{[A-Z_]+:?-([^"]*)\}"', text, re.M))
    parser = PARSERS[script]
    defaults = {action.dest: action for action in parser._actions}
    for name, value in variables.items():
        if name in ("DATA", "PROCESSES"):
            continue
        assert re.search(rf'--{name.lower()}[ =]"\${name}"', text), name
        value = value.replace("$DATA", data[1] if data else "").replace("$LENGTH", variables.get("LENGTH", ""))
        action = defaults[name.lower()]
        typed = action.type(value) if action.type and value != "" else value or None
        assert typed == action.default or (not value and action.default in (SUPPRESS, [], "")), name
    for line in re.findall(r'^[A-Z_]+="\$\{.*$', text, re.M):
        assert re.search(r" # \w", line), f"a variable without its meaning: {line}"


@pytest.mark.parametrize("script", PARSERS)
def test_help_teaches_at_once(script) -> None:
    started = time.perf_counter()
    text = run_script(f"benchmarks/{script}.py" if script == "throughput" else f"{script}.py", "--help").stdout
    assert time.perf_counter() - started < 1.5
    for action in PARSERS[script]._actions:
        assert len(action.help or "") > 10, action.dest
    assert "default" in text


@pytest.mark.parametrize(
    "flag",
    [
        "--batch_size 0", "--batch_size x", "--epochs -1", "--lr 0", "--lr nan", "--use_sex maybe", "--model vgg",
        "--folds 1", "--plateau_factor 1", "--min_lr 1", "--warmup_epochs 30", "--blocks 3", "--dense_connections false", "--beta inf", "--unknown 1", "--age_interval 0", "--epoch 3",
    ],
)  # fmt: skip
def test_wrong_flags_end_with_one_line_and_status_2(flag, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        options.parse_training_flags(1, flag.split())
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "--help explains every flag" in line


def test_shell_scripts_are_strict() -> None:
    scripts = sorted(ROOT.glob("bash_*.sh"))
    assert len(scripts) >= 11
    for script in scripts:
        text = script.read_text()
        assert "rm -rf" not in text
        if script.name != "bash_setup.sh":
            assert "set -euo pipefail" in text, script.name
        assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


@pytest.mark.parametrize("recipe", ["small_cohort", "paper"])
def test_the_second_stage_takes_the_grid_and_the_normalization_of_the_first(recipe) -> None:
    args = options.parse_training_flags(2, ["--recipe", recipe])
    assert args.normalization is None
    assert not hasattr(args, "voxel_size")


def test_a_plateau_leaves_the_recipe_as_it_is() -> None:
    before = options.parse_training_flags(1, []).warmup_epochs
    assert options.parse_training_flags(1, ["--scheduler", "plateau"]).warmup_epochs == 0
    assert options.parse_training_flags(1, []).warmup_epochs == before > 0


def test_a_short_training_warms_up_for_less() -> None:
    assert options.parse_training_flags(1, ["--epochs", "2"]).warmup_epochs == 1
