"""The SoDeep sorter: the authors' numbers and files, and training one."""

import argparse
import json
import os
import zlib

import numpy as np
import pytest
import torch

from model.ranking import CascadeLoss, tied_rank
from model.sorter import Sorter, draw_scores, evaluate_sorter, fit_sorter, load_sorter
from utils.common.errors import InputError


@pytest.fixture
def released_sorter(reference_folder, tmp_path):
    """A sorter file in the form of the authors'."""
    weights = {}
    for key, shape in json.loads((reference_folder / "sorter_lstmla_8_keys.json").read_text()).items():
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        if key.rsplit(".", 1)[1].startswith("bias"):
            values = 0.1 * rng.standard_normal(shape)
        else:
            values = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        weights[key] = torch.from_numpy(values.astype(np.float32))
    path = tmp_path / "best_lstmla_slen_8.pth.tar"
    args = argparse.Namespace(model_type="lstmla", seq_len=8, lr=1e-3)
    torch.save({"args_dict": args, "state_dict": weights, "epoch": 3}, path)
    return path


def test_numbers_of_the_released_code(released_sorter, reference_folder) -> None:
    with np.load(reference_folder / "scaledense_reference.npz") as stored:
        reference = {key: torch.from_numpy(stored[key].squeeze()) for key in stored.files if key.startswith("loss/")}
    sorter = load_sorter(released_sorter)
    predicted = reference["loss/predicted"].clone().requires_grad_()
    torch.testing.assert_close(sorter(predicted), reference["loss/sorter_output"], rtol=1e-4, atol=1e-6)
    loss = CascadeLoss(ranker=sorter)
    spearman = loss(predicted, reference["loss/chronological_age"], torch.Generator())["ranking"]
    torch.testing.assert_close(spearman, reference["loss/spearman"].float(), rtol=1e-4, atol=0)
    spearman.backward()
    expected = reference["loss/spearman_grad"]
    assert (predicted.grad - expected).norm() / expected.norm() < 1e-3
    assert loss.batch_size == 8
    assert not any(p.requires_grad for p in sorter.parameters())


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_a_sorter_file_never_runs_code(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"args_dict": Harmful(), "state_dict": {}}, "bad.pt")
    with pytest.raises(ValueError, match="without running code"):
        load_sorter(tmp_path / "bad.pt")
    assert not (tmp_path / "harmed").exists()


def test_other_files_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="no such sorter"):
        load_sorter(tmp_path / "none.pt")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="is no sorter"):
        load_sorter(tmp_path / "other.pt")
    torch.save({"sorter": {"model_type": "mlp", "length": 8}, "state_dict": {}}, tmp_path / "mlp.pt")
    with pytest.raises(ValueError, match="expected one of"):
        load_sorter(tmp_path / "mlp.pt")


def test_scores_cover_the_ages_and_have_ties() -> None:
    scores = draw_scores(3000, 16, 0, 110, torch.Generator().manual_seed(0))
    assert scores.min() >= 0
    assert scores.max() <= 110
    assert (np.histogram(scores.numpy(), bins=11)[0] > 0.04 * scores.numel()).all()
    assert any(len(set(row.tolist())) < 16 for row in scores[:100])


def test_training_improves_a_sorter() -> None:
    torch.manual_seed(0)
    sorter = Sorter("lstm", 4, 55.0, 27.0)
    generator = torch.Generator().manual_seed(0)
    before = evaluate_sorter(sorter, 0, 110, generator)
    losses = fit_sorter(
        sorter, steps=150, batch_size=64, learning_rate=3e-3, low=0, high=110, generator=generator,
        device=torch.device("cpu"),
    )  # fmt: skip
    assert [step for step, _ in losses] == list(range(1, 151))
    after = evaluate_sorter(sorter, 0, 110, generator)
    assert after["rank_error"] < 0.5 * before["rank_error"]
    assert after["correlation"] > 0.9
    assert torch.vmap(tied_rank)(torch.tensor([[3.0, 1.0, 2.0, 2.0]])).tolist() == [[0.25, 1.0, 0.625, 0.625]]


def test_the_script_writes_a_sorter_that_loads(tmp_path, run_here) -> None:
    flags = ["--model_type", "lstm", "--length", 4, "--steps", 5, "--output", tmp_path / "sorter.pt"]
    assert "correlation" in run_here("train_sorter.py", *flags)
    assert load_sorter(tmp_path / "sorter.pt").length == 4
    with pytest.raises(
        InputError, match=r"holds sorter\.pt already; set another OUTPUT \(--output\), or OVERWRITE=true"
    ):
        run_here("train_sorter.py", *flags)
    run_here("train_sorter.py", *flags, "--length", 5, "--overwrite", "true")
    assert load_sorter(tmp_path / "sorter.pt").length == 5
    with pytest.raises(ValueError, match="sorter of length 5"):
        load_sorter(tmp_path / "sorter.pt")(torch.ones(4))
