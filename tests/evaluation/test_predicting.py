"""Prediction: every subject once and in order, its precision, and subjects that were trained on."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from model.scaledense import NetworkConfig, ScaleDense
from tests.conftest import VOXEL_SIZE
from utils.analysis.leakage import seen_by_checkpoints
from utils.common.files import write_json
from utils.data.dataset import ScanDataset
from utils.data.preparations import DESCRIPTION
from utils.data.scans import ScanStore
from utils.data.subjects import Subject
from utils.evaluation.predicting import autocast, predict, seen_in_training, warn_of_preparation
from utils.options import testing
from utils.options.prediction import prediction_parser
from utils.options.training import parse_training_flags
from utils.training.stages import FirstStage, SecondStage
from utils.training.state import describe_checkpoint

CPU = torch.device("cpu")


@pytest.fixture
def dataset(synthetic_cohort) -> ScanDataset:
    paths = sorted((synthetic_cohort / "train").iterdir())
    subjects = [Subject(path.name, path, 30.0 + i, i % 2, 31.0 + i, 30.0) for i, path in enumerate(paths)]
    return ScanDataset(subjects, ScanStore(VOXEL_SIZE, "brain"))


def network(stage: int) -> ScaleDense:
    torch.manual_seed(0)
    made = ScaleDense(NetworkConfig(stage, "scaledense_paper", True, (23, 27, 23), 3, 4, 50.0, 20.0))
    torch.nn.init.normal_(made.output_layer[-1].weight)
    return made


def test_prediction_sees_each_subject_once_in_order(dataset) -> None:
    one, how = network(1), {"num_workers": 0, "precision": "float32", "label": ""}
    predictions = predict(one, FirstStage(), dataset, CPU, batch_size=5, **how)
    alone = predict(one, FirstStage(), dataset, CPU, batch_size=1, **how)
    assert len(set(predictions["brain_age"].tolist())) == 12
    np.testing.assert_allclose(predictions["brain_age"], alone["brain_age"], rtol=1e-4)
    np.testing.assert_array_equal(predictions["chronological_age"], [s.chronological_age for s in dataset.subjects])
    second = predict(network(2), SecondStage(5.0), dataset, CPU, batch_size=5, **how)
    np.testing.assert_array_equal(second["first_stage_age"], [s.first_stage_age for s in dataset.subjects])
    np.testing.assert_allclose(second["brain_age"], 30 + second["residual_age"], rtol=1e-6)


@pytest.fixture
def faked_gpu(monkeypatch) -> torch.device:
    """A CUDA device, as far as autocast asks."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    return torch.device("cuda")


def precision_on(device: torch.device, precision: str) -> torch.dtype:
    """Return the type in which a network runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with autocast(device, precision):
            enabled = torch.is_autocast_enabled(device.type)
            return torch.get_autocast_dtype(device.type) if enabled else torch.float32


def test_training_uses_bfloat16_on_cuda_by_default_and_float32_elsewhere(faked_gpu) -> None:
    (default,) = {parse_training_flags(stage, []).precision for stage in (1, 2)}
    others = (testing.testing_parser(1), testing.testing_parser(2), prediction_parser())
    assert {parser.parse_args([]).precision for parser in others} == {"float32"}
    assert precision_on(faked_gpu, default) == torch.bfloat16
    assert precision_on(CPU, default) == torch.float32
    for device in (faked_gpu, CPU):
        assert precision_on(device, "bfloat16") == torch.bfloat16
        assert precision_on(device, "float32") == torch.float32


@pytest.mark.parametrize(
    ("capability", "kind"), [((7, 5), torch.float32), ((8, 6), torch.bfloat16), ((12, 0), torch.bfloat16)]
)
def test_cards_before_ampere_train_in_float32(faked_gpu, monkeypatch, capability, kind) -> None:
    """They emulate bfloat16; who asks for it still gets it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    assert precision_on(faked_gpu, "auto") == kind
    assert precision_on(faked_gpu, "bfloat16") == torch.bfloat16


