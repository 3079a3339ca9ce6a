"""Batches: each subject once an epoch, whoever reads them; augmentation."""

import numpy as np
import pytest
import torch

from tests.conftest import VOXEL_SIZE, save_scan, small_volume
from utils.data.dataset import EpochBatches, ScanDataset, collate, make_loader, to_device
from utils.data.images import model_grid
from utils.data.scans import ScanStore
from utils.data.subjects import Subject


def ages_of(size: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(20, 80, size)


def at(batches: EpochBatches, epoch: int, start: int = 0) -> EpochBatches:
    batches.epoch, batches.start = epoch, start
    return batches


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize(("size", "batch_size"), [(10, 4), (7, 7), (3, 5)])
def test_every_subject_once_an_epoch_in_a_new_order(size, batch_size, stratified) -> None:
    ages = ages_of(size)
    batches = EpochBatches(ages, batch_size, 1, stratified=stratified)
    epochs = []
    for batches.epoch in range(4):
        read = list(batches)
        assert len(read) == len(batches)
        assert sorted(sum(read, [])) == list(range(size))
        epochs.append(sum(read, []))
    assert len({tuple(order) for order in epochs}) > 1 or size < batch_size  # in one batch the order is nothing
    first = list(at(batches, 0))
    assert list(EpochBatches(ages, batch_size, 1, stratified=stratified)) == first
    assert list(EpochBatches(ages, batch_size, 2, stratified=stratified)) != first or size < 4


def test_an_epoch_goes_on_where_it_stopped() -> None:
    batches = EpochBatches(ages_of(23), 4, 0, stratified=True)
    whole = list(at(batches, 5))
    assert list(at(batches, 5, start=3)) == whole[3:]


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("size", [23, 24, 25, 14])
def test_processes_divide_the_batches_of_one(size, stratified) -> None:
    """In order, evenly, the incomplete last batch included, even if it has fewer subjects than there are processes."""
    one = EpochBatches(ages_of(size), 12, 3, stratified=stratified)
    parts = [EpochBatches(ages_of(size), 4, 3, stratified=stratified, rank=rank, world_size=3) for rank in range(3)]
    for epoch in (0, 1):
        for batches in (one, *parts):
            batches.epoch = epoch
        assert [len(batches) for batches in parts] == [len(one)] * 3
        together = [sum(own, []) for own in zip(*parts, strict=True)]
        assert together == list(one)
        assert [sum(own, []) for own in zip(*(batches.even() for batches in parts), strict=True)] == one.even()
        for index, own in enumerate(zip(*parts, strict=True)):
            assert [len(part) for part in own] == parts[0].share(index).sizes
            assert max(map(len, own)) - min(map(len, own)) <= 1


def test_a_small_last_batch_may_be_left_out() -> None:
    sizes = {least: [len(batch) for batch in EpochBatches(ages_of(23), 5, 0, least=least)] for least in (1, 3, 4, 5)}
    assert sizes == {1: [5, 5, 5, 5, 3], 3: [5, 5, 5, 5, 3], 4: [5] * 4, 5: [5] * 4}
    assert [len(part) for part in EpochBatches(ages_of(23), 5, 0, least=3).even()] == [5, 5, 5, 4, 4]
    assert [len(part) for part in EpochBatches(ages_of(9), 4, 0, least=4).even()] == [4, 4]


def test_a_process_without_a_part_gets_an_empty_batch(synthetic_cohort) -> None:
    paths = sorted((synthetic_cohort / "valid").iterdir())
    dataset = ScanDataset([Subject(p.name, p, 50.0, 0) for p in paths], ScanStore(VOXEL_SIZE, "brain"))
    batch = to_device(next(iter(make_loader(dataset, [[]], 0, torch.device("cpu")))), torch.device("cpu"), ["flip"])
    assert batch["volume"].shape == (0, 1, 23, 27, 23)
    assert batch["subject_id"] == []


def test_items_become_normalized_volumes(synthetic_cohort) -> None:
    path = next((synthetic_cohort / "train").iterdir())
    item = ScanDataset([Subject("sub-x", path, 44.25, 1)], ScanStore(VOXEL_SIZE, "brain"))[0]
    assert item["voxels"].shape == (23, 27, 23)
    assert (item["subject_id"], item["sex"], item["chronological_age"]) == ("sub-x", 1, np.float32(44.25))
    volume = to_device(collate([item]), torch.device("cpu"))["volume"]
    assert volume.dtype == torch.float32
    brain = volume > volume.min()
    assert volume[brain].mean().item() == pytest.approx(0, abs=1e-5)
    assert volume[brain].std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_scans_of_unlike_types_go_into_one_batch(tmp_path) -> None:
    volume = small_volume(np.random.default_rng(0), 40)
    paths = [tmp_path / "a.nii", tmp_path / "b.nii"]
    save_scan(paths[0], volume.round().astype(np.uint8), model_grid(VOXEL_SIZE).affine)
    save_scan(paths[1], volume, model_grid(VOXEL_SIZE).affine)
    dataset = ScanDataset([Subject(p.name, p, 50.0, 0) for p in paths], ScanStore(VOXEL_SIZE, "brain"))
    assert [item["voxels"].dtype for item in dataset] == [torch.uint8, torch.float32]
    both = to_device(collate(list(dataset)), torch.device("cpu"))["volume"]
    for index in (0, 1):
        torch.testing.assert_close(both[index], to_device(collate([dataset[index]]), torch.device("cpu"))["volume"][0])


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_keep_order_and_layout(synthetic_cohort, workers) -> None:
    paths = sorted((synthetic_cohort / "valid").iterdir())
    dataset = ScanDataset([Subject(p.name, p, 50.0, 0) for p in paths], ScanStore(VOXEL_SIZE, "brain"))
    loader = make_loader(dataset, [[4, 0], [2]], workers, torch.device("cpu"))
    first, second = (to_device(batch, torch.device("cpu")) for batch in loader)
    assert first["subject_id"] == [paths[4].name, paths[0].name]
    assert first["volume"].shape == (2, 1, 23, 27, 23)
    assert first["volume"].stride(1) == 1  # channels last, which shape alone does not tell for one channel
    torch.testing.assert_close(second["volume"], to_device(collate([dataset[2]]), torch.device("cpu"))["volume"])


@pytest.mark.parametrize(("size", "batch_size"), [(23, 4), (24, 6), (109, 16)])
def test_stratified_batches_cover_the_ages(size, batch_size) -> None:
    ages = ages_of(size)
    batches = list(EpochBatches(ages, batch_size, 0, stratified=True))
    assert sorted(index for batch in batches for index in batch) == list(range(size))
    full = [ages[batch] for batch in batches if len(batch) == batch_size]
    groups = np.array_split(np.sort(ages), batch_size)
    width = max((group.max() - group.min() for group in groups), default=0)
    for one in full:
        assert np.abs(np.sort(one) - [group.mean() for group in groups]).max() < 2.5 * width + 1
    plain = [ages[batch].mean() for batch in EpochBatches(ages, batch_size, 0) if len(batch) == batch_size]
    if len(full) > 2:
        assert np.std([one.mean() for one in full]) < 0.7 * np.std(plain)


def test_stratified_batches_of_processes_cover_the_ages_together() -> None:
    ages = np.linspace(20, 80, 32)
    parts = [list(EpochBatches(ages, 4, 0, stratified=True, rank=rank, world_size=2)) for rank in range(2)]
    for own in zip(*parts, strict=True):
        together = np.sort(ages[[index for batch in own for index in batch]])
        assert np.diff(together).max() < 18
    assert sorted(index for part in parts for batch in part for index in batch) == list(range(32))
