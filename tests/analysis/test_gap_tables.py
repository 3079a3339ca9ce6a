"""Tables of predictions: found columns, joined labels, and every problem at once."""

import numpy as np
import pandas as pd
import pytest

from utils.analysis.gap_analysis import provenance_of
from utils.analysis.gap_checks import check_healthy, check_test_set
from utils.analysis.gap_tables import one_scan_each, read_tables
from utils.common.errors import InputError
from utils.common.provenance import software_version

COLUMNS: dict[str, str | None] = {}


def write(path, text):
    path.write_text(text)
    return path


def test_columns_and_labels_are_joined(tmp_path) -> None:
    predictions = write(
        tmp_path / "p.tsv",
        "participant_id\ttrue_age\tpredicted_age\n"
        "sub-1_ses-1\t40\t42.5\nsub-1_ses-2\t41\t44\nsub-10\t60\t59\nsub-3\t50\t51\n",
    )
    labels = write(
        tmp_path / "l.csv",
        "Subject-ID;Gender;DX;visit\nsub-1;f;CN;\nsub-1;f;MCI;ses-2\nsub-10;1;AD;\n",
    )
    tables = read_tables({"test": [predictions], "fit": []}, labels, {"chronological_age": "true_age"})
    table = tables["test"]
    assert table["person"].tolist() == ["sub-1", "sub-1", "sub-10", "sub-3"]
    assert table["session"].tolist() == ["1", "2", "", ""]
    assert table["diagnosis"].tolist() == ["CN", "MCI", "AD", ""]  # by session, then by person; never a substring
    assert table["sex"].tolist() == ["F", "F", "M", ""]
    assert table["brain_age"].tolist() == [42.5, 44, 59, 51]
    assert table["first_stage_age"].isna().all()
    assert tables["fit"].empty
    assert one_scan_each(table)["subject_id"].tolist() == ["sub-1_ses-1", "sub-10", "sub-3"]


def test_scans_that_failed_are_left_out_with_a_note(tmp_path, capsys) -> None:
    text = "subject_id,chronological_age,brain_age,status\nsub-1,40,43,ok\nsub-2,50,,failed\n"
    (tmp_path / "predictions.csv").write_text(text)
    table = read_tables({"test": [tmp_path / "predictions.csv"]}, None, {})["test"]
    assert table["subject_id"].tolist() == ["sub-1"]
    assert "left out 1 scans that failed" in capsys.readouterr().out


def test_a_named_column_is_never_replaced_by_another(tmp_path) -> None:
    """But subject and age may be called otherwise in each table."""
    predictions = write(tmp_path / "p.csv", "subject_id,true_age,model_b,brain_age,diagnosis\na,40,41,99,HC\n")
    other = write(tmp_path / "f.csv", "subject_id,age,brain_age\nb,50,51\n")
    labels = write(tmp_path / "l.csv", "id,DX\na,AD\n")
    named = {"chronological_age": "true_age", "brain_age": "model_b", "diagnosis": "DX"}
    row = read_tables({"test": [predictions]}, labels, named)["test"].iloc[0]
    assert (row["chronological_age"], row["brain_age"], row["diagnosis"]) == (40, 41, "AD")
    with pytest.raises(InputError, match="f.csv: has no column for the brain age"):
        read_tables({"test": [predictions], "fit": [other]}, None, named | {"diagnosis": None})
    alone = {"chronological_age": "true_age"}
    assert read_tables({"test": [predictions], "fit": [other]}, None, alone)["fit"]["chronological_age"].item() == 50
    assert read_tables({"test": [predictions]}, None, alone | {"diagnosis": "none"})["test"]["diagnosis"].item() == ""


def test_sessions_sort_by_their_numbers_and_none_may_be_healthy(tmp_path) -> None:
    text = "subject_id,age,brain_age,session,diagnosis\na,40,41,10,none\na,40,42,ses-02,none\n"
    tables = read_tables({"test": [write(tmp_path / "p.csv", text)]}, None, COLUMNS, healthy_label="none")
    assert one_scan_each(tables["test"])["brain_age"].item() == 42
    assert set(tables["test"]["diagnosis"]) == {"none"}
    assert set(read_tables({"test": [tmp_path / "p.csv"]}, None, COLUMNS)["test"]["diagnosis"]) == {""}


def test_every_problem_is_named(tmp_path) -> None:
    predictions = write(
        tmp_path / "p.csv",
        "subject_id,age,brain_age,sex\n"
        "a,nan,40,F\nb,50,,M\nc,50,soon,M\nd,500,60,F\ne,50,inf,F\nf,50,51,F\nf,50,51,F\n",
    )
    labels = write(tmp_path / "l.csv", "subject_id,diagnosis\na,HC\na,AD\n")
    with pytest.raises(InputError) as error:
        read_tables({"test": [predictions]}, labels, {"site": "hospital"})
    text = str(error.value)
    assert len(error.value.problems) == 8
    for words in ("row 2: chronological age '' of a", "row 3: brain age '' of b", "'soon' of c", "'500' of d",
                  "'inf' of e", "row 8: f is in an earlier row", "--site_column hospital",
                  "l.csv, row 3: a is in an earlier row"):  # fmt: skip
        assert words in text, words


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("subject_id,age,brain_age\na,40,42\n", "no row for any subject"),
        ("", "no rows"),
        ("subject_id,age,brain_age\n", "no rows"),
        ("who,age,brain_age\na,1,2\n", "no column for the subject id"),
    ],
)
def test_unusable_tables(tmp_path, text, message) -> None:
    with pytest.raises(InputError, match=message):
        read_tables(
            {"test": [write(tmp_path / "p.csv", text)]}, write(tmp_path / "l.csv", "subject_id,dx\nz,HC\n"), COLUMNS
        )


