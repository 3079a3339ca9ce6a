"""Tables of labels, of predictions, and what they say of scans."""

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import openpyxl

from tests.bad_input.harness import Case

TRAIN, TEST, PREDICT, PREPARE = "train_first_stage.py", "test_first_stage.py", "predict.py", "prepare_dataset.py"
CROSS, ANALYSE = "cross_validate.py", "analyse_brain_age_gap.py"
LABELS = Path("data/labels.csv")
Rows = list[list[str]]


def rows_of(path: Path = LABELS) -> Rows:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def write_rows(rows: Rows, path: Path = LABELS, encoding: str = "utf-8") -> None:
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows(rows)


def changed(change: Callable[[Rows], object], encoding: str = "utf-8") -> Callable[[], None]:
    """Return a function that changes the rows of the label table in place."""

    def make() -> None:
        rows = rows_of()
        change(rows)
        write_rows(rows, encoding=encoding)

    return make


def cell(row: int, column: int, text: str) -> Callable[[], None]:
    """Return a function that sets a cell of the label table; rows count from 1, columns from 0."""
    return changed(lambda rows: rows[row - 1].__setitem__(column, text))


def ages(text: Callable[[float], str]) -> Callable[[], None]:
    """Return a function that writes all ages in another way."""
    return changed(lambda rows: [row.__setitem__(1, text(float(row[1]))) for row in rows[1:]])


def content(data: bytes | str, path: Path = LABELS) -> Callable[[], object]:
    """Return a function that writes a file."""
    return lambda: path.write_bytes(data if isinstance(data, bytes) else data.encode())


def append(*texts: str) -> Callable[[], None]:
    """Return a function that adds a column; the first text is its name, the rest are repeated."""
    return changed(
        lambda rows: [
            row.append(texts[0] if i == 0 else texts[1 + (i - 1) % (len(texts) - 1)]) for i, row in enumerate(rows)
        ]
    )


def workbook(rows: Sequence[Sequence[object]]) -> None:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save("labels.xlsx")


def sessions() -> None:
    """Rename the first person's scan to its second session, and give a row of the first."""
    Path("data/train/sub-01.nii.gz").rename("data/train/sub-01_ses-2.nii.gz")
    append("session_id", "ses-1")()


def sidecar(text: str) -> Callable[[], object]:
    return content(text, Path("data/labels.json"))


def visits() -> None:
    """Two visits of one person, on both sides of the split."""
    for split, visit in (("train", 1), ("valid", 2)):
        scan = min(Path("data", split).iterdir())
        shutil.copy(scan, Path("data", split, f"P001_V{visit}.nii.gz"))
    rows = [[*row, row[0]] for row in rows_of()]
    rows[0][-1] = "person"
    write_rows([*rows, ["P001_V1", "40", "F", "P001"], ["P001_V2", "45", "F", "P001"]])


def calibration(age: str, count: int = 1) -> Callable[[], None]:
    return lambda: write_rows(
        [["subject_id", "age"], *([f"sub-{n:02d}", age] for n in range(1, count + 1))], Path("healthy.csv")
    )


def predictions(*rows: str) -> Callable[[], object]:
    return content("\n".join(rows), Path("predictions.csv"))


READ = ["--predictions", "predictions.csv"]

