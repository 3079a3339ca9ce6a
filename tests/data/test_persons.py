"""Sessions, persons and sexes mean the same to every script that reads a table."""

import csv

import numpy as np
import pytest

from tests.conftest import VOXEL_SIZE, save_scan, small_volume
from utils.common.choices import WHOLE
from utils.common.errors import InputError
from utils.data.cohort import are_known, load_cohort, split_into_folds
from utils.data.images import model_grid
from utils.data.subjects import Subject, suspected_visits
from utils.data.tables import read_label_table
from utils.evaluation.reports import write_report
from utils.prediction.cross_validation import CrossValidation, assign_folds
from utils.prediction.model_card import make_manifest
from utils.prediction.scan_ages import PredictedScan, write_table
from utils.prediction.scan_labels import add_labels, add_training, find_candidates
from utils.preparation.labelling import label_scans
from utils.preparation.splitting import split_by_person, write_dataset


def made(folder, names, table):
    rng = np.random.default_rng(0)
    for name in names:
        save_scan(folder / "scans" / f"{name}.nii.gz", small_volume(rng, 50), model_grid(VOXEL_SIZE).affine)
    (folder / "labels.csv").write_text(table)
    return folder / "scans", folder / "labels.csv"


def as_trained(scans, table, **options):
    subjects = load_cohort({"train": scans}, table, None, **options)["train"]
    return {s.path.name.removesuffix(".nii.gz"): (s.person, s.chronological_age, s.sex) for s in subjects}


def as_predicted(scans, table):
    found = [PredictedScan(path.name.removesuffix(".nii.gz"), path) for path in sorted(scans.iterdir())]
    add_labels(found, table, None)
    return {scan.name: (scan.subject.person, scan.chronological_age, scan.sex) for scan in found}


def as_prepared(scans, table):
    paths = {path.name.removesuffix(".nii.gz"): path for path in sorted(scans.iterdir())}
    return {scan.subject_id: (scan.person, scan.age, scan.sex) for scan in label_scans(paths, table)}


@pytest.mark.parametrize("column", ["session_id", "session", "ses", "Session-ID"])
@pytest.mark.parametrize("prefix", ["", "ses-"])
@pytest.mark.parametrize("read", [as_trained, as_predicted, as_prepared])
def test_a_row_with_a_session_belongs_to_that_session_alone(tmp_path, column, prefix, read) -> None:
    scans, table = made(
        tmp_path, ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"],
        f"participant_id,{column},age,sex\nsub-01,{prefix}1,40,F\nsub-02,{prefix}1,70,M\nsub-01,{prefix}2,45,F\n",
    )  # fmt: skip
    assert read(scans, table) == {
        "sub-01_ses-1": ("sub-01", 40, 0), "sub-01_ses-2": ("sub-01", 45, 0), "sub-02_ses-1": ("sub-02", 70, 1),
    }  # fmt: skip


@pytest.mark.parametrize("read", [as_trained, as_predicted, as_prepared])
def test_what_is_constant_may_stand_in_a_row_without_session(tmp_path, read) -> None:
    scans, table = made(
        tmp_path, ["sub-01_ses-1", "sub-01_ses-2"],
        "participant_id,session,age,sex,person\nsub-01,n/a,39,F,Ann\nsub-01,1,40,,\nsub-01,2,45,,\n",
    )  # fmt: skip
    assert read(scans, table) == {"sub-01_ses-1": ("Ann", 40, 0), "sub-01_ses-2": ("Ann", 45, 0)}


@pytest.mark.parametrize("constant", ["", "sub-01,,,F\n"])
def test_another_session_gives_no_age(tmp_path, constant) -> None:
    scans, table = made(
        tmp_path, ["sub-01_ses-2"], f"participant_id,session,age,sex\n{constant}sub-01,ses-1,40,F\n"
    )  # fmt: skip
    with pytest.raises(
        InputError, match="add a row with the session" if constant else "for the session 1 of sub-01, and none for 2"
    ):
        as_trained(scans, table)
    person, age, sex = as_predicted(scans, table)["sub-01_ses-2"]
    assert (person, sex) == ("sub-01", 0 if constant else -1)
    assert np.isnan(age)
    with pytest.raises(InputError, match="no row for sub-01_ses-2, but for session 1"):
        as_prepared(scans, table)


