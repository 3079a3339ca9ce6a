"""Estimate brain ages: worker processes check and read each scan, once, while the network works."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from model.cascade import Cascade
from utils.common.errors import InputError
from utils.common.machine import usable_cores
from utils.data.dataset import collate, item_of
from utils.data.images import read_brain
from utils.data.loading import WorkerLoader
from utils.data.scans import ScanStore
from utils.evaluation.predicting import for_inference, predict_batch
from utils.prediction.journal import Journal
from utils.prediction.likeness import TypicalVolumes, measure_distance
from utils.prediction.scan_ages import PredictedScan
from utils.prediction.scan_preparation import Checked, check_scan
from utils.training.stages import FirstStage


class Finding(NamedTuple):
    """What a worker tells of a scan besides its voxels.

    Parameters
    ----------
    usable : bool
        Whether there are voxels; if not, the scan is raw or has failed.
    failure : str
    warnings : tuple of str
    distance : float
        Of `utils.prediction.likeness.measure_distance`.
    """

    usable: bool
    failure: str = ""
    warnings: tuple[str, ...] = ()
    distance: float = np.nan


class _Examination(Dataset[Any]):
    """What is found in scans, and their voxels as `utils.data.dataset.ScanDataset` has them."""

    def __init__(self, scans: Sequence[PredictedScan], store: ScanStore, typical: TypicalVolumes) -> None:
        self.scans, self.store, self.typical = scans, store, typical

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, index: int) -> tuple[Finding, dict[str, Any] | None]:
        scan = self.scans[index]
        try:
            # Preprocessing has judged the brains that it made.
            checked = Checked(read_brain(scan.prepared, 2)) if scan.prepared else check_scan(scan.source)
            if checked.brain is None:
                return Finding(False, checked.failure, checked.warnings), None
            item = item_of(scan.subject, self.store.encode(checked.brain))
        except InputError as error:
            return Finding(False, str(error)), None
        return Finding(True, "", checked.warnings, measure_distance(item, self.typical)), item


def _join(examined: list[tuple[Finding, dict[str, Any] | None]]) -> dict[str, Any]:
    """Join the voxels of the usable scans to a batch, and add all findings."""
    items = [item for _, item in examined if item is not None]
    return (collate(items) if items else {}) | {"findings": [finding for finding, _ in examined]}


@dataclass(frozen=True)
class Estimator:
    """Estimates brain ages of prepared scans.

    Parameters
    ----------
    network : Cascade, on `device`
    store : ScanStore
        Of the network's grid and normalization.
    typical : TypicalVolumes
    device : torch.device
    batch_size, num_workers : int
        How scans are read.
    precision : {"auto", "bfloat16", "float32"}
    """

    network: Cascade
    store: ScanStore
    typical: TypicalVolumes
    device: torch.device
    batch_size: int
    num_workers: int
    precision: str

    def estimate(self, scans: Sequence[PredictedScan], journal: Journal) -> None:
        """Estimate the brain ages of the scans that have none yet; raw ones are left as they are.

        Parameters
        ----------
        scans : sequence of PredictedScan, changed in place
            Get brain ages, distances, warnings and failures.
        journal : Journal
            Estimates in it are taken from it, others are added.
        """
        waiting = [scan for scan in scans if not scan.failure and not np.isfinite(scan.brain_age)]
        keys = {scan.name: journal.key_of(scan.subject.path, scan.sex) for scan in waiting}
        rest = [scan for scan in waiting if not _recall(scan, journal.estimates.get(keys[scan.name]))]
        if len(rest) < len(waiting):
            print(f"{len(waiting) - len(rest)} of {len(waiting)} scans have estimates of a call that was stopped")
        loader = WorkerLoader(
            _Examination(rest, self.store, self.typical),
            min(self.num_workers, -(-len(rest) // self.batch_size), usable_cores()),
            _join,
            batch_size=self.batch_size,
            pin_memory=self.device.type == "cuda",
        )
        network, stage, examined = for_inference(self.network), FirstStage(), iter(rest)
        with tqdm(total=len(rest), desc="brain age", unit="scan", disable=None, leave=False) as bar:
            for batch in loader:
                findings = batch.pop("findings")
                ages = predict_batch(network, stage, batch, self.device, self.precision)["brain_age"] if batch else ()
                estimates = iter(ages)
                for finding, scan in zip(findings, examined, strict=False):
                    scan.failure = finding.failure
                    if finding.usable:
                        estimated = {"brain_age": float(next(estimates)), **finding._asdict()}
                        _recall(scan, estimated)
                        journal.add(keys[scan.name], estimated)
                bar.update(len(findings))


def _recall(scan: PredictedScan, estimated: dict[str, Any] | None) -> bool:
    """Set what is known of a scan; return whether anything is."""
    if estimated is None:
        return False
    scan.prepared = scan.prepared or scan.source
    scan.brain_age, scan.distance = estimated["brain_age"], estimated["distance"]
    scan.warnings += estimated["warnings"]
    return True
