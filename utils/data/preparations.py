"""How scans were prepared, as preprocessing has written it beside them."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from utils.common.files import read_json
from utils.common.provenance import software_version

DESCRIPTION = "dataset_description.json"  # beside the scans
Preparation = dict[str, str]  # ``fingerprint`` and ``registration``
ORIGIN = ("software_version", "weights_sha256", "preprocessing_fingerprint")  # columns that tell where an age is from


def origins(path: Path) -> Iterator[Path]:
    """Give a file and the file it links to, because records may be kept beside either."""
    yield path
    yield path.resolve()


def results_folder(scan: Path) -> Path:
    """Return the folder of the results that a scan belongs to: its own, or the root of a derivative of BIDS.

    >>> results_folder(Path("out/sub-1.nii.gz")).name, results_folder(Path("out/sub-1/ses-2/anat/sub-1_T1w.nii")).name
    ('out', 'out')
    """
    above = list(scan.absolute().parents)
    if above[0].name != "anat":
        return scan.parent
    return above[3] if above[1].name.startswith("ses-") else above[2]


def preparation_of(scan: Path) -> Preparation | None:
    """Tell how a scan, or the file it links to, was made; None if unknown."""
    return next(filter(None, (_preparation_in(results_folder(file)) for file in origins(scan))), None)


def preparations_of(scans: Iterable[Path]) -> list[Preparation | None]:
    """Return each way in which some scans were made, once."""
    found: list[Preparation | None] = []
    for scan in scans:
        made = preparation_of(scan)
        if made not in found:
            found.append(made)
    return found


def origin_of(scan: Path, weights_sha256: str) -> dict[str, str]:
    """Tell where the brain age of a scan comes from, a text for each of `ORIGIN`; empty where unknown."""
    fingerprint = (preparation_of(scan) or {}).get("fingerprint", "")
    return dict(zip(ORIGIN, (software_version(), weights_sha256, fingerprint), strict=True))


def each_origin(columns: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Return the different values of each column of `ORIGIN`, for a report on all rows."""
    return {name: sorted(set(columns[name]) - {""}) for name in ORIGIN if name in columns}


def describe_preparation(made: Mapping[str, str] | None) -> str:
    """Return a preparation in words, which follow ``prepared``."""
    if made is None:
        return f"in an unknown way (no {DESCRIPTION} beside it)"
    return f"with {made['registration']} registration, fingerprint {made['fingerprint']}"


@cache
def _preparation_in(folder: Path) -> Preparation | None:
    """Read the description of a folder."""
    try:
        made = read_json(folder / DESCRIPTION)["GeneratedBy"][0]
        return {"fingerprint": made["Fingerprint"], "registration": made["Parameters"]["registration"]}
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None
