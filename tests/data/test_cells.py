"""Tables in every dialect say what was written into them, to every script that reads tables."""

import csv
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path

import openpyxl
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.analysis.gap_tables import read_tables
from utils.common.errors import InputError
from utils.data.cells import read_cells
from utils.data.names import name_and_session
from utils.data.tables import read_label_table
from utils.preparation.label_formats import open_labels

ALIASES = {
    "subject_id": ("subject_id", "participant_id", "id", "Subject", "filename"),
    "age": ("age", "AGE", "chronological_age", "age years", "Age-Years"),
    "sex": ("sex", "Gender", "SEX"),
    "session": ("session_id", "session", "ses", "Session ID"),
    "person": ("person", "Person-ID"),
    "note": ("note", "Größe;cm", 'say "hi"', "a,b", "two\nlines"),
}
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=8)
NAMES = st.one_of(
    st.from_regex(r"(sub-)?[0-9A-Za-z]{1,6}", fullmatch=True), st.from_regex(r"-?[0-9]{1,9}", fullmatch=True),
    WORDS.map(lambda text: text.replace("/", "").replace("\\", "").strip()).filter(
        lambda text: text and text[0] not in "=@+-" and "." not in text and "_ses-" not in text and not text.startswith("\ufeff")
    ),
)  # fmt: skip
SEXES = (("F", "M"), ("f", "m"), ("female", "male"), ("0", "1"), ("2", "1"), ("Female", "Male"))


@dataclass(frozen=True)
class Truth:
    """What a row of a table says."""

    subject_id: str
    age: float
    sex: int
    session: str
    person: str
    note: str

    @property
    def scan(self) -> str:
        return self.subject_id + (f"_ses-{self.session}" if self.session else "")


@st.composite
def tables(draw) -> list[Truth]:
    """Draw rows, some with two sessions of a person."""
    ids = draw(st.lists(NAMES, min_size=2, max_size=6, unique_by=lambda name: name_and_session(name)[0]))
    sessions = ("1", "2") if draw(st.booleans()) else ("",)
    ages = st.floats(0.1, 120).map(lambda age: round(age, 2))
    notes = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12) | st.just(
        '"a";b,c\td\n'
    )
    rows = [
        Truth(name, draw(ages), draw(st.integers(0, 1)), session, f"p {number}", draw(notes))
        for number, name in enumerate(ids)
        for session in sessions
    ]
    return draw(st.permutations(rows))


@st.composite
def dialects(draw) -> dict:
    return {
        "columns": draw(st.permutations(list(ALIASES))), "names": {role: draw(st.sampled_from(names)) for role, names in ALIASES.items()},
        "case": draw(st.sampled_from((str, str.upper, str.title))), "sexes": draw(st.sampled_from(SEXES)),
        "decimal": draw(st.sampled_from(".,")), "separator": draw(st.sampled_from(",;\t")),
        "encoding": draw(st.sampled_from(("utf-8", "utf-8-sig", "utf-16"))), "end": draw(st.sampled_from(("\n", "\r\n", "\r"))),
        "quoting": draw(st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))), "suffix": draw(st.sampled_from((".csv", ".tsv", ".txt", ".xlsx"))),
        "prefix": draw(st.sampled_from(("", "ses-"))), "ending": draw(st.sampled_from(("", ".nii.gz", ".nii"))), "blank": draw(st.booleans()),
    }  # fmt: skip


def cells_of(rows: list[Truth], dialect: dict) -> list[list[str]]:
    """Return the header and the rows as a user could have written them."""

    def cell(row: Truth, role: str) -> str:
        return {
            "subject_id": row.subject_id + dialect["ending"], "age": f"{row.age:g}".replace(".", dialect["decimal"]),
            "sex": dialect["sexes"][row.sex], "session": row.session and dialect["prefix"] + row.session,
        }.get(role, getattr(row, role))  # fmt: skip

    header = [dialect["case"](dialect["names"][role]) for role in dialect["columns"]]
    return [
        header,
        *([[""] * len(header)] if dialect["blank"] else []),
        *([cell(row, role) for role in dialect["columns"]] for row in rows),
    ]


