"""How a network is trained, apart from its data and its loss."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of a training; each is explained by the flag of the same name.

    See Also
    --------
    utils.options.training : names, units, meanings and defaults.
    """

    epochs: int
    batch_size: int
    batches: str
    accumulation_steps: int
    augmentation: tuple[str, ...]
    optimizer: str
    learning_rate: float
    weight_decay: float
    amsgrad: bool
    momentum: float
    scheduler: str
    plateau_factor: float
    plateau_epochs: int
    warmup_epochs: int
    minimum_learning_rate: float
    keep: str
    early_stopping_epochs: int
    recalibrate: bool
    sync_batch_norm: bool
    seed: int
    save_every_steps: int
    precision: str
    fuse: str
    deterministic: bool
    num_workers: int
    resume: bool

    @property
    def chooses_by_validation(self) -> bool:
        """Whether validation subjects choose the epoch or the learning rate."""
        return self.keep == "best" or self.scheduler == "plateau"

    @property
    def saving_interval(self) -> int:
        """Batches between two saves, never in the middle of an accumulated gradient."""
        return self.accumulation_steps * math.ceil(self.save_every_steps / self.accumulation_steps)