def test_a_scan_without_session_has_the_only_row_and_none_of_several(tmp_path) -> None:
    scans, table = made(tmp_path, ["sub-01"], "participant_id,session,age,sex\nsub-01,1,40,F\n")
    assert as_trained(scans, table) == {"sub-01": ("sub-01", 40, 0)}
    table.write_text(table.read_text() + "sub-01,2,45,F\n")
    with pytest.raises(InputError, match="for the sessions 1, 2 of sub-01, and the scan's name gives no session"):
        as_trained(scans, table)


def test_a_session_that_contradicts_the_name_is_refused(tmp_path) -> None:
    scans, table = made(tmp_path, ["sub-01_ses-1"], "participant_id,session,age,sex\nsub-01_ses-1,1,40,F\n")
    assert as_trained(scans, table)["sub-01_ses-1"][1] == 40
    scans, table = made(tmp_path, ["sub-01_ses-2"], "participant_id,session,age,sex\nsub-01_ses-1,2,40,F\n")
    (tmp_path / "scans" / "sub-01_ses-1.nii.gz").unlink()
    assert read_label_table(table).rows[0].problems == (
        f"{table}, row 2: session 2 is not that of sub-01_ses-1; correct one of them",
    )


VISITS = "subject_id,age,sex,person\n" + "".join(
    f"P{n:03d}_V{v},{30 + 4 * n + v},F,P{n:03d}\n" for n in range(12) for v in (1, 2)
)


def test_visits_of_a_person_are_on_one_side_of_every_split(tmp_path, capsys) -> None:
    names = [f"P{n:03d}_V{v}" for n in range(12) for v in (1, 2)]
    scans, table = made(tmp_path, names, VISITS)
    for read in (as_trained, as_predicted, as_prepared):
        assert {name: person for name, (person, _, _) in read(scans, table).items()} == {n: n[:4] for n in names}
    subjects = load_cohort({"train": scans}, table, None)["train"]
    for rest, part in split_into_folds(subjects, 3, 0):
        assert not {subjects[i].person for i in rest} & {subjects[i].person for i in part}
    prepared = split_by_person(label_scans({n: scans / f"{n}.nii.gz" for n in names}, table), (70, 15, 15), 0)
    assert len({(scan.person, scan.split) for scan in prepared}) == 12
    found = [PredictedScan(name, scans / f"{name}.nii.gz") for name in names]
    assert {one.person for one in find_candidates(found, read_label_table(table), [])} == {n[:4] for n in names}
    assert are_known(subjects, ["P003"]).sum() == 2
    assert "look like visits" not in capsys.readouterr().out
    (tmp_path / "valid").mkdir()
    (scans / "P000_V2.nii.gz").rename(tmp_path / "valid" / "P000_V2.nii.gz")
    with pytest.raises(InputError, match="P000 is in the valid split and in the train split"):
        load_cohort({"train": scans, "valid": tmp_path / "valid"}, table, None)


def test_persons_are_kept_in_the_tables_that_are_written(tmp_path) -> None:
    names = ["P001_V1", "P001_V2", "P002_V1"]
    scans, table = made(
        tmp_path, names, "subject_id,age,sex,person\nP001_V1,40,F,P001\nP001_V2,41,F,P001\nP002_V1,50,M,P002\n"
    )  # fmt: skip

    def column(path):
        with path.open(newline="") as file:
            return [row["person"] for row in csv.DictReader(file)]

    prepared = label_scans({name: scans / f"{name}.nii.gz" for name in names}, table)
    write_dataset(tmp_path / "data", split_by_person(prepared, (100, 0, 0), 0), copy=False)
    subjects = load_cohort({"train": tmp_path / "data" / "train"}, tmp_path / "data" / "labels.csv", None)["train"]
    predictions = {name: np.array([40, 41, 50], np.float32) for name in ("brain_age", "chronological_age")}
    write_report(tmp_path / "report", subjects, predictions, "title")
    found = [PredictedScan(name, scans / f"{name}.nii.gz") for name in names]
    add_labels(found, table, None)
    write_table(tmp_path / "predictions.csv", found, "")
    for path in ("data/labels.csv", "data/splits.csv", "report/predictions.csv", "predictions.csv"):
        assert column(tmp_path / path) == ["P001", "P001", "P002"], path


