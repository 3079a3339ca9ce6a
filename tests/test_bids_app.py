"""The call of every BIDS App: which commands it runs, and that these understand them."""

import csv
from pathlib import Path

import pytest

import bids_app
from tests.data.test_scan_folders import bids
from utils.common.errors import InputError
from utils.options.analysis import gap_parser
from utils.options.prediction import prediction_parser
from utils.options.preparation import preprocessing_parser

PARSERS = {
    "preprocess.py": preprocessing_parser(), "predict.py": prediction_parser(), "analyse_brain_age_gap.py": gap_parser(),
}  # fmt: skip
BRAIN = "space-MNI152NLin2009aSym_res-2_desc-preproc_T1w"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the app on people 01, 02 and 03 with two sessions, of whom 02 cannot be prepared; return the commands."""

    def call(*flags: str, ages: int = 12):
        called = []

        def pretend(script: str, *given: object) -> None:
            args = PARSERS[script].parse_args([str(flag) for flag in given])
            called.append((script, args))
            if script == "preprocess.py":
                for person in set(args.participants or ["01", "02", "03"]) - {"02", "sub-02"}:
                    for session in ("1", "2"):
                        bids(args.output_dir, f"sub-{person.removeprefix('sub-')}", BRAIN, session=f"ses-{session}")
            if script == "predict.py":
                args.output_dir.mkdir(parents=True, exist_ok=True)
                with (args.output_dir / "predictions.csv").open("w") as file:
                    writer = csv.writer(file)
                    writer.writerow(["subject_id", "person", "brain_age", "chronological_age"])
                    writer.writerows([n, min(n, 11), 50, 51 if n < ages else ""] for n in range(13))

        monkeypatch.setattr(bids_app, "_run", pretend)
        monkeypatch.setattr("sys.argv", ["bids_app.py", str(tmp_path / "raw"), str(tmp_path / "out"), *flags])
        bids_app.main()
        return called

    for person in ("01", "02", "03"):
        for session in ("1", "2"):
            bids(tmp_path / "raw", f"sub-{person}", "T1w", session=f"ses-{session}")
    (tmp_path / "raw" / "participants.tsv").touch()
    return call


def test_participants_are_prepared_and_predicted(run, tmp_path) -> None:
    labels = ("--participant-label", "01", "sub-03", "--session_label", "ses-1", "--skip-bids-validation")
    (first, prepare), (second, predict) = run("participant", *labels)
    assert (first, second) == ("preprocess.py", "predict.py")
    assert (prepare.input, prepare.output_dir, prepare.layout) == (tmp_path / "raw", tmp_path / "out", "bids")
    assert (prepare.participants, prepare.sessions) == (["01", "sub-03"], ["ses-1"])
    assert (predict.input, predict.participants, predict.sessions) == (tmp_path / "out", ["01", "03"], ["ses-1"])
    assert predict.output_dir == tmp_path / "out" / "brain_age" / "sub-01_and_1_more"
    assert predict.label_table == tmp_path / "raw" / "participants.tsv"


def test_without_labels_all_are_taken(run, tmp_path) -> None:
    (_, prepare), (_, predict) = run("participant")
    assert (prepare.participants, predict.participants, predict.output_dir.name) == ([], [], "all")


def test_a_person_who_could_not_be_prepared_stops_no_other(run) -> None:
    assert run("participant", "--participant-label", "02", "03")[1][1].participants == ["03"]
    with pytest.raises(InputError, match="holds no prepared scan of these people; its qc.csv says why"):
        run("participant", "--participant-label", "02")


@pytest.mark.parametrize("ages", [13, 10, 9])
def test_the_group_has_a_report_of_those_whose_age_is_known(run, tmp_path, capsys, ages) -> None:
    run("participant")
    (_, predict), *report = run("group", ages=ages)
    assert (predict.output_dir, predict.participants) == (tmp_path / "out" / "brain_age", [])
    if ages < 10:
        assert report == []
        assert "no report, because the ages of 9 people are known" in capsys.readouterr().out
    else:
        ((script, args),) = report
        assert script == "analyse_brain_age_gap.py"
        assert args.output_dir == tmp_path / "out" / "brain_age" / "report"
        assert len(Path(args.predictions[0]).read_text().splitlines()) == 1 + ages


def test_the_group_comes_after_the_participants(run) -> None:
    with pytest.raises(InputError, match="holds no prepared scan"):
        run("group")
