"""How scans were prepared, as preprocessing has written it beside them."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from utils.common.files import read_json

DESCRIPTION = "dataset_description.json"  # beside the scans
Preparation = dict[str, str]  # ``fingerprint`` and ``registration``


def origins(path: Path) -> Iterator[Path]:
    """Give a file and the file it links to, because records may be kept beside either."""
    yield path
    yield path.resolve()


def preparation_of(scan: Path) -> Preparation | None:
    """Tell how a scan, or the file it links to, was made; None if unknown."""
    return next(filter(None, (_preparation_in(file.parent) for file in origins(scan))), None)


def preparations_of(scans: Iterable[Path]) -> list[Preparation | None]:
    """Return each way in which some scans were made, once."""
    found: list[Preparation | None] = []
    for scan in scans:
        made = preparation_of(scan)
        if made not in found:
            found.append(made)
    return found


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
