"""The training loop of both stages, and prediction with either."""

import csv
import math
import platform
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from utils.common import distributed
from utils.common.checkpoints import load_checkpoint, save_checkpoint
from utils.common.errors import InputError
from utils.common.files import check_writable, replacing, write_json
from utils.data.dataset import EpochBatches, ScanDataset, make_loader, to_device
from utils.data.subjects import AGE_FIELDS
from utils.evaluation.metrics import Predictions
from utils.evaluation.reports import plot_ages

# Flags that may differ between a run and its continuation.
FREE_ON_RESUME = ("resume", "num_workers", "device", "save_every_steps", "output_dir", "activation_checkpointing",
                  "train_folder", "valid_folder", "test_folder", "label_table", "cache_folder",
                  "first_stage_checkpoint", "discretized_age_folder", "sorter")  # fmt: skip
SPEEDS = ("scans_per_second", "waiting_for_data")
PACKAGES = ("torch", "numpy", "scipy", "nibabel", "pandas", "tensorboard")


class Stage(Protocol):
    """What the engine needs of a stage; see `utils.training.stages`."""

    def predict(self, network: Callable[..., torch.Tensor], batch: Any) -> dict[str, torch.Tensor]:
        """Turn a batch into predictions."""

    def disturb(self, batch: dict[str, Any], seed: Sequence[int]) -> dict[str, Any]:
        """Change what else than the volume a training batch tells the network."""

    def report(self, predictions: Predictions) -> tuple[dict[str, float], str]:
        """Turn predictions into scalars and a warning."""


