"""The whole analysis: against recomputed numbers, against the simulated truth, and on bad input."""

import json
import os
import runpy
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from tests.conftest import ROOT
from utils.preparation.simulation import draw_subjects

CORRECTIONS = ("linear-gap", "linear-prediction", "covariate")


def estimate(subjects, seed=0):
    """Give simulated persons brain ages that are biased towards 55 and have an error of 2 years; no network is used."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame([vars(subject) for subject in subjects]).rename(columns={"age": "chronological_age"})
    table["brain_age"] = 55 + 0.75 * (table["true_brain_age"] - 55) + rng.normal(0, 2, len(table))
    table["first_stage_age"] = table["brain_age"] + rng.normal(0, 4, len(table))
    return table


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """valid.csv (60 healthy), test.csv (60 healthy, 20 with two later scans), patients.csv (30 MCI, 30 AD)."""
    folder = tmp_path_factory.mktemp("gap")
    table = estimate(draw_subjects(300, 30, fractions=(0.6, 0.2)))
    twice = table[table["split"] == "test"].head(20).copy()
    twice["chronological_age"] += 0.1
    twice["true_brain_age"] += 0.1
    twice["brain_age"] += np.random.default_rng(1).normal(0.3, 1, 20)
    later = twice.assign(session="ses-3")
    for name, years in (("chronological_age", 4), ("true_brain_age", 4), ("brain_age", 6)):
        later[name] += years
    table["session"], twice["session"] = "ses-1", "ses-2"
    for split, part in pd.concat([table, twice, later]).groupby("split"):
        part.drop(columns="split").to_csv(folder / f"{split}.csv", index=False)
    return folder


def analyse(*flags, monkeypatch, status=None):
    """Run the entry point in this process, where its packages are loaded already."""
    monkeypatch.setattr(sys, "argv", ["analyse_brain_age_gap.py", *map(str, flags)])
    if status is None:
        runpy.run_path(str(ROOT / "analyse_brain_age_gap.py"), run_name="__main__")
        return
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "analyse_brain_age_gap.py"), run_name="__main__")
    assert stop.value.code == status


@pytest.fixture(scope="module")
def analysis(cohort):
    """Run the bash script with everything; return its output folder and what it printed."""
    variables = {
        "PREDICTIONS": f"{cohort}/test.csv {cohort}/pat*.csv", "FIT_PREDICTIONS": f"{cohort}/valid.csv",
        "CALIBRATION_PREDICTIONS": f"{cohort}/valid.csv", "CORRECTION": ",".join(CORRECTIONS),
        "OUTPUT_DIR": str(cohort / "out"), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    result = subprocess.run(
        ["bash", str(ROOT / "bash_analyse_brain_age_gap.sh"), "--permutations", "9", "--repeats", "2"],
        capture_output=True, text=True, check=False, env={**os.environ, **variables},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return cohort / "out", result.stdout


def test_everything_is_written(analysis) -> None:
    folder, printed = analysis
    page = (folder / "report.html").read_text()
    for title in ("Leakage", "Subjects", "Accuracy, uncorrected", "Correction for age", "Diagnosis", "Uncertainty",
                  "Repeated scans", "How this report was made"):  # fmt: skip
        assert f"<h2>{title}</h2>" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert page.count("data:image/svg+xml;base64,") == len(list((folder / "figures").glob("*.svg"))) > 8
    assert len(list((folder / "figures").glob("*.png"))) == len(list((folder / "figures").glob("*.svg")))
    assert "Uncorrected MAE" in printed
    assert "AD against HC: on average the patients are" in printed


def test_figures_are_those_of_the_table(analysis, cohort) -> None:
    folder, _ = analysis
    metrics = json.loads((folder / "metrics.json").read_text())
    table = pd.read_csv(cohort / "test.csv")
    table = table[table["session"] == "ses-1"]  # each person once
    age, brain_age = table["chronological_age"], table["brain_age"]
    found = metrics["accuracy"]["brain age"]
    assert found["n"] == 60
    assert found["mae"] == pytest.approx(np.abs(brain_age - age).mean())
    assert found["mae_low"] < found["mae"] < found["mae_high"]
    assert found["r2"] == pytest.approx(1 - ((brain_age - age) ** 2).sum() / ((age - age.mean()) ** 2).sum())
    (stages,) = metrics["stages"].values()
    assert stages["difference"] == pytest.approx(np.abs(table["first_stage_age"] - age).mean() - found["mae"])
    groups = pd.read_csv(folder / "errors_by_group.csv")
    assert groups[groups["by"] == "age"]["n"].sum() == 60
    subjects = pd.read_csv(folder / "subjects.csv")
    assert len(subjects) == 60 + 20 + 20 + 60
    wide = subjects["interval_high"] - subjects["interval_low"]
    assert np.ptp(wide) < 1e-3
    assert np.allclose(subjects["brain_age_gap"], subjects["brain_age"] - subjects["chronological_age"], atol=1e-3)


def test_corrected_never_stands_alone(analysis) -> None:
    folder, _ = analysis
    metrics = json.loads((folder / "metrics.json").read_text())
    before = metrics["correction"]["uncorrected"]
    assert before["gap_age_pearson"] < -0.5
    for kind in CORRECTIONS:
        assert abs(metrics["correction"][kind]["gap_age_pearson"]) < 0.35
    assert metrics["correction"]["covariate"]["mae"] is None  # it gives no ages
    for label in ("AD", "MCI"):
        rows = [name for name in metrics["diagnosis"] if name.startswith(f"{label} against HC, SVM on the gap")]
        assert "uncorrected" in rows[0]
        assert len(rows) == 4
    rows = metrics["truth"]
    assert rows["linear-gap"]["pearson"] > rows["uncorrected"]["pearson"]
    assert rows["linear-prediction"]["slope"] == pytest.approx(1, abs=0.2)  # undoes the shrinkage to 0.75
    assert rows["linear-gap"]["slope"] == pytest.approx(0.75, abs=0.15)
    assert rows["uncorrected"]["pearson_low"] < rows["uncorrected"]["pearson"] < rows["uncorrected"]["pearson_high"]


def test_diagnosis_uncertainty_and_repeats(analysis) -> None:
    folder, _ = analysis
    metrics = json.loads((folder / "metrics.json").read_text())
    ad, mci = (metrics["diagnosis"][f"{label} against HC, SVM on the gap, linear-gap"] for label in ("AD", "MCI"))
    assert ad["auc"] > mci["auc"] > 0.6
    assert ad["p_value"] == 0.1
    assert ad["auc_low"] < ad["auc"] < ad["auc_high"]
    assert metrics["diagnosis"]["AD against HC, SVM on age, sex and gap, uncorrected"]["auc_low"] is None
    assert {"AD against HC, age alone", "AD against HC, sex alone"} <= set(metrics["diagnosis"])
    coverage = metrics["coverage"]
    assert stats.binomtest(round(coverage["all"]["coverage"] * 60), 60, 0.9).pvalue > 0.001
    bins = [row for name, row in coverage.items() if name != "all"]
    assert sum(row["n"] for row in bins) == coverage["all"]["n"] == 60
    assert sum(row["n"] * row["coverage"] for row in bins) == pytest.approx(60 * coverage["all"]["coverage"])
    brain_age, gap, corrected = (
        metrics["retest"][f"HC, {name}"] for name in ("brain age", "gap (uncorrected)", "gap (linear-gap)")
    )
    assert brain_age["n"] == 20
    assert brain_age["icc"] > gap["icc"] > corrected["icc"] > 0.5  # the age range raises the others
    assert metrics["slopes"]["HC"]["slope"] == pytest.approx(1.5, abs=0.2)
    healthy, patients = (metrics["group_gaps"][f"linear-gap, {label}"] for label in ("HC", "AD"))
    assert patients["difference"] == pytest.approx(patients["mean_gap"] - healthy["mean_gap"])
    assert patients["difference_low"] < 7.5 < patients["difference_high"]  # 10 years, shrunk to three quarters
    assert patients["p_value"] < 0.001
    assert patients["cohens_d"] > 1
    assert healthy["difference"] is None


def test_the_papers_protocol_and_matching(cohort, tmp_path, monkeypatch) -> None:
    predictions = f"{cohort}/test.csv {cohort}/patients.csv"
    analyse("--predictions", predictions, "--protocol", "paper", "--permutations", 1, "--patient_labels", "AD",
            "--match_ages", "true", "--output_dir", tmp_path, monkeypatch=monkeypatch)  # fmt: skip
    (row,) = pd.read_csv(tmp_path / "diagnosis.csv").query("score.str.startswith('SVM on the gap')").to_dict("records")
    assert 0.5 < row["hard_label_auc"] != row["auc"]
    assert row["n_patients"] == row["n_healthy"] < 30
    page = (tmp_path / "report.html").read_text()
    assert "authors&#39; released script" in page
    assert "hard labels" in page
    assert "on average the patients are" not in page


def test_one_published_split_is_recomputed(pac2019, tmp_path, monkeypatch) -> None:
    analyse("--predictions", pac2019 / "ResNet_split-0.tsv", "--fit_predictions", f"{pac2019}/ResNet_split-[1-4].tsv",
            "--age_column", "true_age", "--correction", "linear-gap,linear-prediction", "--output_dir", tmp_path,
            monkeypatch=monkeypatch)  # fmt: skip
    fit = np.concatenate([
        np.loadtxt(pac2019 / f"ResNet_split-{k}.tsv", skiprows=1, usecols=(1, 2)) for k in (1, 2, 3, 4)
    ])  # fmt: skip
    age, brain_age = np.loadtxt(pac2019 / "ResNet_split-0.tsv", skiprows=1, usecols=(1, 2)).T
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    line = stats.linregress(fit[:, 0], fit[:, 1])
    expected = {
        "uncorrected": brain_age, "linear-gap": brain_age - ((line.slope - 1) * age + line.intercept),
        "linear-prediction": (brain_age - line.intercept) / line.slope,
    }  # fmt: skip
    for name, ages in expected.items():
        row = metrics["correction"][name]
        assert row["n"] == len(age) == 533
        assert row["mae"] == pytest.approx(np.mean(np.abs(ages - age)))
        assert row["pearson"] == pytest.approx(stats.pearsonr(ages, age).statistic)
        assert row["gap_age_pearson"] == pytest.approx(stats.pearsonr(ages - age, age).statistic)
        assert row["gap_age_spearman"] == pytest.approx(stats.spearmanr(ages - age, age).statistic)


def test_bad_input(cohort, tmp_path, monkeypatch, capsys) -> None:
    """Each with its message, status 2, and nothing written."""
    test = pd.read_csv(cohort / "test.csv")
    patients = pd.read_csv(cohort / "patients.csv")

    def table(name, frame):
        frame.to_csv(tmp_path / name, index=False)
        return tmp_path / name

    both = pd.concat([test, patients])
    nan_age = test.assign(chronological_age=test["chronological_age"].where(test.index > 0))
    seen = {"state_dict": {}, "train_subjects": [test["subject_id"][0]], "train_ages": [50.0], "network": {"stage": 1}}
    first, other, person = tmp_path / "first.pt", tmp_path / "second.pt", test["subject_id"][0]
    torch.save(seen, first)
    valid = pd.read_csv(cohort / "valid.csv")
    second = {"train_subjects": [valid["subject_id"][0]], "network": {"stage": 2}}
    torch.save(seen | second, other)
    renamed = table("g.csv", test.assign(person=[f"hospital-{i}" for i in test["subject_id"]]))
    cases = [
        ((cohort / "test.csv", "--checkpoints", first), f"is in the first stage's training of {first} too: {person}"),
        ((renamed, "--checkpoints", first), "1 person of the test set is in the first stage's training"),
        ((cohort / "test.csv", "--fit_predictions", cohort / "test.csv", "--correction", "linear-gap"),
         "leakage: 60 persons of the test set are in the fit of linear-gap too: simulated-"),
        ((cohort / "test.csv", "--calibration_predictions", cohort / "test.csv"), "are in the calibration set too"),
        ((cohort / "test.csv", "--fit_predictions", table("p.csv", patients), "--correction", "covariate"),
         "must hold healthy subjects only"),
        ((table("a.csv", both.assign(diagnosis=both["diagnosis"].where(both["brain_age"] > 40))),), "has no diagnosis"),
        ((table("b.csv", test.drop(columns="diagnosis")), "--patient_labels", "AD"), "no table has a diagnosis"),
        ((cohort / "test.csv", "--patient_labels", "AD"), "one class only"),
        ((cohort / "patients.csv",), "no subject has this diagnosis"),
        ((table("c.csv", pd.concat([test, patients.tail(4)])), "--patient_labels", "AD"),
         "--patient_labels AD: 4 persons with AD"),
        ((table("h.csv", test.assign(sex=3)),), "sex '3' of simulated-"),
        ((table("i.csv", test.drop(columns="brain_age")),), "has no column for the brain age (found subject_id, "),
        ((table("j.csv", both.assign(diagnosis=both["diagnosis"].where(both.index % 2 > 0, "hc"))),),
         "hc: differ in case"),
        ((cohort / "test.csv", "--calibration_predictions", table("k.csv", valid.head(8))),
         "too few for intervals of 90%"),
        ((cohort / "test.csv", "--fit_predictions", table("l.csv", valid.assign(diagnosis="CN")),
          "--correction", "linear-gap"), "nobody has the diagnosis HC (found CN)"),
        ((table("d.csv", test.head(3)),), "hold 3 persons"),
        ((table("e.csv", test.assign(brain_age=test["chronological_age"] + 2)),), "every brain-age gap is 2.00"),
        ((table("f.csv", nan_age),), "row 2: chronological age '' of simulated-"),
        ((cohort / "nothing.csv",), "no such"),
        ((cohort / "test.csv", "--correction", "linear-gap"), "never fitted on the test set"),
        ((cohort / "test.csv", "--checkpoints", cohort / "test.csv"), "is damaged, or of another kind"),
        ((cohort / "test.csv", "--calibration_predictions", cohort / "valid.csv", "--checkpoints", other),
         f"is in the second stage's training of {other} too"),
        ((cohort / "test.csv", "--fit_predictions", cohort / "valid.csv", "--correction", "linear-gap", "--checkpoints",
          other), f"is in the second stage's training of {other} too"),
    ]  # fmt: skip
    for flags, message in cases:
        analyse("--output_dir", tmp_path / "out", "--predictions", *flags, monkeypatch=monkeypatch, status=2)
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_what_weakens_a_report_is_said(cohort, tmp_path, monkeypatch, capsys) -> None:
    """Each oddity has its warning; a table without any has none of them."""
    test, patients, valid = (pd.read_csv(cohort / f"{name}.csv") for name in ("test", "patients", "valid"))
    both = pd.concat([test, patients])
    # Sites that go with the diagnosis; a diagnosis that changes; few of a third; men and women unknown.
    both["site"] = np.where(both["diagnosis"] == "HC", "9", "10")
    both.loc[both["session"] == "ses-2", "diagnosis"] = "MCI"
    both.loc[both["subject_id"] == patients["subject_id"][0], "diagnosis"] = "FTD"
    both.to_csv(tmp_path / "test.csv", index=False)
    young = valid[valid["chronological_age"] < 60].head(30)
    young.assign(brain_age=young["brain_age"] - 10, sex=["", *young["sex"][1:]]).to_csv(
        tmp_path / "fit.csv", index=False
    )
    test[["subject_id"]].drop_duplicates().head(50).assign(age=1.5).to_csv(tmp_path / "labels.csv", index=False)
    torch.save({"state_dict": {}, "train_subjects": ["other"], "train_ages": [30.0, 60.0]}, tmp_path / "best.pt")
    analyse("--predictions", tmp_path / "test.csv", "--fit_predictions", tmp_path / "fit.csv",
            "--correction", "covariate", "--label_table", tmp_path / "labels.csv",
            "--checkpoints", tmp_path / "best.pt", "--permutations", 1, "--repeats", 1,
            "--output_dir", tmp_path / "out", monkeypatch=monkeypatch)  # fmt: skip
    shown = capsys.readouterr().out
    for words in ("Diagnoses differ between sites", "20 persons have a diagnosis that changes",
                  "are outside the age range of the training set", "70 scans have no row in the label table",
                  "scans have another age in the label table", "Left out, FTD: 1 persons with FTD",
                  "fitted on 30 healthy subjects",
                  "it extrapolates for ", "After covariate the mean gap of the healthy test subjects is",
                  "covariate does not include the sex, which is unknown for 1 scans of the fit"):  # fmt: skip
        assert f"{words}" in shown, words
    sites = pd.read_csv(tmp_path / "out" / "sites.csv")
    assert sites[sites["site"] == 9]["HC"].item() == 60
    groups = pd.read_csv(tmp_path / "out" / "errors_by_group.csv")
    assert set(groups["by"]) == {"age", "sex", "site"}
    # A second analysis replaces the first, and leaves files of other origin alone.
    (tmp_path / "out" / "notes.txt").write_text("mine")
    again = ("--predictions", cohort / "test.csv", "--output_dir", tmp_path / "out")
    analyse(*again, monkeypatch=monkeypatch, status=2)
    assert "holds report.html already; set another OUTPUT_DIR" in capsys.readouterr().err
    assert (tmp_path / "out" / "diagnosis.csv").exists()
    analyse(*again, "--overwrite", "true", monkeypatch=monkeypatch)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert len(metrics["warnings"]) == 2  # unknown training subjects; only one diagnosis
    left = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert left == {*metrics["files"], "notes.txt", "analyse_brain_age_gap.log"}
    assert not (tmp_path / "out" / "diagnosis.csv").exists()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "metrics.json").write_text("{}")
    analyse(
        "--predictions", cohort / "test.csv", "--output_dir", tmp_path / "results", monkeypatch=monkeypatch, status=2
    )
    assert "holds other files, not an earlier analysis" in capsys.readouterr().err


def test_saved_coefficients_are_applied_and_an_allowed_leak_is_red(
    analysis, cohort, tmp_path, monkeypatch, capsys
) -> None:
    """To the subjects of the fit, whose corrected gaps have a mean of 0 and no trend."""
    folder, _ = analysis
    flags = [
        "--predictions",
        cohort / "valid.csv",
        "--correction_file",
        folder / "corrections.json",
        "--output_dir",
        tmp_path,
    ]
    analyse(*flags, monkeypatch=monkeypatch, status=2)
    assert "leakage: 60 persons of the test set are in the fit of linear-gap too" in capsys.readouterr().err
    analyse(*flags, "--allow_leakage", "true", monkeypatch=monkeypatch)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for kind in CORRECTIONS:
        assert metrics["correction"][kind]["mean_gap"] == pytest.approx(0, abs=1e-9)
        assert metrics["correction"][kind]["gap_age_pearson"] == pytest.approx(0, abs=1e-9)
    assert metrics["leakage"]
    page = (tmp_path / "report.html").read_text()
    assert '<p class="alarm">LEAKAGE, allowed by --allow_leakage: 60 persons' in page
    assert "color: #96130f" in page.split(".alarm {", 1)[1].split("}")[0]
    assert "LEAKAGE" in capsys.readouterr().out
