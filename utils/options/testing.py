"""The flags of the test scripts."""

from pathlib import Path

from utils.options.flags import (
    Parser,
    add_age_interval,
    add_first_stage_checkpoint,
    add_label_table,
    add_machine_flags,
    add_overwrite,
    add_released_normalization,
    boolean,
    flag,
    ignore,
    optional_path,
)


def testing_parser(stage: int) -> Parser:
    """Return the parser of ``test_first_stage.py`` or ``test_second_stage.py``."""
    parser = Parser(
        f"Estimate the brain age of every scan in a folder with the {'first stage' if stage == 1 else 'whole cascade'}\n"
        "of TSAN.\n\n"
        "Writes predictions.csv, predictions.npz, metrics.json and a scatter plot to the output folder"
        + (",\nand <split>_discretized_age.npy, which the second stage needs." if stage == 1 else ".")
        + "\nWithout a label table it predicts all the same."
    )
    folder = "runs/first_stage" if stage == 1 else "runs/second_stage"
    group = parser.add_argument_group("data")
    flag(group, "--test_folder", "data/test", Path, "folder of .nii or .nii.gz scans")
    add_label_table(group, "data/labels.csv", "; '': none")
    flag(group, "--sex", None, str, "of all subjects for whom the label table gives none", choices=("F", "M"))
    flag(
        group,
        "--checkpoint",
        f"{folder}/best.pt",
        Path,
        "of the trained network, ours or one that the authors released",
    )
    flag(group, "--output_dir", f"{folder}/test", Path, "folder for the results")
    add_overwrite(group)
    flag(group, "--npz_name", "predictions.npz", str, "file name of the predictions as arrays")
    flag(group, "--plot_name", "brain_age.png", str, "file name of the scatter plot")
    if stage == 1:
        flag(group, "--split", "test", str, "name of the split, for <split>_discretized_age.npy")
    else:
        add_first_stage_checkpoint(group)
        flag(
            group, "--discretized_age_file", None, optional_path,
            "table of test_first_stage.py for these scans; the first stage is then not run again",
        )  # fmt: skip
    group = parser.add_argument_group("released checkpoints", "Checkpoints of this project know these themselves.")
    flag(group, "--use_sex --use_gender", None, boolean, "which of the two heads to use; default: the one with sex")
    add_released_normalization(group)
    add_age_interval(group, None, "step of the discretized ages, years; default: 5")
    add_machine_flags(parser.add_argument_group("machine"), "data/cache", "8")
    ignore(parser, "--model", "--model_name", "--sorter", "--loss", "--aux_loss", "--lbd", "--beta")
    return parser