class Criterion(Protocol):
    """What the engine needs of a loss; see `model.ranking.CascadeLoss`."""

    @property
    def batch_size(self) -> int | None:
        """The one number of subjects in a step that it takes, or None for any."""

    def __call__(
        self, brain_age: torch.Tensor, chronological_age: torch.Tensor, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Compute ``loss`` and its parts."""


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Let the network run in bfloat16 where asked for; ``auto`` asks for it on CUDA."""
    enabled = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def predict(
    network: Any, stage: Stage, dataset: ScanDataset, args: Namespace, device: torch.device, label: str
) -> Predictions:
    """Predict every subject once.

    Parameters
    ----------
    network : Module, on `device`
        Its method ``folded`` gives the faster one that predicts.
    stage : Stage
    dataset : ScanDataset of N subjects
    args : Namespace with ``batch_size``, ``num_workers``, ``precision``
    device : torch.device
    label : str
        For the progress bar.

    Returns
    -------
    dict of str to (N,) float32 array, in the order of the dataset
        What the stage predicts, and ``chronological_age``,
        ``first_stage_age``, ``discretized_age`` of the subjects.
    """
    network = network.folded().to(memory_format=torch.channels_last_3d)
    own = range(distributed.rank(), len(dataset), distributed.world_size())
    batches = [list(own[i : i + args.batch_size]) for i in range(0, len(own), args.batch_size)]
    loader = make_loader(dataset, batches, min(args.num_workers, len(batches)), device)
    parts: list[dict[str, np.ndarray]] = []
    with torch.inference_mode(), autocast(device, args.precision):
        for batch in tqdm(loader, label, unit="batch", disable=None, leave=False):
            outputs = stage.predict(network, to_device(batch, device))
            parts.append({key: value.float().cpu().numpy() for key, value in outputs.items()})
    gathered = distributed.gather_objects((list(own), parts))
    order = np.argsort([index for indices, _ in gathered for index in indices])
    everything = [part for _, parts in gathered for part in parts]
    predictions = {key: np.concatenate([part[key] for part in everything])[order] for key in everything[0]}
    for name in AGE_FIELDS:
        predictions[name] = np.array([getattr(s, name) for s in dataset.subjects], np.float32)
    return predictions


def check_run_folder(folder: Path, resume: bool) -> None:
    """Refuse a folder that cannot be written, or holds a run that is not to be resumed."""
    check_writable(folder)
    held = [name for name in ("last.pt", "best.pt", "metrics.csv") if (folder / name).exists()]
    if held and not resume:
        raise InputError(
            f"{folder}: holds a run already ({', '.join(held)}); set another OUTPUT_DIR (--output_dir), "
            "or go on with it by --resume"
        )


class Training:
    """Train a network; keep the weights of the best validation MAE, or of the last epoch.

    Parameters
    ----------
    network : Module
    stage : Stage
    criterion : Criterion
    train_set, valid_set : ScanDataset
        Without validation subjects the last epoch's weights are kept.
    folder : Path
        Of the run: ``best.pt``, ``last.pt``, ``metrics.csv``,
        ``hyperparameters.json`` and TensorBoard's events go here.
    args : Namespace
        The flags of a training script; see `utils.options.everything`.
    device : torch.device
    identity : dict
        What the checkpoint must say of itself besides weights.

    Raises
    ------
    InputError
        If the folder holds a run and `args.resume` is not set, or if other
        flags are given on resuming.

    Notes
    -----
    The state lies in the attributes, which `save` writes and `resume` reads
    back.
    """

    def __init__(
        self,
        network: Any,
        stage: Stage,
        criterion: Criterion,
        train_set: ScanDataset,
        valid_set: ScanDataset,
        folder: Path,
        args: Namespace,
        device: torch.device,
        identity: dict[str, Any],
    ) -> None:
        self.network = network.to(device, memory_format=torch.channels_last_3d)
        self.parallel = distributed.wrap(compiled(self.network, device) if args.compile else self.network)
        self.stage, self.criterion = stage, criterion
        self.train_set, self.valid_set = train_set, valid_set
        self.folder, self.args, self.device = folder, args, device
        self.identity = identity
        self.last_path, self.best_path = folder / "last.pt", folder / "best.pt"
        self.optimizer = make_optimizer(network.parameters(), args)
        self.scheduler = make_scheduler(self.optimizer, args)
        self.batches = EpochBatches(
            len(train_set), args.batch_size, args.seed, distributed.rank(), distributed.world_size(),
            drop_last=criterion.batch_size is not None,
            ages=np.array([subject.chronological_age for subject in train_set.subjects])
            if args.batches == "stratified" else None,
        )  # fmt: skip
        self._check_batches(len(valid_set))
        self.generator = torch.Generator().manual_seed(args.seed)
        self.epoch = 0  # the epoch that is under way
        self.step = 0  # batches of it that are done
        self.sums: dict[str, float] = {}  # over the subjects of these batches
        self.waited = 0.0  # seconds of the epoch, for data
        self.best = [True, math.inf]  # whether the stage warned, and the MAE, of the best epoch
        self.epochs_without_gain = 0
        self.history: list[dict[str, float]] = []
        if self.last_path.exists():
            self.resume()

    def _check_batches(self, valid_size: int) -> None:
        """Refuse sizes with which no step, or no ranking, could be computed."""
        joint = self.args.batch_size * distributed.world_size()
        needed = self.criterion.batch_size
        if needed is not None and joint != needed:
            raise InputError(
                f"--batch_size: {joint} subjects in a step, but the sorter ranks {needed}; "
                f"set BATCH_SIZE so that all processes together have {needed}, or use --ranking soft"
            )
        if needed is not None and 0 < valid_size < needed:
            print(f"note: {valid_size} validation subjects are too few for the sorter, so only their MAE is computed")
        if len(self.batches) == 0:
            raise InputError(
                f"--train_folder: {len(self.train_set)} subjects do not fill one batch of {joint}; "
                "lower BATCH_SIZE (--batch_size)"
            )

    @property
    def finished(self) -> bool:
        """Whether the last epoch is done or early stopping has struck."""
        stalled = self.epochs_without_gain >= self.args.early_stopping_epochs
        return self.epoch >= self.args.epochs or (stalled and self.args.keep == "best")

    def resume(self) -> None:
        """Go back to the state that `save` wrote."""
        check_run_folder(self.folder, self.args.resume)
        state = load_checkpoint(self.last_path)
        if self.args.keep == "last" and state["epoch"] > self.args.epochs:
            raise InputError(f"{self.last_path}: has {state['epoch']} epochs already; raise EPOCHS (--epochs) to that")
        now = self._flags()
        free = {*FREE_ON_RESUME, *(["epochs"] if self.args.scheduler != "cosine" else [])}
        changed = [
            f"--{name} was {state['flags'][name]}, is {now.get(name)}"
            for name in state["flags"]
            if name not in free and state["flags"][name] != now.get(name)
        ]
        if changed or any(state.get(name) != value for name, value in self.identity.items()):
            raise InputError(
                f"{self.last_path}: was made by a run with other "
                + (f"flags ({'; '.join(changed)})" if changed else "data (its subjects or ages differ)")
                + "; resume with the same ones, or start anew in another OUTPUT_DIR (--output_dir)"
            )
        self.network.load_state_dict(state["state_dict"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        for name in ("epoch", "step", "sums", "best", "epochs_without_gain", "history"):
            setattr(self, name, state[name])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_random"])
        if self.device.type == "cuda" and state["cuda_random"] is not None:
            torch.cuda.set_rng_state(state["cuda_random"], self.device)

    def _flags(self) -> dict[str, Any]:
        """Return what must be the same when the run goes on."""
        return {**flags_of(self.args), "processes": distributed.world_size()}

    def save(self) -> None:
        """Write ``last.pt``, from which the run can go on bit for bit."""
        if distributed.rank():
            return
        save_checkpoint(
            self.last_path,
            {
                **self.identity,
                "flags": self._flags(),
                "state_dict": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "epoch": self.epoch,
                "step": self.step,
                "sums": self.sums,
                "best": self.best,
                "epochs_without_gain": self.epochs_without_gain,
                "history": self.history,
                "generator": self.generator.get_state(),
                "torch_random": torch.get_rng_state(),
                "cuda_random": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            },
        )

    def fit(self) -> Path:
        """Train until done; return the path of ``best.pt``.

        Raises
        ------
        InputError
            If a loss, a gradient or a validation age is not finite.
        """
        if not self.finished:
            self.run()
        distributed.barrier()
        return self.best_path

    def run(self) -> None:
        """Train epoch by epoch until done."""
        args = self.args
        if distributed.rank() == 0:
            write_json(self.folder / "hyperparameters.json", {**flags_of(args), **describe_run(self.device)})
        loader = make_loader(self.train_set, self.batches, args.num_workers, self.device)
        if self.network.trunk.lacks_statistics:
            self.network.trunk.take_statistics(self.every_scan())
            distributed.average_statistics(self.network)
        with _writer(self.folder, self.epoch) as writer:
            while not self.finished:
                started, done, self.waited = time.perf_counter(), self.sums.get("subjects", 0.0), 0.0
                self.train_epoch(loader)
                seconds = time.perf_counter() - started
                count = self.sums["subjects"]
                row = {"epoch": float(self.epoch), "learning_rate": self.optimizer.param_groups[0]["lr"]}
                row |= {f"train/{key}": total / count for key, total in self.sums.items() if key != "subjects"}
                if args.recalibrate and (self.valid_set or self.epoch + 1 >= args.epochs):
                    self.recalibrate()
                predictions: Predictions = {}
                own: dict[str, float] = {}
                warning = ""
                if self.valid_set:
                    predictions = predict(self.network, self.stage, self.valid_set, args, self.device, "validation")
                    if not np.isfinite(predictions["brain_age"]).all():
                        self.stop("brain ages of the validation split are not finite")
                    own, warning = self.stage.report(predictions)
                    scalars = self.validate(predictions) | own
                    row |= {f"valid/{key}": value for key, value in scalars.items()}
                row |= {"scans_per_second": (count - done) / seconds, "waiting_for_data": self.waited / seconds}
                notes = "".join(f"  {key} {value:.2f}" for key, value in own.items())
                self.finish_epoch(row, predictions, notes, warning, writer)
            best = self.history[-1]
            if args.keep == "best":
                best = next(row for row in self.history if row["valid/mae"] == self.best[1])
            writer.add_hparams(
                {
                    key: value if isinstance(value, int | float | bool) else str(value)
                    for key, value in flags_of(args).items()
                },
                {f"best/{key}": value for key, value in best.items() if key not in SPEEDS},
                run_name=".",
            )

    def train_epoch(self, loader: Any) -> None:
        """Take the steps that remain of the epoch under way."""
        self.network.train()
        self.batches.epoch, self.batches.start = self.epoch, self.step
        bar = tqdm(
            loader, f"epoch {self.epoch + 1}/{self.args.epochs}", total=len(self.batches), initial=self.step,
            unit="batch", disable=None if distributed.rank() == 0 else True, leave=False,
        )  # fmt: skip
        batches = iter(bar)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                break
            values, count = self.train_step(batch)
            for key, value in values.items():
                self.sums[key] = self.sums.get(key, 0.0) + value * count
            self.sums["subjects"] = self.sums.get("subjects", 0.0) + count
            bar.set_postfix(loss=f"{values['loss']:.3g}", mae=f"{values['mae']:.2f}", refresh=False)
            self.step += 1
            if self.step % self.saving_interval == 0 and self.step < len(self.batches):
                self.save()
        distributed.share_buffers(self.network)

    def recalibrate(self) -> None:
        """Take the running statistics of batch norm anew from the training scans, unchanged by augmentation.

        During training they lag behind the weights, and what they measure
        is augmented. With few steps an epoch, estimates are then off by
        years, all in one direction.
        """
        self.network.train()
        with autocast(self.device, self.args.precision):
            update_bn(self.every_scan(), self.network.trunk)
        distributed.average_statistics(self.network)

    def every_scan(self) -> Iterator[torch.Tensor]:
        """Yield the training volumes that fall to this process, unchanged, in batches of the same size, but for one."""
        self.batches.start = 0  # all of them, also where the epoch was resumed
        order = np.concatenate(list(self.batches))
        even = [part.tolist() for part in np.array_split(order, len(self.batches))]  # which count the same
        for batch in make_loader(self.train_set, even, min(self.args.num_workers, 2), self.device):
            yield to_device(batch, self.device)["volume"]

    @property
    def saving_interval(self) -> int:
        """Batches between two savings: no gradient is half accumulated then."""
        accumulation = self.args.accumulation_steps
        return accumulation * math.ceil(self.args.save_every_steps / accumulation)

    def train_step(self, batch: dict[str, Any]) -> tuple[dict[str, float], int]:
        """Learn from a batch; return the losses and the MAE, and the number of subjects."""
        seed = self.args.seed, self.epoch, self.step, distributed.rank()
        batch = self.stage.disturb(to_device(batch, self.device, self.args.augmentation, seed), seed)
        with autocast(self.device, self.args.precision):
            brain_age = self.stage.predict(self.parallel, batch)["brain_age"]
        brain_age = distributed.gather(brain_age)
        age = distributed.gather(batch["chronological_age"])
        losses = self.criterion(brain_age, age, self.generator)
        part = self.step % self.args.accumulation_steps
        parts = min(self.args.accumulation_steps, len(self.batches) - self.step + part)
        if part == 0:
            self.optimizer.zero_grad(set_to_none=True)
        (losses["loss"] * distributed.world_size() / parts).backward()  # processes average their gradients
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        scalars = {key: value.detach() for key, value in losses.items()}
        scalars |= {"mae": (brain_age.detach() - age).abs().mean(), "norm": nn.utils.get_total_norm(gradients)}
        values = dict(zip(scalars, torch.stack([*scalars.values()]).tolist(), strict=True))  # waits for the device
        if not math.isfinite(values["loss"]):
            self.stop(f"the loss is {values['loss']}", batch)
        if not math.isfinite(values.pop("norm")):
            self.stop("a gradient is not finite", batch)
        if part + 1 == parts:
            self.optimizer.step()
        return values, len(age)

    def stop(self, what: str, batch: dict[str, Any] | None = None) -> NoReturn:
        """End the run before anything that is not finite gets into a checkpoint."""
        where = f"{what} in epoch {self.epoch + 1}"
        if batch:
            names = [name for part in distributed.gather_objects(batch["subject_id"]) for name in part]
            where += f", batch {self.step + 1}, with the subjects {', '.join(names)}; look at their scans and ages"
        kept = f"{self.last_path} holds the last good state" if self.last_path.exists() else "nothing was saved yet"
        raise InputError(f"{where}; lower --learning_rate; {kept}")

    def validate(self, predictions: Predictions) -> dict[str, float]:
        """Compute the losses and the MAE of the validation split."""
        brain_age = torch.from_numpy(predictions["brain_age"])
        age = torch.from_numpy(predictions["chronological_age"])
        size = self.args.batch_size * distributed.world_size()
        generator = torch.Generator().manual_seed(self.args.seed)
        totals: dict[str, float] = {}
        count = 0
        for part, target in zip(brain_age.split(size), age.split(size), strict=True):
            if self.criterion.batch_size in (None, len(part)):
                losses = self.criterion(part.to(self.device), target.to(self.device), generator)
                for key, value in losses.items():
                    totals[key] = totals.get(key, 0.0) + value.item() * len(part)
                count += len(part)
        scalars = {key: total / count for key, total in totals.items()}
        scalars["mae"] = (brain_age - age).abs().mean().item()
        return scalars

    def finish_epoch(
        self, row: dict[str, float], predictions: Predictions, notes: str, warning: str, writer: Any
    ) -> None:
        """Adapt the learning rate, keep the best weights, write everything down.

        The best epoch is that of the lowest validation MAE; one of which the
        stage warns, as having collapsed, is never better than one without.
        """
        epoch, mae = self.epoch, row.get("valid/mae", math.inf)
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(mae)
        else:
            self.scheduler.step()
        place = [bool(warning), mae]
        improved = place < self.best if self.args.keep == "best" else epoch + 1 >= self.args.epochs
        self.epochs_without_gain = 0 if improved else self.epochs_without_gain + 1
        self.best = min(place, self.best)
        self.history.append(row)
        self.epoch, self.step, self.sums = epoch + 1, 0, {}
        if distributed.rank() == 0:
            for key, value in row.items():
                if key != "epoch":
                    writer.add_scalar(key, value, epoch)
            if predictions and (improved or self.finished):
                figure = plot_ages(
                    predictions["chronological_age"], predictions["brain_age"], f"Validation, epoch {epoch + 1}"
                )
                writer.add_figure("valid/brain_age", figure, epoch)
            writer.flush()
            self._write_history()
            if improved:
                save_checkpoint(
                    self.best_path,
                    {
                        **self.identity,
                        "state_dict": self.network.state_dict(),
                        "epoch": epoch,
                        "valid_mae": row.get("valid/mae"),
                    },
                )
            mark = " (best)" if improved and self.args.keep == "best" else ""
            tqdm.write(_describe_epoch(row, self.args.epochs, mark) + notes + (warning and f"\n{warning}"))
        self.save()

    def _write_history(self) -> None:
        """Write ``metrics.csv``, a row for each epoch."""
        with replacing(self.folder / "metrics.csv") as temporary, temporary.open("w", newline="") as file:
            columns = list(dict.fromkeys(key for row in self.history for key in row))
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows(self.history)


def compiled(network: nn.Module, device: torch.device) -> nn.Module:
    """Fuse a network's pointwise chains by torch.compile, or say why that cannot be done here."""
    try:
        torch.compile(torch.nn.functional.elu)(torch.zeros(8, device=device))
    except Exception as error:  # no compiler, or one that fails: of many types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if distributed.rank() == 0:
            print(f"note: torch.compile does not work here ({reason}); training goes on without it", flush=True)
        return network
    return torch.compile(network)  # type: ignore[return-value]


def make_optimizer(parameters: Any, args: Namespace) -> torch.optim.Optimizer:
    """Make the optimizer that the flags name; it updates all weights in one pass over them."""
    options = {"lr": args.learning_rate, "weight_decay": args.weight_decay, "fused": True}
    if args.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=args.momentum, **options)
    kind = torch.optim.AdamW if args.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, amsgrad=args.amsgrad, **options)


def make_scheduler(optimizer: torch.optim.Optimizer, args: Namespace) -> Any:
    """Make the schedule that the flags name, in steps of epochs."""
    if args.scheduler == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=args.plateau_factor, patience=args.plateau_epochs, min_lr=args.minimum_learning_rate
        )
    lowest = args.minimum_learning_rate / args.learning_rate

    def factor(epoch: int) -> float:
        if epoch < args.warmup_epochs:
            return (epoch + 1) / (args.warmup_epochs + 1)
        if args.scheduler == "constant":
            return 1.0
        part = (epoch - args.warmup_epochs) / max(1, args.epochs - args.warmup_epochs)
        return lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * min(1.0, part)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def flags_of(args: Namespace) -> dict[str, Any]:
    """Return the flags as plain values."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}


def describe_run(device: torch.device) -> dict[str, Any]:
    """Tell versions, device, command and git commit."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "missing"
    root = Path(__file__).resolve().parents[2]
    commit = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ) if (root / ".git").exists() else None  # fmt: skip
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "versions": versions,
        "device_name": name,
        "world_size": distributed.world_size(),
        "command": sys.argv,
        "git_commit": commit.stdout.strip() if commit and commit.returncode == 0 else None,
    }


class _NoWriter:
    """Stands for a `SummaryWriter` in the processes that write nothing."""

    def __enter__(self) -> "_NoWriter":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def add_hparams(self, *args: Any, **options: Any) -> None:
        pass


def _writer(folder: Path, epoch: int) -> Any:
    """Open TensorBoard's writer; what it holds of `epoch` and later is void."""
    if distributed.rank():
        return _NoWriter()
    return SummaryWriter(str(folder), purge_step=epoch)


def _describe_epoch(row: dict[str, float], epochs: int, mark: str) -> str:
    """Say one epoch in a line."""
    valid = f" valid {row['valid/mae']:.2f}" if "valid/mae" in row else ""
    return (
        f"epoch {int(row['epoch']) + 1:>3}/{epochs}  loss {row['train/loss']:.2f}  "
        f"MAE train {row['train/mae']:.2f}{valid} years{mark}  "
        f"learning rate {row['learning_rate']:.1e}  {row['scans_per_second']:.1f} scans/s"
    )