@pytest.mark.parametrize(
    ("one", "other"),
    [("P001_V1", "P001_V2"), ("P001_ses-1", "P001_ses-2"), ("P001_T1", "P001_T2"), ("P001", "P001_V2"),
     ("P001_2_0", "P001_3_0"), ("P001_V1_T1", "P001_V2_T1"), ("p7-visit2", "p7-visit3")],
)  # fmt: skip
def test_names_that_look_like_visits_are_told_once(tmp_path, capsys, one, other) -> None:
    scans, table = made(tmp_path, [one, other], f"subject_id,age,sex\n{one},40,F\n{other},45,F\n")
    load_cohort({"train": scans}, table, None)
    out = capsys.readouterr().out
    assert out.count(f"names such as {one} and {other} look like visits of one person") == 1
    label_scans({name: scans / f"{name}.nii.gz" for name in (one, other)}, table)
    assert capsys.readouterr().out.count("look like visits") == 1


def test_other_names_are_not_taken_for_visits() -> None:
    assert not suspected_visits(
        ["site1_m001", "site1_m002", "hospital2_scan001", "hospital2_scan002"]
    )  # people, numbered
    assert not suspected_visits(
        ["sub-01", "sub-02", "IXI012", "brain_1_0", "brain_2_0", "P001_V1", "P002_V1", "T1", "T2"]
    )


@pytest.mark.parametrize(
    ("codes", "sexes"),
    [("01", (0, 1)), ("12", (1, 0)), ("FM", (0, 1)), ("fm", (0, 1)), (("Female", "MALE"), (0, 1)), (("0.0", "1.0"), (0, 1)),
     ("11", (1, 1)), ("22", (0, 0))],
)  # fmt: skip
@pytest.mark.parametrize("read", [as_trained, as_predicted, as_prepared])
def test_sexes_are_read_alike_and_codes_that_could_be_wrong_are_told(tmp_path, capsys, codes, sexes, read) -> None:
    scans, table = made(tmp_path, ["sub-1", "sub-2"], f"subject_id,age,sex\nsub-1,40,{codes[0]}\nsub-2,50,{codes[1]}\n")
    assert tuple(sex for _, _, sex in read(scans, table).values()) == sexes
    assert ("read as 1 male, 2 female; if that is wrong, write M and F" in capsys.readouterr().out) == ("2" in codes)


def test_codes_that_contradict_each_other_are_not_read(tmp_path, capsys) -> None:
    scans, table = made(tmp_path, ["a", "b", "c"], "subject_id,age,sex\na,40,0\nb,50,2\nc,60,M\n")
    with pytest.raises(InputError) as caught:
        as_trained(scans, table)
    assert len(caught.value.problems) == 2
    assert "row 2: sex '0' of a is not one of 0/1, F/M, female/male" in caught.value.problems[0]
    assert "coded with both 0 and 2, so that numbers are not read; write M and F" in caught.value.problems[0]
    assert [sex for _, _, sex in as_predicted(scans, table).values()] == [-1, -1, 1]
    assert set(as_trained(scans, table, use_sex=False)) == {"a", "b", "c"}


def test_the_name_that_was_looked_for_is_told_and_what_is_nearly_the_same(tmp_path) -> None:
    scans, table = made(tmp_path, ["sub-01_ses-2_T1w", "HOSP_007"], "subject_id,age,sex\nsub-1,40,F\nhosp7,50,F\n")
    with pytest.raises(InputError) as caught:
        as_trained(scans, table)
    assert [problem.partition(": ")[2] for problem in caught.value.problems] == [
        f"no row of {table} has the subject HOSP_007; it has hosp7: write it as in the name of the scan",
        f"no row of {table} has the subject sub-01 or sub-01_ses-2 or sub-01_ses-2_T1w; it has sub-1: write it as in the "
        "name of the scan",
    ]


