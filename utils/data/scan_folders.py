"""Find scans in folders: of plain files, of BIDS, and those that FSL, FreeSurfer and UK Biobank make for each scan."""

import shlex
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from utils.common.errors import InputError, list_some
from utils.common.files import read_json
from utils.data.columns import session_of
from utils.data.image_files import is_nifti
from utils.data.names import VERSION, name_and_session, scan_name
from utils.data.preparations import DESCRIPTION
from utils.data.subjects import person_of

FSL_FOLDER = ".anat"  # of the folder that fsl_anat writes for a scan
FSL_PRODUCT = "T1_to_MNI_nonlin_brain.nii.gz"  # the brain in it, on the grid of MNI152_T1_2mm
# The raw scan in a subject's folder of FreeSurfer or FastSurfer, and in an unpacked file of UK Biobank's field 20252.
RAW_PRODUCTS = ("mri/orig.mgz", "T1/T1.nii.gz")
NO_SUBJECTS = ("fsaverage", "cvs_avg35", "lh.EC_average", "rh.EC_average")  # in a folder of FreeSurfer's subjects
BIDS_FOLDERS = ("", "ses-*/", "sub-*/", "sub-*/ses-*/")
NATIVE_SPACES = ("", "T1w", "orig", "individual", "scanner")
DICOM_MAGIC, DICOM_ENDINGS = b"DICM", (".dcm", ".ima")
MOST_LOOKED_AT = 1000  # files, for DICOM


class Selection(NamedTuple):
    """Which people and sessions are wanted; empty: all.

    Parameters
    ----------
    participants, sessions : sequence of str
        With or without ``sub-`` and ``ses-``.
    """

    participants: Sequence[str] = ()
    sessions: Sequence[str] = ()

    def of(self, paths: Iterable[Path]) -> list[Path]:
        """Return the scans that are wanted.

        Raises
        ------
        InputError
            If a person or a session has none.
        """
        found = [(path, *_person_and_session(file_name_of(path))) for path in paths]
        wanted = {"participants": [name.removeprefix("sub-") for name in self.participants]}
        wanted["sessions"] = [session_of(name) for name in self.sessions]
        problems = []
        for place, (what, names) in enumerate(wanted.items()):
            there: set[str] = {scan[1:][place] for scan in found}
            lacking = [name for name in names if name not in there]
            if lacking:
                problems.append(
                    f"--{what}: no scan of {list_some(lacking)}; there are {list_some(sorted(there - {''})) or 'none'}"
                )
        if problems:
            raise InputError(problems)
        people, sessions = wanted.values()
        return [
            path for path, person, session in found
            if (person in people or not people) and (session in sessions or not sessions)
        ]  # fmt: skip


EVERYTHING = Selection()


def _person_and_session(file_name: str) -> tuple[str, str]:
    """Return person and session, without ``sub-`` and ``ses-``."""
    name = scan_name(file_name)
    return person_of(name).removeprefix("sub-"), name_and_session(name)[1]


def is_fsl_folder(path: Path) -> bool:
    """Tell whether a path is the folder that fsl_anat writes for a scan."""
    return path.is_dir() and (path.absolute().suffix == FSL_FOLDER or (path / FSL_PRODUCT).is_file())


def file_name_of(path: Path) -> str:
    """Return the name that tells whose scan it is: the file's, or that of a program's folder, whose files are alike.

    >>> file_name_of(Path("raw/sub-01.nii.gz")), file_name_of(Path("fsl/sub-01.anat/T1_to_MNI_nonlin_brain.nii.gz"))
    ('sub-01.nii.gz', 'sub-01.anat')
    >>> file_name_of(Path("subjects/bert/mri/orig.mgz")), file_name_of(Path("1000011_20252_2_0/T1/T1.nii.gz"))
    ('bert', '1000011_20252_2_0')
    """
    for product in (FSL_PRODUCT, *RAW_PRODUCTS):
        if path.absolute().as_posix().endswith(f"/{product}"):
            return path.absolute().parents[product.count("/")].name
    return path.name


def list_prepared(folder: Path) -> list[Path]:
    """List the prepared NIfTI files of a folder; of a BIDS derivative and a folder of fsl_anat, the brains alone.

    Raises
    ------
    InputError
        If it is a folder of fsl_anat without this brain, or if one of two scans would have to be guessed.
    """
    if is_fsl_folder(folder):
        if (folder / FSL_PRODUCT).is_file():
            return [folder / FSL_PRODUCT]
        raise InputError(
            f"{folder}: holds no {FSL_PRODUCT}; run fsl_anat to its end, with the nonlinear registration, or "
            "preprocess the raw scan"
        )
    return sorted(path for path in folder.iterdir() if is_nifti(path)) + one_version(list_bids(folder))


