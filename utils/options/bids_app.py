"""The flags of the BIDS App, which are those that all BIDS Apps have."""

from pathlib import Path

from utils.common.files import PROJECT
from utils.options.flags import Parser, add_device, flag, optional_path


def bids_app_parser() -> Parser:
    """Return the parser of ``bids_app.py``."""
    parser = Parser(
        "Brain ages of a BIDS data set, with the call of every BIDS App.\n\n"
        "participant: prepares the T1-weighted scans as a derivative of BIDS in the output folder, and writes\n"
        "their brain ages to brain_age/<participant>/. Several calls may run at once, with other participants.\n"
        "group: writes the brain ages of all prepared scans to brain_age/predictions.csv and, where the ages\n"
        "of ten people are known, brain_age/report/report.html."
    )
    flag(parser, "bids_dir", None, Path, "root of the BIDS data set")
    flag(parser, "output_dir", None, Path, "folder for the derivative and the brain ages")
    flag(parser, "analysis_level", None, str, "what is done", choices=("participant", "group"))
    for what, prefix in (("participant", "sub-"), ("session", "ses-")):
        flag(
            parser, f"--{what}_label --{what}-label", [], str,
            f"{what}s to take, separated by blanks, with or without {prefix}; default: all", nargs="+", metavar="LABEL",
        )  # fmt: skip
    flag(parser, "--label_table", "", optional_path, "ages and sexes; '': participants.tsv of the data set")
    flag(parser, "--weights_dir", str(PROJECT / "weights"), Path, "folder of weights that bash_cross_validate.sh wrote")
    add_device(parser)
    parser.add_argument(
        "--skip_bids_validation", "--skip-bids-validation", action="store_true",
        help="accepted, as other BIDS Apps do; the data set is not validated in any case",
    )  # fmt: skip
    return parser
