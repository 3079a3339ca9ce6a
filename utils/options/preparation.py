"""The flags of preprocessing, of making data sets, and of simulated cohorts."""

import argparse
from pathlib import Path

from utils.common.choices import PATIENT_GAPS
from utils.options.flags import (
    Parser,
    add_brain_extracted,
    add_device,
    add_selection,
    add_shard,
    add_strict,
    add_timeout,
    boolean,
    count,
    flag,
    number,
    optional_text,
    whole,
)


def preprocessing_parser() -> Parser:
    """Return the parser of ``preprocess.py``."""
    parser = Parser(
        "Prepare raw T1-weighted scans for the network: brain extracted, bias field corrected, in MNI152\n"
        "space on the grid of FSL's MNI152_T1_2mm.\n\n"
        "Writes <subject>[_<session>].nii.gz for each scan that did not fail, qc.csv, index.html with a\n"
        "picture of each, and dataset_description.json. Finished scans are not done again.\n"
        "The exit status is 0 where the scans were done, whatever qc.csv says of each; 1 if all failed, or with\n"
        "--strict true if any is doubtful or failed; 2 for wrong input."
    )
    flag(
        parser, "--input", "raw", Path,
        "a scan, a folder of scans (.nii, .nii.gz, .mgz), a BIDS data set (sub-*/[ses-*/]anat/*_T1w.nii.gz), or the "
        "folder of FreeSurfer's, FastSurfer's (*/mri/orig.mgz) or UK Biobank's folders (*/T1/T1.nii.gz)",
    )  # fmt: skip
    add_selection(parser)
    flag(parser, "--output_dir", "preprocessed", Path, "folder for the results")
    flag(
        parser, "--layout", "flat", str,
        "of the results. flat: one file a scan, named like it; bids: a derivative of BIDS, with brain masks and sidecars",
        choices=("flat", "bids"),
    )  # fmt: skip
    flag(
        parser, "--overwrite", "false", boolean,
        "make scans again that are finished, but with other parameters or packages; otherwise they are refused",
    )  # fmt: skip
    flag(
        parser, "--registration", "affine", str,
        "to the template: affine, as the weights that ship; nonlinear, as the paper. docs/preprocessing.md compares them",
        choices=("affine", "nonlinear"),
    )  # fmt: skip
    add_brain_extracted(parser)
    flag(parser, "--num_workers", "0", whole, "scans at a time; 0: one a core, with 2 GiB of memory each")
    add_shard(parser, "all write to one output folder")
    add_strict(parser, "is doubtful")
    flag(parser, "--keep_failed", "false", boolean, "write the brain of a failed scan, too, if there is one")
    flag(
        parser,
        "--save_masks",
        "false",
        boolean,
        "write brain masks on the raw scans' own grids, masks/<subject>.nii.gz",
    )
    add_timeout(parser)
    add_device(parser)
    return parser


def dataset_parser() -> Parser:
    """Return the parser of ``prepare_dataset.py``."""
    parser = Parser(
        "Split preprocessed scans into train, validation and test, all scans of a person in one, with\n"
        "ages (and sites) balanced, and write what training needs.\n\n"
        "Writes train/, valid/, test/ with links to the scans, labels.csv and splits.csv. Scans that\n"
        "preprocess.py calls doubtful are left out."
    )
    flag(
        parser, "--preprocessed", "preprocessed", Path,
        "folder of preprocess.py, or of fsl_anat's folders with T1_to_MNI_nonlin_brain.nii.gz",
    )  # fmt: skip
    flag(
        parser, "--label_table", "labels.csv", Path,
        "IXI.xls, oasis_cross-sectional.csv, oasis_longitudinal.csv, OASIS-3's demographics or sessions, "
        "ADNIMERGE.csv, Cam-CAN's table, BIDS participants.tsv, those of UK Biobank, ABIDE, HCP-Aging, HCP-Development "
        "and NACC, or a table with subject_id, age, sex",
    )  # fmt: skip
    flag(parser, "--output_dir", "data", Path, "folder for the data set; new or empty")
    flag(parser, "--fractions", "70,15,15", _fractions, "shares of the persons for train,valid,test")
    flag(
        parser, "--person_column", None, optional_text,
        "column that tells whose scan it is; default: person, else the names of BIDS and the public data sets tell",
    )  # fmt: skip
    flag(parser, "--site_column", "", optional_text, "column whose values are balanced, too; '': none")
    flag(parser, "--split_column", None, optional_text, "column that gives each scan's split, instead of --fractions")
    flag(
        parser, "--where", [], _where,
        "take only scans whose row has one of these values, such as DX=CN; may be given again",
        action="append", metavar="COLUMN=VALUES",
    )  # fmt: skip
    flag(parser, "--include_doubtful", "false", boolean, "take scans that preprocess.py calls doubtful, too")
    flag(parser, "--skip_unlabelled", "false", boolean, "leave out scans without a row or an age, instead of refusing")
    flag(parser, "--copy", "false", boolean, "copy the scans instead of linking to them")
    flag(parser, "--seed", "0", whole, "of the split")
    return parser


def _fractions(text: str) -> tuple[float, ...]:
    """Read the shares of train, validation and test."""
    shares = tuple(number(part, 0) for part in text.split(","))
    if len(shares) != 3 or sum(shares) <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not three shares such as 70,15,15")
    return shares


def _where(text: str) -> tuple[str, frozenset[str]]:
    """Read a condition such as ``DX=CN,MCI``."""
    column, equals, values = text.partition("=")
    if not (column and equals and values):
        raise argparse.ArgumentTypeError(f"'{text}' is no condition such as DX=CN or DX=MCI,Dementia")
    return column, frozenset(values.split(","))


def cohort_parser() -> Parser:
    """Return the parser of ``make_demo_cohort.py``."""
    parser = Parser(
        "Write a cohort of SIMULATED brains that age visibly, to try everything without data.\n\n"
        "Writes train/, valid/, test/ (70, 15, 15 %), patients/ if asked for, and labels.csv with age,\n"
        "sex, diagnosis and the true brain age."
    )
    flag(parser, "--output_dir", "data", Path, "folder for the cohort; new, empty, or holding this very cohort")
    flag(parser, "--subjects", "120", count, "healthy subjects, 20 to 90 years old")
    flag(parser, "--patients", "0", whole, "subjects of each patient group, MCI and AD")
    flag(parser, "--patient_gaps", "5,10", _patient_gaps, "years, mean true brain-age gap of each group; 0,0: none")
    flag(parser, "--voxel_size", "2", count, "mm: 2, or 4 for a CPU")
    flag(parser, "--seed", "0", whole, "of everything random")
    flag(parser, "--num_workers", "2", count, "processes that simulate")
    return parser


def _patient_gaps(text: str) -> dict[str, float]:
    """Read the mean true gap of each simulated patient group."""
    gaps = [number(part, -20) for part in text.split(",")]
    if len(gaps) != len(PATIENT_GAPS):
        raise argparse.ArgumentTypeError(f"'{text}' is not the years of {' and '.join(PATIENT_GAPS)}, such as 5,10")
    return dict(zip(PATIENT_GAPS, gaps, strict=True))