def list_bids(folder: Path) -> list[Path]:
    """List the T1-weighted scans of a BIDS data set, or of a person or session in it."""
    return [path for part in BIDS_FOLDERS for path in sorted(folder.glob(f"{part}anat/*_T1w.nii*")) if is_nifti(path)]


def list_raw_products(folder: Path) -> list[Path]:
    """List the raw scans in folders of FreeSurfer, FastSurfer and UK Biobank; a folder may be that of one scan."""
    found = [
        path for product in RAW_PRODUCTS for start in ("", "*/") for path in sorted(folder.glob(f"{start}{product}"))
    ]
    subjects = {path: path.absolute().parents[1] for path in found}
    left_out = {
        path for path, subject in subjects.items()
        if subject.name.startswith(NO_SUBJECTS) or ".long." in subject.name or (subject / "base-tps").exists()
    }  # fmt: skip
    if left_out:
        names = list_some(sorted(subjects[path].name for path in left_out))
        print(f"note: templates of FreeSurfer, and what was made with one, are left out: {names}")
    return [path for path in found if path not in left_out]


def one_version(paths: Sequence[Path]) -> list[Path]:
    """Choose among the versions of each session's scans in BIDS: the raw ones, else the least derived.

    Parameters
    ----------
    paths : sequence of Path

    Returns
    -------
    list of Path
        Of each session only the files of the highest preference: raw ones; in
        native space, desc-preproc first; in a template's space, desc-preproc
        first. Scans that were acquired several times (run, acq) all stay.
        Files whose names are not those of BIDS stay, too.

    Notes
    -----
    Preprocessing resamples what is raw or in native space only once.
    """
    best: dict[tuple[str, str], tuple[bool, ...]] = {}
    for path in paths:
        key, rank = _person_and_session(path.name), _rank(path.name)
        best[key] = min(best.get(key, rank), rank)
    kept = [path for path in paths if _rank(path.name) == best[_person_and_session(path.name)]]
    left_out = [path.name for path in paths if path not in set(kept)]
    if left_out:
        print(
            f"note: {len(left_out)} files are other versions of the same scans and are left out (raw before derived, "
            f"native space before a template's, desc-preproc before others): {list_some(left_out)}"
        )
    return kept


def _rank(name: str) -> tuple[bool, ...]:
    """Return what is preferred of a session: lower is better."""
    if not name.startswith("sub-"):
        return (False,) * 3
    derived = {part[0].partition("-")[0][1:]: part[0].partition("-")[2] for part in VERSION.finditer(name)}
    return bool(derived), derived.get("space", "") not in NATIVE_SPACES, derived.get("desc") != "preproc"


def say_if_derivative(folder: Path) -> None:
    """Say so if a folder is a BIDS derivative, and of which program."""
    try:
        described = read_json(folder / DESCRIPTION)
        made = described.get("GeneratedBy") or [described.get("PipelineDescription") or {}]
        if described.get("DatasetType") == "derivative" or made[0]:
            by = " ".join(str(made[0][part]) for part in ("Name", "Version") if part in made[0])
            print(f"note: {folder} is a derivative{f' of {by}' if by else ''}, not raw data")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return


def why_no_scans(source: Path, otherwise: str) -> str:
    """Say why a file or folder holds no scans: it holds DICOM files of whatever names, or else what is given."""
    files = (path for path in source.rglob("*") if path.is_file() and not path.name.startswith("."))
    looked_at = islice(files, MOST_LOOKED_AT) if source.is_dir() else [source]
    dicom = next(filter(_is_dicom, looked_at), None)
    if dicom is None:
        return f"{source}: {otherwise}"
    folder = source if source.is_dir() else source.parent
    return (
        f"{source}: is DICOM{f', such as {dicom.name}' if source.is_dir() else ''}; convert it with dcm2niix: "
        f"mkdir nifti && dcm2niix -z y -f %i_%p -o nifti {shlex.quote(str(folder))}; give the T1-weighted ones in nifti"
    )


def _is_dicom(path: Path) -> bool:
    """Tell by its content whether a file is DICOM; by its name, too, because old ones lack the preamble."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == DICOM_MAGIC or path.suffix.lower() in DICOM_ENDINGS
    except OSError:
        return False
