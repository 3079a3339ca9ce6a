"""The training loop of both stages."""

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from utils.common import distributed
from utils.common.checkpoints import save_checkpoint
from utils.common.errors import InputError
from utils.common.interruption import CONTINUE, Interruption, remembered_signals
from utils.common.log_file import keep_log
from utils.data.dataset import EpochBatches, ScanDataset, make_loader, to_device
from utils.evaluation.metrics import Predictions
from utils.evaluation.predicting import autocast, predict
from utils.training.agreement import check_agreement, exists_for_all
from utils.training.memory import announce
from utils.training.optimization import make_optimizer, make_scheduler
from utils.training.recalibration import recompute_statistics
from utils.training.run_folder import BEST, LAST, check_run_folder, claimed
from utils.training.run_log import RunLog
from utils.training.scalars import ScalarCopy, Step
from utils.training.settings import TrainingSettings
from utils.training.speed import speed_up
from utils.training.stages import Criterion, Stage, check_batches
from utils.training.state import FREE_ON_RESUME, Progress, RunState
from utils.training.validation import JUDGED_EPOCHS, validation_losses, warn_of_mean_age


class Trainer:
    """Train a network; keep the weights of the last epoch, or of the best validation MAE.

    Parameters
    ----------
    network : Module
    stage : Stage
    criterion : Criterion
    train_set, valid_set : ScanDataset
        The latter may be empty if nothing is chosen by it.
    folder : Path
        Gets ``best.pt``, ``last.pt`` and what `RunLog` writes.
    settings : TrainingSettings
    flags : mapping of plain values
        The command line, to be recorded and to be compared on resuming.
    device : torch.device
    identity : mapping of plain values
        What the checkpoint says of itself; see `utils.training.state.describe_checkpoint`.

    Raises
    ------
    InputError
        If the folder holds a run and `settings.resume` is off, if a resumed
        run had other flags, or if no batch can be filled.
    """

    def __init__(
        self,
        network: Any,
        stage: Stage,
        criterion: Criterion,
        train_set: ScanDataset,
        valid_set: ScanDataset,
        folder: Path,
        settings: TrainingSettings,
        flags: Mapping[str, Any],
        device: torch.device,
        identity: Mapping[str, Any],
    ) -> None:
        shared = {f"--{name}": value for name, value in flags.items() if name not in FREE_ON_RESUME}
        check_agreement({**shared, **identity})
        self.network = network.to(device, memory_format=torch.channels_last_3d)
        self.parallel = distributed.wrap(self.network)
        self.stage, self.criterion = stage, criterion
        self.train_set, self.valid_set = train_set, valid_set
        self.folder, self.settings, self.flags, self.device = folder, settings, flags, device
        self.identity = identity
        self.best_path = folder / BEST
        self.optimizer = make_optimizer([p for p in network.parameters() if p.requires_grad], settings)
        self.scheduler = make_scheduler(self.optimizer, settings)
        self.batches = EpochBatches(
            [subject.chronological_age for subject in train_set.subjects],
            settings.batch_size,
            settings.seed,
            stratified=settings.batches == "stratified",
            least=criterion.batch_size or (1 if settings.sync_batch_norm else distributed.world_size()),
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )
        check_batches(criterion, self.batches, len(train_set), len(valid_set), self.batches.joint)
        speed_up(self.network, settings, settings.epochs * len(self.batches), device)
        self.loader = make_loader(train_set, self.batches, settings.num_workers, device)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.progress = Progress()
        self.state = RunState(
            folder / LAST, identity, flags, self.network, self.optimizer, self.scheduler, self.progress,
            self.generator, device,
        )  # fmt: skip
        self.unread: Step | None = None  # the last step, whose scalars may not be there yet
        self.waited = 0.0  # seconds of the epoch spent waiting for data
        self.signals: list[int] = []  # that ask the run to stop
        check_run_folder(folder, settings.resume)
        if exists_for_all(self.state.path):
            self.state.resume()
            check_agreement({f"the progress in {LAST}": [self.progress.epoch, self.progress.step]})

    @property
    def finished(self) -> bool:
        """Whether the last epoch is done or training has stopped early."""
        stalled = self.progress.epochs_without_gain >= self.settings.early_stopping_epochs
        return self.progress.epoch >= self.settings.epochs or (stalled and self.settings.keep == "best")

    def fit(self) -> Path:
        """Train epoch by epoch until done; return the path of ``best.pt``.

        Raises
        ------
        InputError
            If a loss, a gradient or a validation age is not finite.
        """
        distributed.barrier()  # every process has seen whether there is a run
        with remembered_signals() as self.signals, self.state.explained_failures(), claimed(self.folder):
            keep_log(self.folder, self.device)
            if not self.finished:
                self._train()
        exists_for_all(self.best_path)
        return self.best_path

    def _train(self) -> None:
        """Train the epochs that remain, and write the log."""
        announce(self.network, self.settings, self.device)
        if not self.state.path.exists():
            self.state.save()  # from now on the folder holds a run that can be continued
        exists_for_all(self.state.path)
        log = RunLog(self.folder, self.flags, self.device, self.progress.epoch)
        while not self.finished:
            row = self.train_epoch()
            if self.settings.recalibrate and (self.valid_set or self.progress.epoch + 1 >= self.settings.epochs):
                self.recalibrate()
            predictions, warning, notes = self.validate(row)
            self.finish_epoch(row, predictions, warning, log, notes)
            self._stop_if_asked()
        log.close(self.progress.best_row(self.settings.keep))

    def _stop_if_asked(self, save: bool = False) -> None:
        """End the run if a signal asked for it, in all processes at the same step; save first if told to."""
        number = distributed.largest(self.signals[0] if self.signals else 0)
        if number:
            if save:
                self._save_within_epoch()
            distributed.barrier()
            raise Interruption(number, f"{self.state.kept}: {CONTINUE}")

    def train_epoch(self) -> dict[str, float]:
        """Take the steps that remain of the epoch under way; return its scalars."""
        progress = self.progress
        self.network.train()
        self.batches.epoch, self.batches.start = progress.epoch, progress.step
        started, done, self.waited = time.perf_counter(), progress.sums.get("subjects", 0.0), 0.0
        bar = tqdm(
            total=len(self.batches), initial=progress.step, desc=f"epoch {progress.epoch + 1}/{self.settings.epochs}",
            unit="batch", disable=None if distributed.rank() == 0 else True, leave=False,
        )  # fmt: skip
        with bar:
            for batch in self._measure_waiting():
                step = self.train_step(batch)
                values = self._read_scalars()  # of the step before, while the device works on this one
                self.unread = step
                bar.set_postfix({key: f"{values[key]:.3g}" for key in ("loss", "mae") if key in values}, refresh=False)
                bar.update()
                progress.step += 1
                if progress.step % self.settings.saving_interval == 0 and progress.step < len(self.batches):
                    self._save_within_epoch()
                if progress.step % self.settings.accumulation_steps == 0 or progress.step == len(self.batches):
                    self._stop_if_asked(save=True)
            self._read_scalars()
        distributed.average_statistics(self.network)
        seconds, total = time.perf_counter() - started, progress.sums["subjects"]
        row = {"epoch": float(progress.epoch), "learning_rate": self.optimizer.param_groups[0]["lr"]}
        row |= {f"train/{key}": value / total for key, value in progress.sums.items() if key != "subjects"}
        return row | {"scans_per_second": (total - done) / seconds, "waiting_for_data": self.waited / seconds}

    def _measure_waiting(self) -> Iterator[dict[str, Any]]:
        """Yield the batches of the epoch, and add up the seconds that it takes to read them."""
        batches = iter(self.loader)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def train_step(self, batch: dict[str, Any]) -> Step:
        """Learn from a batch; do not wait for the device."""
        settings, progress = self.settings, self.progress
        seed, share = (settings.seed, progress.epoch, progress.step), self.batches.share(progress.step)
        batch = self.stage.perturb(batch, seed, share)
        batch = to_device(batch, self.device, settings.augmentation, seed, share)
        part = progress.step % settings.accumulation_steps
        parts = min(settings.accumulation_steps, len(self.batches) - progress.step + part)
        distributed.average_gradients(self.parallel, part + 1 == parts)
        with autocast(self.device, settings.precision):
            brain_age = self.stage.predict(self.parallel, batch)["brain_age"]
        brain_age = distributed.gather(brain_age, share.sizes)
        age = distributed.gather(batch["chronological_age"], share.sizes)
        losses = self.criterion(brain_age, age, self.generator)
        if part == 0:
            self.optimizer.zero_grad(set_to_none=True)
        (losses["loss"] * distributed.world_size() / parts).backward()  # processes average their gradients
        scalars = {key: value.detach() for key, value in losses.items()}
        scalars["mae"] = (brain_age.detach() - age).abs().mean()
        if part + 1 == parts:
            gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
            scalars["gradient_norm"] = nn.utils.get_total_norm(gradients)
            self.optimizer.step()
        return Step(ScalarCopy(scalars), progress.step + 1, batch["subject_id"], len(age))

    def _read_scalars(self) -> dict[str, float]:
        """Add up the last step's losses and MAE, and return them.

        A step that is not finite ends the run. It has changed the weights,
        but they are never saved before this has been called.
        """
        step, self.unread = self.unread, None
        if step is None:
            return {}
        values = step.scalars.read()
        if not math.isfinite(values["loss"]):
            self.stop(f"the loss is {values['loss']}", step)
        if not math.isfinite(values.pop("gradient_norm", 0.0)):
            self.stop("a gradient is not finite", step)
        sums = self.progress.sums
        for key, value in {**values, "subjects": 1.0}.items():
            sums[key] = sums.get(key, 0.0) + value * step.count
        return values

    def _save_within_epoch(self) -> None:
        self._read_scalars()
        self.state.save()

    def stop(self, what: str, step: Step | None = None) -> NoReturn:
        """End the run before anything that is not finite is saved."""
        where = f"{what} in epoch {self.progress.epoch + 1}"
        if step:
            names = [name for part in distributed.gather_objects(step.subject_ids) for name in part]
            where += f", batch {step.number}; check the scans and ages of its subjects, {', '.join(names)}"
        raise InputError(f"{where}; lower --learning_rate; {self.state.kept}")

    def recalibrate(self) -> None:
        """Recompute batch norm's statistics, and at the end the output's scale, from training scans as they are."""
        recompute_statistics(self.network, self._every_scan(), self.settings.precision)
        if self.progress.epoch + 1 >= self.settings.epochs:
            self.stage.recalibrate(self.network, self._estimate(self.train_set, "recalibration", "float32"))

    def _estimate(self, dataset: ScanDataset, label: str, precision: str) -> Predictions:
        """Predict every subject of a set."""
        return predict(
            self.network, self.stage, dataset, self.device, batch_size=self.settings.batch_size,
            num_workers=min(self.settings.num_workers, 2), precision=precision, label=label,
        )  # fmt: skip

    def _every_scan(self) -> Iterator[torch.Tensor]:
        """Yield this process's training volumes in batches of equal size, give or take one scan."""
        self.batches.evenly = True  # each batch counts the same
        for batch in self.loader:
            yield to_device(batch, self.device)["volume"]
        self.batches.evenly = False

    def validate(self, row: dict[str, float]) -> tuple[Predictions, str, str]:
        """Estimate the validation subjects; add losses, MAE and the stage's scalars to `row`.

        Returns
        -------
        predictions : dict of str to (N,) float32 array; empty without validation subjects
        warning : str
            Of the stage, or empty.
        notes : str
            The stage's scalars and what else to say, for people.
        """
        if not self.valid_set:
            return {}, "", ""
        predictions = self._estimate(self.valid_set, "validation", self.settings.precision)
        if not np.isfinite(predictions["brain_age"]).all():
            self.stop("brain ages of the validation split are not finite")
        own, warning = self.stage.report(predictions)
        size = self.batches.joint
        scalars = validation_losses(self.criterion, predictions, size, self.settings.seed, self.device) | own
        row |= {f"valid/{key}": value for key, value in scalars.items()}
        notes = "".join(f"  {key} {value:.2f}" for key, value in own.items())
        if self.progress.epoch + 1 >= min(JUDGED_EPOCHS, self.settings.epochs):
            worse = warn_of_mean_age(predictions, [s.chronological_age for s in self.train_set.subjects])
            notes += worse and f"\n{worse}"
        return predictions, warning, notes

    def finish_epoch(
        self, row: dict[str, float], predictions: Predictions, warning: str, log: RunLog, notes: str
    ) -> None:
        """Adapt the learning rate, keep the weights if they are the best, write everything down.

        Notes
        -----
        The best epoch has the lowest validation MAE. One of which the stage
        warns is never better than one without a warning.
        """
        progress, keep_best = self.progress, self.settings.keep == "best"
        epoch, mae = progress.epoch, row.get("valid/mae", math.inf)
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(mae)
        else:
            self.scheduler.step()
        place = [bool(warning), mae]
        improved = place < progress.best if keep_best else epoch + 1 >= self.settings.epochs
        progress.epochs_without_gain = 0 if improved else progress.epochs_without_gain + 1
        progress.best = min(place, progress.best)
        progress.history.append(row)
        progress.epoch, progress.step, progress.sums = epoch + 1, 0, {}
        log.add_epoch(
            progress.history, self.settings.epochs, improved and keep_best, notes + (warning and f"\n{warning}")
        )
        if predictions and (improved or self.finished):
            log.add_figure(predictions, epoch)
        if improved and distributed.rank() == 0:
            weights = {"state_dict": self.network.state_dict(), "epoch": epoch, "valid_mae": row.get("valid/mae")}
            save_checkpoint(self.best_path, {**self.identity, **weights})
        self.state.save()
