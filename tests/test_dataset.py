"""Batches: each subject once an epoch, whoever reads them; augmentation."""

import numpy as np
import pytest
import torch

from tests.conftest import VOXEL_SIZE
from utils.dataset import EpochBatches, ScanDataset, flip_and_shift, make_loader, to_device
from utils.subjects import Subject


@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (7, 7), (3, 5)])
def test_every_subject_once_an_epoch_in_a_new_order(size, batch_size) -> None:
    batches = EpochBatches(size, batch_size, seed=1)
    epochs = []
    for batches.epoch in range(4):
        read = list(batches)
        assert len(read) == len(batches)
        assert sorted(sum(read, [])) == list(range(size))
        epochs.append(sum(read, []))
    assert len({tuple(order) for order in epochs}) > 1
    assert list(EpochBatches(size, batch_size, seed=1)) == list(_at(batches, 0))
    assert list(EpochBatches(size, batch_size, seed=2)) != list(_at(batches, 0)) or size < 4


def _at(batches: EpochBatches, epoch: int, start: int = 0) -> EpochBatches:
    batches.epoch, batches.start = epoch, start
    return batches


def test_an_epoch_goes_on_where_it_stopped() -> None:
    batches = EpochBatches(23, 4, seed=0)
    whole = list(_at(batches, 5))
    assert list(_at(batches, 5, start=3)) == whole[3:]


def test_processes_share_an_epoch_evenly() -> None:
    parts = [list(EpochBatches(23, 4, 0, rank, 3)) for rank in range(3)]
    assert len({len(part) for part in parts}) == 1
    indices = sum((sum(part, []) for part in parts), [])
    assert len(set(indices)) == len(indices) == 21
    assert all(len(batch) == 4 for batch in EpochBatches(23, 4, 0, drop_last=True))


def test_items_are_normalized_and_named(synthetic_cohort) -> None:
    path = next((synthetic_cohort / "train").iterdir())
    item = ScanDataset([Subject("sub-x", path, 44.25, 1)], VOXEL_SIZE, "brain")[0]
    assert item["volume"].shape == (1, 23, 28, 23)
    assert item["volume"].dtype == torch.float32
    brain = item["volume"] > item["volume"].min()
    assert item["volume"][brain].mean().item() == pytest.approx(0, abs=1e-3)
    assert (item["subject_id"], item["sex"], item["chronological_age"]) == ("sub-x", 1, np.float32(44.25))


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_keep_order_and_layout(synthetic_cohort, workers) -> None:
    paths = sorted((synthetic_cohort / "valid").iterdir())
    dataset = ScanDataset([Subject(p.name, p, 50.0, 0) for p in paths], VOXEL_SIZE, "brain")
    loader = make_loader(dataset, [[4, 0], [2]], workers, torch.device("cpu"))
    first, second = (to_device(batch, torch.device("cpu")) for batch in loader)
    assert first["subject_id"] == [paths[4].name, paths[0].name]
    assert first["volume"].is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(second["volume"][0], dataset[2]["volume"])


def test_flip_and_shift() -> None:
    volumes = torch.zeros(200, 1, 9, 9, 9)
    volumes[:, :, 2, 4, 4] = 1
    changed = flip_and_shift(volumes, (0, 1))
    assert changed.sum() == 200
    places = changed.nonzero()[:, 2:]
    flipped = places[:, 0] > 4
    assert 60 < int(flipped.sum()) < 140
    offsets = places - torch.where(flipped[:, None], torch.tensor([6, 4, 4]), torch.tensor([2, 4, 4]))
    assert offsets.abs().max() == 2
    assert len(offsets.unique(dim=0)) > 60
    again = flip_and_shift(volumes, (0, 1))
    assert torch.equal(changed, again)
