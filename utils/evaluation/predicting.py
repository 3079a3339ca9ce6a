"""Predict every subject of a data set once, with any stage."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from utils.common import distributed
from utils.data.cohort import are_known
from utils.data.dataset import ScanDataset, make_loader, to_device
from utils.data.preparations import describe_preparation, preparation_of
from utils.data.subjects import AGE_FIELDS, Subject, trained_persons
from utils.evaluation.metrics import Predictions

BFLOAT16_CAPABILITY = (8, 0)  # of NVIDIA's Ampere cards; older ones emulate bfloat16, slowly
THREADS = 4  # of the network on a CPU, whatever the machine has


class Predictor(Protocol):
    """What prediction needs of a stage; see `utils.training.stages`."""

    def predict(self, network: Callable[..., torch.Tensor], batch: Any) -> dict[str, torch.Tensor]:
        """Turn a batch into predictions, (B,) tensors by name."""


def uses_bfloat16(device: torch.device, precision: str) -> bool:
    """Tell whether a network runs in bfloat16; ``auto`` means on GPUs that have it in their hardware."""
    if precision != "auto":
        return precision == "bfloat16"
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= BFLOAT16_CAPABILITY


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Run the network in bfloat16 where `uses_bfloat16` says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(device, precision))


@contextmanager
def reproducible() -> Iterator[None]:
    """Make the numbers of a network independent of the number of cores and of the speed of its algorithms."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=torch.backends.cudnn.allow_tf32):
            yield
    finally:
        torch.set_num_threads(threads)


def _singly(batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Divide a batch into batches of one scan."""
    for place in range(len(batch["subject_id"])):
        yield {key: values[place : place + 1] for key, values in batch.items()}


def for_inference(network: Any) -> Any:
    """Return the faster copy of a network that predicts."""
    return network.folded().to(memory_format=torch.channels_last_3d)


def predict_batch(
    network: Any, stage: Predictor, batch: dict[str, Any], device: torch.device, precision: str
) -> dict[str, np.ndarray]:
    """Predict the subjects of a batch, one after another; see `predict`.

    Returns
    -------
    dict of str to (B,) float32 array
    """
    with torch.inference_mode(), autocast(device, precision), reproducible():
        outputs = [stage.predict(network, scan) for scan in _singly(to_device(batch, device))]
    # The device computes on while this process waits only once for it.
    return {key: torch.cat([output[key] for output in outputs]).float().cpu().numpy() for key in outputs[0]}


def predict(
    network: Any,
    stage: Predictor,
    dataset: ScanDataset,
    device: torch.device,
    *,
    batch_size: int,
    num_workers: int,
    precision: str,
    label: str,
) -> Predictions:
    """Predict every subject once: the same scan gets the same numbers, whatever else is predicted.

    Parameters
    ----------
    network : Module, on `device`
        Its method ``folded`` gives the faster one that predicts.
    stage : Predictor
    dataset : ScanDataset of N subjects
    device : torch.device
    batch_size, num_workers : int
        Of each process; how scans are read.
    precision : {"auto", "bfloat16", "float32"}
    label : str
        For the progress bar.

    Returns
    -------
    dict of str to (N,) float32 array, in the order of the dataset
        What the stage predicts, and ``chronological_age``,
        ``first_stage_age``, ``discretized_age`` of the subjects.

    Notes
    -----
    The network gets one scan after another, on a CPU with `THREADS`, on a
    GPU with deterministic algorithms. The last digits of a convolution
    depend on the batch, on the number of threads, and on which algorithm
    was the fastest; a first-stage age between two discretized ages turned
    them into years.
    """
    network = for_inference(network)
    own = range(distributed.rank(), len(dataset), distributed.world_size())
    batches = [list(own[i : i + batch_size]) for i in range(0, len(own), batch_size)]
    loader = make_loader(dataset, batches, min(num_workers, len(batches)), device)
    parts = [
        predict_batch(network, stage, batch, device, precision)
        for batch in tqdm(loader, label, unit="batch", disable=None, leave=False)
    ]
    gathered = distributed.gather_objects((list(own), parts))
    order = np.argsort([index for indices, _ in gathered for index in indices])
    everything = [part for _, parts in gathered for part in parts]
    predictions = {key: np.concatenate([part[key] for part in everything])[order] for key in everything[0]}
    for name in AGE_FIELDS:
        predictions[name] = np.array([getattr(s, name) for s in dataset.subjects], np.float32)
    return predictions


def seen_in_training(subjects: Sequence[Subject], path: Path, checkpoint: Mapping[str, Any]) -> np.ndarray:
    """Return which subjects a network was trained on; warn of them, and of those who chose its epoch.

    Parameters
    ----------
    subjects : sequence of N Subject
    path : Path of the checkpoint, for the warning
    checkpoint : mapping
        One that the authors released does not name its subjects; then all
        count as seen, without a warning.

    Returns
    -------
    (N,) bool array
    """
    if "train_subjects" not in checkpoint:
        return np.ones(len(subjects), dtype=bool)
    seen = {}
    for key, use in (("train", "train"), ("valid", "choose the epoch of")):
        seen[key] = are_known(subjects, trained_persons(checkpoint, key))
        if seen[key].any():
            print(
                f"WARNING: {seen[key].sum()} of {len(subjects)} subjects, such as "
                f"{subjects[int(seen[key].argmax())].subject_id}, were used to {use} {path}; "
                "the errors below are smaller than on new subjects"
            )
    return seen["train"]


def warn_of_preparation(subjects: Sequence[Subject], path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Warn of scans that were prepared in another way than the training scans.

    Parameters
    ----------
    subjects : sequence of Subject
    path : Path of the checkpoint, for the warning
    checkpoint : mapping
        An older one does not know how its scans were prepared; then nothing is said.
    """
    expected = checkpoint.get("preprocessing", [])
    others = [subject for subject in subjects if preparation_of(subject.path) not in expected]
    if others and expected:
        print(
            f"WARNING: {len(others)} of {len(subjects)} scans, such as {others[0].subject_id}, were prepared "
            f"{describe_preparation(preparation_of(others[0].path))}; the training scans of {path}, "
            f"{' or '.join(map(describe_preparation, expected))}; the brain ages may be off"
        )