@pytest.mark.parametrize(("precision", "kind"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_network_runs_in_that_precision(dataset, monkeypatch, precision, kind) -> None:
    seen = []
    torchs = torch.nn.functional.elu
    monkeypatch.setattr(
        torch.nn.functional, "elu", lambda x, *how, **more: (seen.append(x.dtype), torchs(x, *how, **more))[1]
    )
    few = ScanDataset(dataset.subjects[:2], dataset.scans)
    ages = predict(network(1), FirstStage(), few, CPU, batch_size=2, num_workers=0, precision=precision, label="")
    assert seen[0] == kind
    assert ages["brain_age"].dtype == np.float32


def test_prediction_after_training_is_without_its_search_for_algorithms(dataset, monkeypatch) -> None:
    """A training in float32 lets cuDNN search; which algorithm is the fastest changes the last digits."""
    cudnn, seen, one = torch.backends.cudnn, [], network(1)
    monkeypatch.setattr(cudnn, "benchmark", True)
    monkeypatch.setattr(cudnn, "deterministic", False)
    monkeypatch.setattr(cudnn, "allow_tf32", False)
    monkeypatch.setattr(
        type(one), "_head",
        lambda self, x, *_: (seen.append((cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32)), x[:, 0])[1],
    )  # fmt: skip
    few = ScanDataset(dataset.subjects[:1], dataset.scans)
    predict(one, FirstStage(), few, CPU, batch_size=1, num_workers=0, precision="float32", label="")
    assert seen == [(False, True, False)]
    assert cudnn.benchmark


def test_subjects_of_the_training_are_told(tmp_path, capsys) -> None:
    subjects = [Subject(name, tmp_path) for name in ("a", "b", "c", "sub-1_ses-2")]
    checkpoint = {"train_subjects": ["b", "sub-1_ses-1"], "valid_subjects": ["c"]}
    assert seen_in_training(subjects, tmp_path / "best.pt", checkpoint).tolist() == [False, True, False, True]
    shown = capsys.readouterr().out
    assert "2 of 4 subjects, such as b, were used to train" in shown
    assert "1 of 4 subjects, such as c, were used to choose the epoch of" in shown
    assert seen_in_training(subjects[:1], tmp_path / "best.pt", checkpoint).tolist() == [False]
    assert capsys.readouterr().out == ""
    assert seen_in_training(subjects, tmp_path / "released.pth.tar", {}).all()


def test_subjects_of_the_initial_weights_count_as_trained_on(tmp_path, capsys) -> None:
    subjects = [Subject(name, tmp_path) for name in ("a", "b", "sub-1_ses-2")]
    checkpoint = {"train_subjects": ["b"], "valid_subjects": [], "initial_subjects": ["sub-1_ses-1", "c"]}
    assert seen_in_training(subjects, tmp_path / "best.pt", checkpoint).tolist() == [False, True, True]
    assert "2 of 3 subjects, such as b, were used to train" in capsys.readouterr().out


def test_another_visit_of_a_person_whom_a_table_named_counts_as_trained_on(tmp_path, capsys) -> None:
    visits = [Subject(f"P1_V{n}", tmp_path, 40.0, person="P1") for n in (1, 2)]
    content = {**describe_checkpoint({"stage": 1}, 4, "brain", 5.0, visits[:1], []), "state_dict": {}}
    assert content["train_persons"] == ["P1"]
    others = [visits[1], Subject("P1_V3", tmp_path), Subject("P1_V1", tmp_path)]
    assert seen_in_training(others, tmp_path / "best.pt", content).tolist() == [True, False, True]
    torch.save(content, tmp_path / "best.pt")
    (training,) = seen_by_checkpoints([tmp_path / "best.pt"]).training.values()
    assert training == {"P1", "P1_V1"}


def test_scans_that_were_prepared_in_another_way_are_named(tmp_path, capsys) -> None:
    made = [{"fingerprint": name, "registration": "affine"} for name in ("abc", "def")]
    for number, own in enumerate(made):
        parts = {"Fingerprint": own["fingerprint"], "Parameters": {"registration": own["registration"]}}
        write_json(tmp_path / str(number) / DESCRIPTION, {"GeneratedBy": [parts]})
    subjects = [Subject(f"sub-{n}", tmp_path / str(n) / "a.nii.gz", 50.0) for n in (0, 1, 2)]  # the last is unknown
    cases = (
        ([made[0]], 2, "sub-1, were prepared with affine registration, fingerprint def; the training scans of best.pt, "
                       "with affine registration, fingerprint abc"),
        ([*made, None], 0, ""),
        (made, 1, "sub-2, were prepared in an unknown way"),
        ([None], 2, "sub-0, were prepared with affine registration, fingerprint abc; the training scans of best.pt, in an"),
    )  # fmt: skip
    for expected, number, said in cases:
        warn_of_preparation(subjects, Path("best.pt"), {"preprocessing": expected})
        shown = capsys.readouterr().out
        assert (f"{number} of 3 scans" in shown) == (number > 0)
        assert said in shown
    warn_of_preparation(subjects, Path("best.pt"), {})
    assert capsys.readouterr().out == ""