def write(path: Path, cells: list[list[str]], dialect: dict) -> None:
    if dialect["suffix"] == ".xlsx":
        book = openpyxl.Workbook()
        for row in cells:
            book.active.append([""] * len(row))
        for i, row in enumerate(cells, 1):
            for j, text in enumerate(row, 1):
                book.active.cell(i, j).value = text
                book.active.cell(i, j).data_type = "s"  # text, even if it looks like a formula
        book.save(path)
        return
    text = io.StringIO(newline="")
    # Where rows end with \r, Python's writer would leave \n without quotes.
    quoting = csv.QUOTE_ALL if dialect["end"] == "\r" else dialect["quoting"]
    writer = csv.writer(text, delimiter=dialect["separator"], lineterminator=dialect["end"], quoting=quoting)
    writer.writerows(cells)
    path.write_bytes(text.getvalue().encode(dialect["encoding"]))


@settings(max_examples=150)
@given(rows=tables(), dialect=dialects())
def test_good_tables_are_read_as_they_were_meant(tmp_path_factory, rows, dialect) -> None:
    path = tmp_path_factory.mktemp("table") / f"labels{dialect['suffix']}"
    write(path, cells_of(rows, dialect), dialect)
    table = read_label_table(path)
    _, find, _ = open_labels(path)
    joined = read_tables({"test": [path]}, path, {"brain_age": dialect["names"]["age"]})["test"]
    assert len(table.rows) == len(rows)
    for row, own in zip(rows, joined.itertuples(), strict=True):
        found, label = table.find(f"{row.scan}.nii.gz"), find(row.scan)
        assert found is not None
        assert (found.age.years, found.sex, found.person, found.problems) == (row.age, row.sex, row.person, ())
        assert (label.age, label.sex, label.person) == (row.age, row.sex, row.person)
        assert (own.chronological_age, own.sex, own.person) == (row.age, "FM"[row.sex], row.person)


@settings(max_examples=50)
@given(rows=tables(), dialect=dialects())
def test_cells_keep_their_text(tmp_path_factory, rows, dialect) -> None:
    path = tmp_path_factory.mktemp("table") / f"labels{dialect['suffix']}"
    cells = cells_of(rows, dialect)
    write(path, cells, dialect)
    assert read_cells(path).to_numpy().tolist() == [[text.strip() for text in row] for row in cells if any(row)]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("row", ["sub-1;61,5", "sub-1;61,5;F", "sub-1;61.5;F"])
def test_short_tables_without_a_header(tmp_path, separator, row) -> None:
    if separator == "," and "," in row:
        row = row.replace("61,5", '"61,5"')
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(row.replace(";", separator).replace("sub-1", f"sub-{n}") for n in (1, 2)))
    assert [(row.subject_id, row.age.years) for row in read_label_table(path).rows] == [
        ("sub-1", 61.5),
        ("sub-2", 61.5),
    ]


def test_the_content_decides_not_the_name(tmp_path) -> None:
    pd.DataFrame([["id", "age"], ["s1", 50]]).to_excel(tmp_path / "a.xlsx", header=False, index=False)
    (tmp_path / "a.csv").write_bytes((tmp_path / "a.xlsx").read_bytes())
    (tmp_path / "b.xlsx").write_text("id,age\ns1,50\n")
    for name in ("a.xlsx", "a.csv", "b.xlsx"):
        assert read_cells(tmp_path / name).to_numpy().tolist() == [["id", "age"], ["s1", "50"]]


def test_merged_cells_all_have_the_value_and_formulas_that_which_was_saved(tmp_path) -> None:
    book = openpyxl.Workbook()
    for row in (["id", "session", "age", "sex"], ["s1", 1, 40, "F"], ["", 2, 45.5, ""], ["s2", 1, "=C2*2", "M"]):
        book.active.append(row)
    book.active.merge_cells("A2:A3")
    book.active.merge_cells("D2:D3")
    book.save(tmp_path / "labels.xlsx")
    table = read_label_table(tmp_path / "labels.xlsx")
    assert [(row.subject_id, row.session, row.age_cell, row.sex) for row in table.rows] == [
        ("s1", "1", "40", 0), ("s1", "2", "45.5", 0), ("s2", "1", "=C2*2", 1),
    ]  # fmt: skip
    assert "is a formula whose value was not saved" in table.rows[2].age_complaint


@pytest.mark.parametrize(("last", "readings"), [("note", 1), ("=1+1", 2)])
def test_a_workbook_without_formulas_is_read_once(tmp_path, monkeypatch, last, readings) -> None:
    book = openpyxl.Workbook()
    for row in (["id", "age", "x"], ["s1", 50, last]):
        book.active.append(row)
    book.save(tmp_path / "labels.xlsx")
    calls, load = [], openpyxl.load_workbook
    monkeypatch.setattr(openpyxl, "load_workbook", lambda *args, **options: calls.append(1) or load(*args, **options))
    assert read_cells(tmp_path / "labels.xlsx").to_numpy().tolist() == [["id", "age", "x"], ["s1", "50", last]]
    assert len(calls) == readings


