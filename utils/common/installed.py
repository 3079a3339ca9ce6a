"""Tell whether a Python has the packages that requirements files pin; runs without any of them.

python utils/common/installed.py -r requirements.txt ...

Exit status: 0 if it has them, 3 if they are to be installed, 2 if this Python
must not get them.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

OLDEST, NEWEST = (3, 11), (3, 12)


def lacking(files: Sequence[Path]) -> list[str]:
    """Return the pins, such as ``numpy==2.4.6``, that this Python does not have in that version."""
    pins = [pin for file in files for pin in re.findall(r"^([\w.-]+==[\w.]+)", file.read_text(), re.M)]
    return [pin for pin in pins if _installed(pin.partition("==")[0]) != pin.partition("==")[2]]


def _installed(name: str) -> str:
    """Return the version of a package without the name of its build, such as ``+cpu``; empty where there is none."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return ""


def main() -> None:
    parser = argparse.ArgumentParser(description="Tell whether this Python has what requirements files pin.")
    parser.add_argument("-r", dest="files", action="append", type=Path, required=True)
    files = parser.parse_args().files
    missing = lacking(files)
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        problem = f"is Python {sys.version.split()[0]}; Python 3.11 or 3.12 is needed"
    elif missing and sys.prefix == sys.base_prefix and not Path(sys.prefix, "conda-meta").is_dir():
        problem = (
            f"lacks {missing[0]}{' and others' if missing[1:] else ''}, and is no virtual or conda environment, so "
            "nothing is installed there; unset PYTHON, or install " + " and ".join(map(str, files))
        )
    else:
        sys.exit(3 if missing else 0)
    print(f"error: PYTHON={sys.executable}: {problem}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
