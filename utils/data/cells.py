"""Read the cells of a table, CSV or Excel, as text; nothing is taken for a header or a missing value."""

import csv
import functools
import io
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from utils.common.errors import InputError
from utils.common.files import read_json
from utils.data.columns import COLUMN_NAMES, DAYS, SEXES, plain_name, to_number
from utils.data.public_tables import as_plain

TABLE_KINDS = (".csv", ".tsv", ".txt", ".xlsx", ".xls")
XLSX, XLS = b"PK\x03\x04", b"\xd0\xcf\x11\xe0"  # what files of Excel begin with
UTF16 = (b"\xff\xfe", b"\xfe\xff")
SEPARATORS = "\t;,"  # in this order where several fit; commas may be decimal ones
YEARS = {  # by the names that units have, in singular
    **dict.fromkeys(("year", "yr", "y", "a"), 1.0),
    **dict.fromkeys(("month", "mo"), 1 / 12),
    **dict.fromkeys(("week", "wk"), 7 / DAYS),
    **dict.fromkeys(("day", "d"), 1 / DAYS),
}
# Words beside a unit that change nothing: years old, y.o., Year(s), decimal years, days since birth.
BESIDE_UNITS = {"old", "o", "s", "of", "age", "decimal", "in", "since", "birth", "at", "the", "scan", "time"}
MOST_EXPANDED = 200 * 2**20  # bytes of the files in a workbook
MOST_CELLS = 5_000_000  # of a sheet, empty ones between others included
Rows = list[list[str]]


def read_cells(path: Path) -> pd.DataFrame:
    """Read every cell of a table as text.

    Parameters
    ----------
    path : Path
        ``.csv``, ``.tsv`` or ``.txt`` in UTF-8, or in UTF-16 as Excel writes
        it, with tabs, semicolons or commas; ``.xlsx`` or ``.xls``, of which
        the first sheet is read. The content decides, not the name. A JSON
        file of the same name beside it, as BIDS has it, gives the unit of the
        ages and the meaning of sexes; ages become years. Tables of
        `utils.data.public_tables` are brought into the plain form.

    Returns
    -------
    DataFrame of str
        Without empty rows. Row N of the file has the index N - 1; several
        rows may come from one.

    Raises
    ------
    InputError
        If it is missing or unreadable.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise InputError(f"{path}: no such table; set LABEL_TABLE (--label_table) or the flag that names it")
    if suffix not in TABLE_KINDS:
        raise InputError(f"{path}: '{suffix}' is no kind of table known here; use {', '.join(TABLE_KINDS)}")
    content = path.read_bytes()
    if content.startswith((XLSX, XLS)):
        try:
            rows = _read_xlsx(content) if content.startswith(XLSX) else _read_xls(content)
        except Exception as error:  # the readers raise dozens of types
            raise InputError(f"{path}: cannot be read as an Excel file ({error}); save it again") from error
    else:
        rows = _read_text(path, content)
    width = max(map(len, rows), default=0)
    cells = pd.DataFrame([[*row, *[""] * (width - len(row))] for row in rows], dtype=str)
    cells = cells[(cells != "").any(axis=1)]
    return as_plain(path, _with_declared_meaning(cells, path.with_suffix(".json")))


def _read_xls(content: bytes) -> Rows:
    """Read the first sheet of an old Excel file."""
    cells = pd.read_excel(io.BytesIO(content), engine="xlrd", header=None, dtype=str, keep_default_na=False)
    return [[cell.strip() for cell in row] for row in cells.fillna("").to_numpy(str).tolist()]


def _read_xlsx(content: bytes) -> Rows:
    """Read the first sheet; merged cells all have the value of the first, formulas the value that was saved."""
    from openpyxl import load_workbook  # takes a while to import

    _check_size(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of decorations that openpyxl does not know
        sheet = load_workbook(io.BytesIO(content)).worksheets[0]
        cells = [list(row) for row in sheet.iter_rows()]
        formulas = [cell for row in cells for cell in row if cell.data_type == "f"]
        saved = load_workbook(io.BytesIO(content), data_only=True).worksheets[0] if formulas else sheet
    values = [[cell.value for cell in row] for row in cells]
    for cell in formulas:
        value = saved.cell(cell.row, cell.column).value
        if value is not None:  # a formula whose value was never saved stays one
            values[cell.row - 1][cell.column - 1] = value
    for merged in sheet.merged_cells.ranges:
        for i, j in merged.cells:
            values[i - 1][j - 1] = values[merged.min_row - 1][merged.min_col - 1]
    rows = [[_cell_text(value) for value in row] for row in values]
    while rows and not any(rows[-1]):
        rows.pop()
    return rows


def _check_size(content: bytes) -> None:
    """Refuse a workbook that would expand without limit: by compression, by far-off cells, or by merged ones."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(part.file_size for part in archive.infolist()) > MOST_EXPANDED:
            raise ValueError(f"it expands to more than {MOST_EXPANDED >> 20} MiB")
        for part in archive.infolist():
            if not part.filename.startswith("xl/worksheets/"):
                continue
            sheet = archive.read(part)
            cells = [_place(*match) for match in re.findall(rb"""[<:]c\s[^>]*?\br\s*=\s*["']([A-Z]+)(\d+)""", sheet)]
            area = max((row for row, _ in cells), default=0) * max((column for _, column in cells), default=0)
            for match in re.findall(rb"""mergeCell\s[^>]*?\bref\s*=\s*["']([A-Z]+)(\d+):([A-Z]+)(\d+)""", sheet):
                (top, left), (bottom, right) = _place(*match[:2]), _place(*match[2:])
                area += (bottom - top + 1) * (right - left + 1)
            if area > MOST_CELLS:
                raise ValueError(f"it claims {area} cells, more than {MOST_CELLS}; delete the empty rows and columns")