@pytest.mark.parametrize(
    ("unit", "cell", "years"),
    [("years", "61.5", 61.5), ("Months", "738", 61.5), ("month", "738", 61.5), ("days", "22462.9", 61.5), ("weeks", "3209", 61.5),
     ("Year(s)", "61.5", 61.5), ("y.o.", "61.5", 61.5), ("years old, at the scan", "61.5", 61.5), ("days since birth", "22462.9", 61.5),
     ("yr", "61,5", 61.5)],
)  # fmt: skip
def test_the_unit_of_a_sidecar_is_heeded_by_every_reader(tmp_path, unit, cell, years) -> None:
    path = tmp_path / "participants.tsv"
    path.write_text(f"participant_id\tage\tsex\nsub-01\t{cell}\t1\nsub-02\tn/a\t2\nsub-03\t{cell}\t2\n")
    levels = {"Levels": {"1": "female", "2": {"Description": "Male"}}}
    (tmp_path / "participants.json").write_text(json.dumps({"age": {"Units": unit}, "sex": levels}))
    table = read_label_table(path)
    assert [row.age.years for row in table.rows] == pytest.approx([years, math.nan, years], abs=0.01, nan_ok=True)
    assert [row.sex for row in table.rows] == [0, 1, 1]
    label = open_labels(path)[1]("sub-01")
    assert (label.age, label.sex) == (pytest.approx(years, abs=0.01), 0)
    predictions = tmp_path / "predictions.csv"
    predictions.write_text("subject_id,brain_age\nsub-01,50\n")
    joined = read_tables({"test": [predictions]}, path, {})["test"].iloc[0]
    assert (joined["chronological_age"], joined["sex"]) == (pytest.approx(years, abs=0.01), "F")


@pytest.mark.parametrize(
    ("sidecar", "said"),
    [('{"age": {"Units": "decades"}}', "participants.json: the unit 'decades' of age is not known here"),
     ('{"age": ', "participants.json: cannot be read"), ('{"age": {"Units": ""}}', ""), ('{"age": "years"}', ""), ("[]", ""), ('{"x": 1}', "")],
)  # fmt: skip
def test_sidecars_that_say_nothing_of_use(tmp_path, sidecar, said) -> None:
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-01\t61\n")
    (tmp_path / "participants.json").write_text(sidecar)
    if said:
        with pytest.raises(InputError, match=said):
            read_cells(tmp_path / "participants.tsv")
    else:
        assert read_label_table(tmp_path / "participants.tsv").rows[0].age.years == 61


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("subject_id,age\nJosé,50\n".encode("latin-1"), "line 2: is not encoded as UTF-8; save the table as UTF-8"),
        ("subject_id,age\nsub-1,50\n".encode("utf-16-le"), "is no table of text"),
        (b"a,b\n\xff\xfe", "line 2: is not encoded as UTF-8"),
        (b"subject_id,age,sex\ns1,63,5,F\ns2,60,F\n", "row 2: has 4 cells, more than the first (3); quote cells"),
        (b'subject_id,age\n"s1,50\n', "cannot be read as .csv"),
        (b"subject_id,age,age\ns1,50,60\n", "has 2 columns age; keep one"),
        (b"subject_id,age\n\n,\n", "holds no rows below its header"),
        (b"\xef\xbb\xbf", "holds no rows"),
        (b"PK\x03\x04 not a workbook", "cannot be read as an Excel file"),
        (b"\xd0\xcf\x11\xe0 nor this", "cannot be read as an Excel file"),
    ],
)
def test_unreadable_tables(tmp_path, content, said) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_label_table(tmp_path / "labels.csv")
    assert said in caught.value.problems[0]
    assert len(caught.value.problems) == 1


def test_a_mistake_in_every_row_is_listed_for_each(tmp_path) -> None:
    (tmp_path / "labels.csv").write_text("subject_id,age,sex\n" + "".join(f"s{n},63,5,F\n" for n in range(50)))
    with pytest.raises(InputError) as caught:
        read_cells(tmp_path / "labels.csv")
    assert len(caught.value.problems) == 50