def cohort(n=12, **columns):
    age = np.linspace(30, 80, n)
    names = [f"s{i}" for i in range(n)]
    table = {"where": "p.csv", "subject_id": names, "person": names, "session": "", "chronological_age": age,
             "brain_age": age + np.arange(n) % 3, "diagnosis": ""}  # fmt: skip
    return pd.DataFrame(table | columns)


def test_what_makes_a_test_set() -> None:
    groups = ["HC"] * 6 + ["AD"] * 6
    healthy, patients = check_test_set(cohort(diagnosis=groups), "HC", [])
    assert (len(healthy), patients) == (6, ["AD"])
    assert check_test_set(cohort(), "HC", [])[1] == []
    for table, labels, message in (
        (cohort(3), [], "hold 3 persons"),
        (cohort(brain_age=np.linspace(31, 81, 12)), [], "every brain-age gap is 1.00"),
        (cohort(brain_age=50.0), [], "every brain age is 50.00"),
        (cohort(), ["AD"], "no table has a diagnosis"),
        (cohort(diagnosis=[*groups[:-1], ""]), [], "s11 has no diagnosis"),
        (cohort(diagnosis="HC"), ["AD"], "one class only"),
        (cohort(diagnosis="AD"), [], "no subject has this diagnosis"),
        (cohort(diagnosis="CN"), [], "found CN"),
    ):
        with pytest.raises(InputError, match=message):
            check_test_set(table, "HC", labels)


def test_patients_are_not_fitted_on() -> None:
    (problem,) = check_healthy(cohort(diagnosis=["HC"] * 10 + ["", "AD"]), "HC", "--fit_predictions")
    assert "s11 has the diagnosis AD; --fit_predictions must hold healthy subjects only" in problem


def test_visits_of_a_person_count_once_if_a_label_table_tells_the_person(tmp_path, capsys) -> None:
    """The predictions' own column may have been guessed from the names."""
    text = "subject_id,person,age,brain_age\nP1_V1,P1_V1,40,41\nP1_V2,P1_V2,45,46\nP2_V1,P2_V1,50,51\n"
    predictions = write(tmp_path / "p.csv", text)
    table = read_tables({"test": [predictions]}, None, COLUMNS)["test"]
    assert len(one_scan_each(table)) == 3
    assert "names such as P1_V1 and P1_V2 look like visits of one person" in capsys.readouterr().out
    for labels in ("subject_id,person\nP1_V1,P1\nP1_V2,P1\n", "subject_id,session,dx\nP1,V1,HC\nP1,V2,HC\n"):
        labelled = read_tables({"test": [predictions]}, write(tmp_path / "l.csv", labels), COLUMNS)["test"]
        assert one_scan_each(labelled)["subject_id"].tolist() == ["P1_V1", "P2_V1"], labels
    assert "look like visits" not in capsys.readouterr().out


def test_a_row_of_another_session_says_nothing_but_what_is_constant(tmp_path) -> None:
    predictions = write(tmp_path / "p.csv", "subject_id,brain_age\nsub-1_ses-1,41\nsub-1_ses-2,46\n")
    labels = "subject_id,ses,age,sex,dx\nsub-1,,,2,HC\nsub-1,1,40,,\nsub-1,2,45,,\nsub-2,,50,1,HC\n"
    table = read_tables({"test": [predictions]}, write(tmp_path / "l.csv", labels), COLUMNS)["test"]
    assert table[["chronological_age", "sex", "diagnosis"]].to_numpy().tolist() == [[40, "F", "HC"], [45, "F", "HC"]]
    with pytest.raises(InputError, match="chronological age '' of sub-1_ses-2"):
        read_tables({"test": [predictions]}, write(tmp_path / "l.csv", labels.replace("sub-1,2,45,,\n", "")), COLUMNS)


def test_a_report_names_the_weights_of_all_tables_and_reads_older_ones(tmp_path) -> None:
    older = write(tmp_path / "older.csv", "subject_id,age,brain_age\nsub-1,40,42\n")
    newer = write(
        tmp_path / "newer.csv",
        "subject_id,age,brain_age,software_version,weights_sha256,preprocessing_fingerprint\n"
        "sub-2,50,52,0.5.0,abc def,\nsub-3,60,61,0.5.0,012,31b8\n",
    )
    provenance = provenance_of(read_tables({"test": [older, newer]}, None, {})["test"])
    assert provenance["software_version"] == software_version()
    assert {name: value for name, value in provenance.items() if "predictions" in name} == {
        "software_version of the predictions": "0.5.0",
        "weights_sha256 of the predictions": "012, abc def",
        "preprocessing_fingerprint of the predictions": "31b8",
    }
    plain = provenance_of(read_tables({"test": [older]}, None, {})["test"])
    assert not [name for name in plain if "predictions" in name]
