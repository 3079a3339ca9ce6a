"""The state of a run: how far it is, how it is saved, how it goes on."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.common import distributed
from utils.common.checkpoints import Check, list_of, load_checkpoint, save_checkpoint
from utils.common.errors import UNWRITABLE, InputError
from utils.common.interruption import CONTINUE
from utils.data.preparations import preparations_of
from utils.data.subjects import Subject, person_of
from utils.training.run_folder import BEST

# Flags that may differ between a run and its continuation, and what depends on the folders that they name.
FREE_ON_RESUME = (
    "resume", "num_workers", "device", "save_every_steps", "output_dir", "activation_checkpointing",
    "train_folder", "valid_folder", "test_folder", "label_table", "cache_folder",
    "first_stage_checkpoint", "discretized_age_folder", "sorter", "preprocessing",
)  # fmt: skip


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def _is_state(value: Any) -> bool:
    return isinstance(value, dict)


NEEDED: dict[str, Check] = {  # in ``last.pt``, besides what describes the network, and a check of each
    **dict.fromkeys(("flags", "optimizer", "scheduler", "sums"), _is_state),
    **dict.fromkeys(("epoch", "step", "epochs_without_gain"), _is_count),
    **dict.fromkeys(("generator", "torch_random"), torch.is_tensor),
    "best": lambda value: isinstance(value, list) and len(value) == 2,
    "history": list_of(_is_state),
}


@dataclass
class Progress:
    """How far a run is.

    Parameters
    ----------
    epoch : int
        The current one, from 0.
    step : int
        Batches of it already processed.
    sums : dict of str to float
        Of the losses over the subjects of these batches, and ``subjects``.
    best : [bool, float]
        Whether the stage warned of the best epoch, and its validation MAE, years.
    epochs_without_gain : int
    history : list of dict of str to float
        Each finished epoch's scalars.
    """

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best: list[Any] = field(default_factory=lambda: [True, math.inf])
    epochs_without_gain: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    def best_row(self, keep: str) -> dict[str, float]:
        """Return the scalars of the epoch whose weights are kept."""
        if keep == "last":
            return self.history[-1]
        return next(row for row in self.history if row["valid/mae"] == self.best[1])


@dataclass(frozen=True)
class RunState:
    """Everything of a run that ``last.pt`` holds, so that it can go on bit for bit.

    Parameters
    ----------
    path : Path of ``last.pt``
    identity : mapping of plain values
        What the run is about; see `describe_checkpoint`.
    flags : mapping of plain values
        Of the command line.
    network, optimizer, scheduler
    progress : Progress
    generator : torch.Generator
        Of the random pairs.
    device : torch.device
    """

    path: Path
    identity: Mapping[str, Any]
    flags: Mapping[str, Any]
    network: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    progress: Progress
    generator: torch.Generator
    device: torch.device

    def save(self) -> None:
        """Write ``last.pt``, in the first of several processes."""
        if distributed.rank():
            return
        save_checkpoint(
            self.path,
            {
                **self.identity,
                "flags": self._all_flags(),
                "state_dict": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                **vars(self.progress),
                "generator": self.generator.get_state(),
                "torch_random": torch.get_rng_state(),
                "cuda_random": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            },
        )

    def resume(self) -> None:
        """Go back to the state that ``last.pt`` holds.

        Raises
        ------
        InputError
            If it is of a run with other flags, subjects or ages, has more
            epochs than are asked for, or has lost its ``best.pt``.
        """
        state = load_checkpoint(self.path)
        lacking = sorted(name for name, usable in NEEDED.items() if not usable(state.get(name)))
        if lacking:
            raise InputError(
                f"{self.path}: does not say how far a run is (it lacks a usable {lacking[0]}); start a new run in "
                "another OUTPUT_DIR (--output_dir)"
            )
        flags, before = self._all_flags(), state["flags"]
        lowered = before.get("epochs") != flags["epochs"] <= state["epoch"]
        if flags["keep"] == "last" and lowered:
            raise InputError(f"{self.path}: has {state['epoch']} epochs already; raise EPOCHS (--epochs) to that")
        free = {*FREE_ON_RESUME, *(["epochs"] if flags["scheduler"] != "cosine" else [])}
        if before.get("processes") != flags["processes"] and _joint_batch(before) == _joint_batch(flags):
            if state["step"]:
                raise InputError(
                    f"{self.path}: was saved within an epoch of {before['processes']} processes; go on with as many, "
                    "and change their number after an epoch's end"
                )
            free |= {"processes", "batch_size"}
        changed = [
            f"--{name} was {value}, is {flags.get(name)}"
            for name, value in before.items()
            if name not in free and value != flags.get(name)
        ]
        if changed or any(
            state.get(name, []) != value for name, value in self.identity.items() if name not in FREE_ON_RESUME
        ):
            raise InputError(
                f"{self.path}: was made by a run with other "
                + (f"flags ({'; '.join(changed)})" if changed else "data (its subjects or ages differ)")
                + "; resume with the same ones, or start a new run in another OUTPUT_DIR (--output_dir)"
            )
        best, last = self.path.with_name(BEST), flags["keep"] == "last"
        if state["epoch"] >= (flags["epochs"] if last else 1) and not best.exists():
            raise InputError(
                f"{best}: is gone, though {self.path} has {state['epoch']} epochs; put it back, or start a new run in "
                "another OUTPUT_DIR (--output_dir)"
            )
        try:
            self._restore(state)
            if "processes" in free and distributed.rank() == 0:
                print(
                    f"note: {self.path}: goes on with {flags['processes']} instead of {before['processes']} processes; "
                    f"the joint batch stays at {_joint_batch(flags)} scans"
                )
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:  # of states of another form
            raise InputError(
                f"{self.path}: holds a state that does not fit this run ({type(error).__name__}); start a new run in "
                "another OUTPUT_DIR (--output_dir)"
            ) from error

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Take over everything that ``last.pt`` holds."""
        self.network.load_state_dict(state["state_dict"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        for part in fields(Progress):
            setattr(self.progress, part.name, state[part.name])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_random"])
        if self.device.type == "cuda" and state.get("cuda_random") is not None:
            torch.cuda.set_rng_state(state["cuda_random"], self.device)

    @property
    def kept(self) -> str:
        """What is left of the run, in words."""
        return f"{self.path} holds the last good state" if self.path.exists() else "nothing was saved yet"

    @contextmanager
    def explained_failures(self) -> Iterator[None]:
        """Turn a failed write into an `InputError` that says what is left of the run."""
        try:
            yield
        except OSError as error:
            if error.errno not in UNWRITABLE:
                raise
            raise InputError(
                f"{error.filename or self.path.parent}: cannot be written ({error.strerror}); free some space or "
                f"change the permissions; {self.kept}: {CONTINUE}"
            ) from error

    def _all_flags(self) -> dict[str, Any]:
        return {**self.flags, "processes": distributed.world_size()}


def _joint_batch(flags: Mapping[str, Any]) -> Any:
    """Return the scans in a batch of all processes together; None where the flags do not tell."""
    counts = [flags.get(name) for name in ("processes", "batch_size")]
    return math.prod(counts) if all(map(_is_count, counts)) else None


def describe_checkpoint(
    network: Mapping[str, Any],
    voxel_size: int,
    normalization: str,
    age_interval: float,
    train_subjects: Sequence[Subject],
    choosing_subjects: Sequence[Subject],
    first_stage_sha256: str | None = None,
    initial_subjects: Sequence[str] = (),
) -> dict[str, Any]:
    """Collect what a checkpoint must say of itself besides its weights.

    Parameters
    ----------
    network : mapping
        The fields of the network's configuration.
    voxel_size : int, mm
    normalization : str
    age_interval : float, years
    train_subjects : sequence of Subject
    choosing_subjects : sequence of Subject
        Validation subjects that choose the epoch or the learning rate.
    first_stage_sha256 : str, for a second stage
    initial_subjects : sequence of str
        On whom the initial weights were trained.

    Returns
    -------
    dict of plain values
    """
    second = {}
    if first_stage_sha256 is not None:
        second = {
            "first_stage_sha256": first_stage_sha256,
            "train_discretized_ages": [subject.discretized_age for subject in train_subjects],
        }
    return {
        "network": dict(network),
        "voxel_size": voxel_size,
        "normalization": normalization,
        "age_interval": age_interval,
        "train_subjects": [subject.subject_id for subject in train_subjects],
        "train_persons": _named_persons(train_subjects),
        "train_ages": [subject.chronological_age for subject in train_subjects],
        "train_sexes": [subject.sex for subject in train_subjects],
        "valid_subjects": [subject.subject_id for subject in choosing_subjects],
        "valid_persons": _named_persons(choosing_subjects),
        "valid_ages": [subject.chronological_age for subject in choosing_subjects],
        "initial_subjects": list(initial_subjects),
        "preprocessing": preparations_of(subject.path for subject in train_subjects),
        **second,
    }


def _named_persons(subjects: Sequence[Subject]) -> list[str]:
    """Return the persons whose names the subject ids do not contain."""
    return sorted({subject.person for subject in subjects if subject.person != person_of(subject.subject_id)})