def test_a_person_is_known_by_the_table_and_by_the_name(tmp_path) -> None:
    subject = Subject("sub-01_ses-2", tmp_path, person="Ann")
    for names in (["Ann"], ["sub-01_ses-1"], ["sub-01"]):
        assert are_known([subject], names).tolist() == [True]
    assert are_known([subject], ["sub-02", "Bob"]).tolist() == [False]


def test_a_name_is_never_that_of_another_person_with_a_session(tmp_path) -> None:
    scans, table = made(
        tmp_path, ["P1", "P1_2", "P1_V3"], "subject_id,visit,age,sex\nP1,1,40,F\nP1,2,45,F\nP1_2,1,70,M\nP1,V3,50,\nP1,,,F\n"
    )  # fmt: skip
    predicted = as_predicted(scans, table)
    assert predicted["P1_2"] == ("P1_2", 70, 1)
    assert predicted["P1_V3"] == ("P1", 50, 0)
    assert np.isnan(predicted["P1"][1])


def test_cross_validation_holds_out_persons_and_records_them(tmp_path) -> None:
    scans, table = made(tmp_path, [f"P{n:03d}_V{v}" for n in range(12) for v in (1, 2)], VISITS)
    subjects = load_cohort({"scan": scans}, table, None)["scan"]
    settings = CrossValidation(
        output_dir=tmp_path / "cv", label_table=table, folds=3, hold_out="people", site_column="", members=1, stages=1,
        seed=0, weights_dir=None, data_notice="", remark="", jobs=1, shard=WHOLE, num_workers=0, cache_folder=None,
    )  # fmt: skip
    folds = assign_folds(subjects, settings)["people"]
    assert len({(subject.person, fold) for subject, fold in zip(subjects, folds, strict=True)}) == 12
    with (tmp_path / "cv" / "folds.csv").open(newline="") as file:
        assert [row["person"] for row in csv.DictReader(file)] == [subject.person for subject in subjects]
    predictions = {
        name: np.array([s.chronological_age for s in subjects]) for name in ("brain_age", "chronological_age")
    }
    manifest = make_manifest(subjects, predictions, {}, "", "")
    assert {"P000", "P011", "P000_V1", "P011_V2"} <= set(manifest["training_persons"])
    scan = PredictedScan("P011_V3", tmp_path / "P011_V3.nii", person="P011")
    add_training([scan], manifest["training_persons"])
    assert "is of a training subject" in scan.warnings[0]


def test_a_row_without_its_person_hides_no_overlap(tmp_path) -> None:
    scans, table = made(
        tmp_path, ["sub-01_ses-1", "sub-01_ses-2"],
        "subject_id,age,sex,person\nsub-01_ses-1,40,F,Ann\nsub-01_ses-2,45,F,\n",
    )  # fmt: skip
    for read in (as_trained, as_prepared):
        assert {person for person, _, _ in read(scans, table).values()} == {"Ann"}
    (tmp_path / "valid").mkdir()
    (scans / "sub-01_ses-2.nii.gz").rename(tmp_path / "valid" / "sub-01_ses-2.nii.gz")
    with pytest.raises(InputError, match="Ann is in the valid split and in the train split"):
        load_cohort({"train": scans, "valid": tmp_path / "valid"}, table, None)


@pytest.mark.parametrize("column", ["person", "Person-ID", "PERSON ID"])
def test_a_person_column_is_read_in_tables_of_public_data_sets(tmp_path, column) -> None:
    (tmp_path / "IXI.csv").write_text(f"IXI_ID,AGE,SEX_ID,{column}\n2,35,1,twin\n12,40,2,twin\n")
    scans = {name: tmp_path / f"{name}.nii.gz" for name in ("IXI002-Guys-0828-T1", "IXI012-HH-1211-T1")}
    assert {scan.person for scan in label_scans(scans, tmp_path / "IXI.csv")} == {"twin"}