CASES = [
    Case("a label table that does not exist", TRAIN, ["--label_table", "none.csv"], "none.csv: no such table"),
    Case("a folder for a label table", TRAIN, ["--label_table", "data"], "data: no such table"),
    Case("a label table of an unknown kind", TRAIN, ["--label_table", "labels.ods"], "'.ods' is no kind of table known here",
         content("", Path("labels.ods"))),
    Case("an empty label table", TRAIN, [], "holds no rows", content("")),
    Case("a header alone", TRAIN, [], "holds no rows below its header", content("subject_id,age,sex\n")),
    Case("a damaged Excel file", TRAIN, [], "cannot be read as an Excel file", content(b"PK\x03\x04 cut off")),
    Case("a table that is encoded in Latin-1", TRAIN, [], "is not encoded as UTF-8; save the table as UTF-8",
         changed(lambda rows: rows[3].append("Müller"), "latin-1")),
    Case("binary data in a label table", TRAIN, [], "is no table of text", content(b"subject_id,age\nsub-01,\0\0\n")),
    Case("a quote that is never closed", TRAIN, [], "check its quotes", content('subject_id,age\n"sub-01,50\nsub-02,60\n')),
    Case("decimal commas between commas, a mistake in every row", TRAIN, [], "... and 2 more",
         lambda: LABELS.write_text(LABELS.read_text().replace(".", ","))),
    Case("no subject column", TRAIN, [], "has no subject column (found person, age, sex); name it subject_id", cell(1, 0, "person")),
    Case("no age column", TRAIN, [], "has no age column (found subject_id, alter, sex); name it age", cell(1, 1, "Alter")),
    Case("no known column", TRAIN, [], "no column has a known name",
         changed(lambda rows: rows.__setitem__(0, ["Kennung", "Alter", "Geschlecht"]))),
    Case("a title above the header", TRAIN, [], "row 2 names the columns; remove the rows above it",
         changed(lambda rows: rows.insert(0, ["Study of 2024"]))),
    Case("two columns of one name", TRAIN, [], "has 2 columns age", append("Age", "50")),
    Case("a negative age", TRAIN, [], "row 2: age '-3' of sub-01 is not a number of years between 0 and 130", cell(2, 1, "-3")),
    Case("a code for a missing age", TRAIN, [], "row 2: age '999' of sub-01 is not a number of years", cell(2, 1, "999")),
    Case("a word for an age", TRAIN, [], "row 3: age 'old' of sub-02", cell(3, 1, "old")),
    Case("ages that are not given", TRAIN, [], "row 3: age '-' of sub-02",
         changed(lambda rows: [rows[n].__setitem__(1, text) for n, text in ((1, ""), (2, "-"), (3, "n/a"), (4, "unknown"))])),
    Case("an age that is only a bound", TRAIN, [], "age '89+' of sub-02 is a bound, so the age is unknown", cell(3, 1, "89+")),
    Case("ages in days", TRAIN, [], "(days, months or a year of birth?)", ages(lambda age: f"{365.25 * age:.0f}")),
    Case("ages in months", TRAIN, [], "(days, months or a year of birth?)", ages(lambda age: f"{12 * age:.0f}")),
    Case("years of birth for ages", TRAIN, [], "(days, months or a year of birth?)", ages(lambda age: f"{2024 - age:.0f}")),
    Case("dates of birth for ages", TRAIN, [], "is a date; give the age at the scan, in years",
         ages(lambda age: f"{2024 - age:.0f}-03-15")),
    Case("a formula whose value was not saved", TRAIN, ["--label_table", "labels.xlsx", "--valid_folder", "", "--test_folder", ""],
         "row 3: age '=B2*2' of sub-02 is a formula whose value was not saved",
         lambda: workbook([["subject_id", "age", "sex"], ["sub-01", 22, "F"], ["sub-02", "=B2*2", "M"],
                           *([f"sub-{n:02d}", 50, "F"] for n in range(3, 13))])),
    Case("a unit that is not known", TRAIN, [], "the unit 'decades' of age is not known here",
         sidecar(json.dumps({"age": {"Units": "decades"}}))),
    Case("a damaged file of units", TRAIN, [], "data/labels.json: cannot be read", sidecar('{"age": ')),
    Case("a subject in two rows", TRAIN, [], "row 24: sub-01 stands in row 2 already; keep one row",
         changed(lambda rows: rows.append(["sub-01", "70", "M"]))),
    Case("scans without a row", TRAIN, [], "has the subject sub-02; add one", changed(lambda rows: rows.__delitem__(slice(2, 4)))),
    Case("ids without their leading zeros", TRAIN, [], "has the subject sub-01; it has sub-1: write it as in the name of the scan",
         changed(lambda rows: [row.__setitem__(0, row[0].replace("-0", "-")) for row in rows])),
    Case("a row of another session", TRAIN, [], "has rows for the session 1 of sub-01, and none for 2; add it", sessions),
    Case("a session that contradicts the name", TRAIN, [], "session ses-1 is not that of sub-01_ses-2; correct one of them",
         lambda: (sessions(), cell(2, 0, "sub-01_ses-2")())),
    Case("a scan without session between rows of sessions", TRAIN, [], "the scan's name gives no session",
         changed(lambda rows: (rows[0].append("session"), rows[1].append("1"), rows.append(["sub-01", "70", "M", "2"])))),
    Case("a sex that is not known", TRAIN, [], "row 2: sex 'x' of sub-01 is not one of 0/1, F/M, female/male", cell(2, 2, "x")),
    Case("sexes that are coded with both 0 and 2", TRAIN, [], "numbers are not read; write M and F, or use a model without sex",
         changed(lambda rows: [row.__setitem__(2, "012"[n % 3]) for n, row in enumerate(rows) if n])),
    Case("no column of the sex", TRAIN, [], "has no sex column (found subject_id, age); name it sex, or use a model without sex",
         changed(lambda rows: [row.pop() for row in rows])),
    Case("two visits of a person on both sides of a split", TRAIN, [], "P001 is in the valid split and in the train split", visits),
    Case("a name that a spreadsheet would run", TRAIN, [], "would run the name '=cmd()' as a formula; rename it",
         lambda: (Path("data/train/sub-01.nii.gz").rename("data/train/=cmd().nii.gz"), cell(2, 0, "=cmd()")())),
    Case("a person who is a formula", TRAIN, [], "would run the name '@SUM(A1)' as a formula", append("person", "@SUM(A1)")),
    Case("a line break in the name of a scan", TRAIN, [], "contains control characters",
         lambda: Path("data/train/sub-01.nii.gz").rename("data/train/sub\n01.nii.gz")),
    Case("no column of sites", CROSS, ["--site_column", "site"], "has no column site (found subject_id, age, sex)"),
    Case("people without a site", CROSS, ["--site_column", "site"], "has no site; add it", append("site", "Oslo", "")),
    Case("one site alone", CROSS, ["--site_column", "site", "--hold_out", "sites"], "there is only the site Oslo",
         append("site", "Oslo"), variables={"VOXEL_SIZE": "8"}),
    Case("a person at two sites", CROSS, ["--site_column", "site", "--hold_out", "sites"], "is at several sites",
         lambda: (append("site", "Oslo", "Rome")(), append("person", "Ann")()), variables={"VOXEL_SIZE": "8"}),
    Case("a table of no known form", PREPARE, [], "are of no known form", cell(1, 1, "Alter")),
    Case("a scan without a row in a data set", PREPARE, [], "there is no row for sub-01",
         changed(lambda rows: rows.__delitem__(1))),
    Case("an unknown age in a data set", PREPARE, [], "row 2: age '90+' of sub-01 is a bound", cell(2, 1, "90+")),
    Case("a column of persons that does not exist", PREPARE, ["--person_column", "who"], "has no column who"),
    Case("a condition that nobody meets", PREPARE, ["--where", "sex=X"], "--where selects none of 1 scans"),
    Case("a split that is none", PREPARE, ["--split_column", "part"], "the split 'dev' of sub-01 is none of train, valid, test",
         append("part", "dev")),
    Case("a calibration table with too few people", PREDICT, ["--calibration_table", "healthy.csv"],
         "of its people have a usable scan here", calibration("50")),
    Case("a calibration table with a wrong age", PREDICT, ["--calibration_table", "healthy.csv"],
         "row 2: age '500' of sub-01 is not a number of years", calibration("500")),
    Case("predictions without brain ages", ANALYSE, ["--predictions", LABELS], "has no column for the brain age"),
    Case("predictions of unknown ages", ANALYSE, READ, "row 3: chronological age '89+' of b is a bound",
         predictions("subject_id,age,brain_age", "a,,50", "b,89+,91")),
    Case("a scan that was predicted twice", ANALYSE, READ, "a is in an earlier row already",
         predictions("subject_id,age,brain_age", "a,40,50", "a,40,51")),
    Case("a label table of other people", ANALYSE, [*READ, "--label_table", LABELS], "has no row for any subject of the predictions",
         predictions("subject_id,age,brain_age", "a,40,50", "b,50,55")),
    Case("a diagnosis that is a formula", ANALYSE, READ, "would run the name '=1+1' as a formula",
         predictions("subject_id,age,brain_age,diagnosis", "a,40,50,=1+1")),
    Case("unknown ages of tested scans, which have no metrics", TEST, ["--output_dir", "results", "--sex", "F"],
         "WARNING: 2 scans have no metrics",
         changed(lambda rows: [rows[n].__setitem__(1, text) for n, text in ((-1, "89+"), (-2, "n/a"))]), 0),
    Case("a predicted scan of unknown age and sex", PREDICT, ["--label_table", LABELS, "--output_dir", "results"],
         "its sex is not known; the brain age is the mean of those for a woman and for a man",
         changed(lambda rows: rows.__setitem__(1, ["sub-01", "89+", ""])), 0),
]  # fmt: skip