def _place(letters: bytes, digits: bytes) -> tuple[int, int]:
    """Return the row and the column of a cell such as B7, from 1."""
    return int(digits), functools.reduce(lambda column, letter: 26 * column + letter - 64, letters, 0)


def _cell_text(value: Any) -> str:
    """Return what a cell of Excel shows; whole numbers without a point."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


def _read_text(path: Path, content: bytes) -> Rows:
    """Read a table of text."""
    encoding = "utf-16" if content.startswith(UTF16) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: is not encoded as UTF-8; save the table as UTF-8 (in Excel: CSV UTF-8)"
        ) from error
    if "\0" in text:
        raise InputError(f"{path}: is no table of text; save it as CSV, or as .xlsx")
    options = {separator: _parse(text, separator) for separator in SEPARATORS}
    rows = max(options.values(), key=_fit)
    wrong = next((parsed for parsed in options.values() if isinstance(parsed, str)), "")
    if isinstance(rows, str) or (wrong and _width(rows) < 2):
        raise InputError(f"{path}: cannot be read as {path.suffix} ({wrong}); check its quotes, or save it again")
    rows = [[cell.strip() for cell in row] for row in rows]
    width = _width(rows)
    problems = [
        f"{path}, row {number}: has {len(row)} cells, more than the first ({width}); quote cells that contain the "
        "separator, such as decimal commas"
        for number, row in enumerate(rows, 1)
        if any(row[width:])
    ]
    if problems:
        raise InputError(problems)
    return [row[:width] for row in rows]


def _parse(text: str, separator: str) -> Rows | str:
    """Split a text into cells; return what is wrong if that fails."""
    try:
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except csv.Error as error:
        return str(error)


def _width(rows: Rows) -> int:
    """Return the number of cells in the first row that has several, such as the header below a title."""
    return next((len(row) for row in rows if len(row) > 1), 1)


def _fit(rows: Rows | str) -> tuple[int, int]:
    """Return how well a separator fits: the number of rows that have as many cells as the first, and that number."""
    if isinstance(rows, str):
        return 0, 0
    width = _width(rows)
    return (sum(len(row) == width for row in rows), width) if width > 1 else (0, 1)


def _with_declared_meaning(cells: pd.DataFrame, sidecar: Path) -> pd.DataFrame:
    """Turn ages into years, and codes of the sex into words, as the JSON file beside a table says."""
    if cells.empty or not sidecar.is_file():
        return cells
    try:
        declared = read_json(sidecar, object)
    except (OSError, ValueError) as error:
        raise InputError(f"{sidecar}: cannot be read ({error}); correct it, or move it away from the table") from error
    known = {plain_name(name): meaning for name, meaning in declared.items()} if isinstance(declared, dict) else {}
    for column in cells.columns:
        name = plain_name(cells[column].iloc[0])
        meaning = known.get(name)
        if not isinstance(meaning, Mapping):
            continue
        if name in COLUMN_NAMES["age"] and meaning.get("Units"):
            unit = str(meaning["Units"])
            factor = _years_of(unit)
            if factor is None:
                raise InputError(
                    f"{sidecar}: the unit '{unit}' of {name} is not known here; give years, months, weeks or days"
                )
            cells.loc[cells.index[1:], column] = [_in_years(cell, factor) for cell in cells[column].iloc[1:]]
        if name in COLUMN_NAMES["sex"] and isinstance(meaning.get("Levels"), Mapping):
            words = {str(code).lower(): _level_text(level) for code, level in meaning["Levels"].items()}
            cells.loc[cells.index[1:], column] = [words.get(cell.lower()) or cell for cell in cells[column].iloc[1:]]
    return cells


def _years_of(unit: str) -> float | None:
    """Return a unit of time in years; None if it is not known, or not certain."""
    words = [word if word in YEARS else word.removesuffix("s") or word for word in re.split(r"[^\w]+|_", unit.lower())]
    factors = {YEARS.get(word) for word in words if word and word not in BESIDE_UNITS}
    return factors.pop() if len(factors) == 1 else None


def _in_years(cell: str, factor: float) -> str:
    """Convert an age, if it is a number."""
    number = to_number(cell)
    return cell if factor == 1 or number != number else f"{number * factor:.6g}"


def _level_text(level: object) -> str:
    """Return the sex that a level of a BIDS sidecar stands for; empty for any other."""
    text = level.get("Description", "") if isinstance(level, Mapping) else level
    word = str(text).strip().lower()
    return word if word in SEXES and not word.isdigit() else ""
