"""The flags of prediction and cross-validation."""

from pathlib import Path

from utils.common.files import PROJECT
from utils.options.flags import (
    Parser,
    add_brain_extracted,
    add_label_table,
    add_machine_flags,
    add_overwrite,
    add_selection,
    add_shard,
    add_strict,
    add_timeout,
    boolean,
    count,
    flag,
    folds,
    optional_path,
    whole,
)


def prediction_parser() -> Parser:
    """Return the parser of ``predict.py``."""
    parser = Parser(
        "Estimate brain ages of T1-weighted scans, raw or prepared, with trained weights.\n\n"
        "Writes predictions.csv (brain age, 90 % interval, gap where the age is known, warnings) and a\n"
        "picture of each scan. A scan that fails is reported and does not stop the others.\n"
        "The exit status is 0 where the scans were done, whatever predictions.csv says of each; 1 if all failed,\n"
        "or with --strict true if any is unlike the training scans or failed; 2 for wrong input."
    )
    flag(
        parser, "--input", "raw", Path,
        "a scan, a folder of scans (.nii, .nii.gz, .mgz), a BIDS data set, or the folder of fsl_anat's, FreeSurfer's, "
        "FastSurfer's or UK Biobank's folders; a brain on the 2 mm grid of MNI152 with 0 around it counts as prepared, "
        "any other scan is preprocessed",
    )  # fmt: skip
    add_selection(parser)
    flag(parser, "--output_dir", "predictions", Path, "folder for the results, new for each call")
    add_overwrite(parser)
    add_label_table(parser, "", "; '': none")
    flag(parser, "--sex", None, str, "of all subjects for whom the label table gives none", choices=("F", "M"))
    flag(parser, "--weights_dir", str(PROJECT / "weights"), Path, "folder of weights that bash_cross_validate.sh wrote")
    flag(
        parser, "--explain", "none", str,
        "write maps of where the brain looks older; occlusion is easier to read, integrated_gradients faster",
        choices=("none", "occlusion", "integrated_gradients"),
    )  # fmt: skip
    flag(
        parser, "--calibration_table", "", optional_path,
        "ages of 10 or more healthy people of the same scanner, whose scans are part of the input: calibrates all "
        "brain ages to this scanner; '': none",
    )  # fmt: skip
    flag(
        parser, "--scanner", "", str,
        "the training site whose scanner made the scans, by its name in the model card; '': training never saw it",
    )  # fmt: skip
    add_shard(parser, "each into an output folder of its own, together with the calibration's people")
    add_strict(parser, "is unlike the training scans")
    flag(parser, "--pictures", "true", boolean, "draw a picture of each scan; false saves a quarter of a second a scan")
    add_machine_flags(parser.add_argument_group("machine"), None, "8")
    add_brain_extracted(parser)
    add_timeout(parser)
    return parser


def cross_validation_parser() -> Parser:
    """Return the parser of ``cross_validate.py``."""
    parser = Parser(
        "Cross-validate both stages. Subjects are parted into K folds of similar ages, all scans of a person\n"
        "in one fold, and each is estimated by networks that never saw the person. There is no validation split.\n"
        "With --hold_out sites or both, each site of --site_column is estimated by networks that never saw it.\n\n"
        "Runs bash_train_first_stage.sh and bash_train_second_stage.sh with the variables of the environment,\n"
        "such as RECIPE or EPOCHS. Writes predictions.csv, metrics.json and a scatter plot of all subjects,\n"
        "folds.csv, and a folder for each fold. What is finished is not run again. With --weights_dir it then\n"
        "trains on all subjects, and writes the weights that predict.py uses."
    )
    flag(parser, "--scan_folder", "preprocessed", Path, "folder of prepared scans, .nii or .nii.gz")
    add_label_table(parser, "labels.csv")
    flag(parser, "--output_dir", "runs/cross_validation", Path, "folder for everything")
    flag(parser, "--folds", "5", folds, "K, the number of parts: each is tested once")
    flag(
        parser, "--hold_out", "people", str,
        "who is tested. people: each of the K parts; sites: each site, by networks that never saw its scanner; both",
        choices=("people", "sites", "both"),
    )  # fmt: skip
    flag(parser, "--site_column", "", str, "column of the label table that tells the scanner or center; '': none")
    flag(parser, "--members", "1", count, "cascades in each fold, of different seeds, whose estimates are averaged")
    flag(parser, "--stages", "2", int, "1: only the first stage", choices=(1, 2))
    flag(parser, "--seed", "0", whole, "of the folds; member m trains with seed + m - 1")
    flag(
        parser, "--weights_dir", "", optional_path,
        "folder for weights trained on all subjects, with a model card; '': none",
    )  # fmt: skip
    flag(
        parser, "--jobs", "1", count,
        "networks that are trained side by side, on one machine; small ones leave cores and a GPU idle",
    )  # fmt: skip
    add_shard(parser, "the call that finds all of them done reports")
    flag(parser, "--data_notice", "", str, "name, source and licence of the data, for the model card")
    flag(parser, "--remark", "", str, "a paragraph for the top of the model card, such as a warning; '': none")
    flag(
        parser, "--num_workers", "8", whole, "processes that read scans, at most one a core; 0: the main process reads"
    )
    flag(
        parser, "--cache_folder", "runs/cache", optional_path,
        "where the trainings keep decoded scans, at most 3.6 MB each; '': decode them each time",
    )  # fmt: skip
    return parser
