"""Run training, prediction and maps on fake CUDA tensors, on a CPU; print what each case did as JSON.

python -m tests.fake_cuda.program LIBRARY

Fake tensors have shapes, types and devices, but no numbers: nothing is
computed, but what would mix devices fails, and every copy between devices
is seen. LIBRARY is `device.cpp`, compiled; it must be loaded before torch is
first used.
"""

import contextlib
import ctypes
import json
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

if __name__ == "__main__":
    ctypes.CDLL(sys.argv[1])

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from model import layers
from model.building import freeze, make_loss, make_network
from model.scaledense import NetworkConfig
from model.sorter import Sorter, fit_sorter
from utils.common import distributed
from utils.common.choices import AUGMENTATIONS
from utils.data.dataset import ScanDataset, to_device
from utils.data.images import brain_box, model_grid
from utils.data.subjects import Subject
from utils.evaluation.predicting import autocast
from utils.options.flags import settings_from
from utils.options.training import parse_training_flags
from utils.prediction import explaining
from utils.training.settings import TrainingSettings
from utils.training.stages import FirstStage, SecondStage
from utils.training.trainer import Trainer

GPU = torch.device("cuda", 0)
BATCH = 4
STAGED = 2**16  # bytes; a copy of more from memory that is not pinned waits for the device, even if told not to
Forward = Callable[[Any, torch.Tensor], torch.Tensor]
aten = torch.ops.aten


class Watch(TorchDispatchMode):
    """Note what waits for the device, and the types of the convolutions."""

    moving_modules = False  # once, before the work begins

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.convolutions: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function.overloadpacket is aten._fused_sgd_:  # fake tensors do not know it, nor the next one
            return None
        if function.overloadpacket is aten.batch_norm_update_stats:
            return args[1], args[2]
        output = function(*args, **kwargs)
        name = function.overloadpacket
        if name is aten.native_batch_norm_backward and args[5] is None:
            raise RuntimeError("CUDA needs a defined save_mean")
        source, target = (args[1], args[0]) if name is aten.copy_ else (args[0] if args else None, output)
        if name in (aten.copy_, aten._to_copy) and source.device.type != target.device.type:
            waits = not (kwargs.get("non_blocking") or (name is aten.copy_ and len(args) > 2 and args[2]))
            pinned = target.device.type == "cpu" or source.dtype is torch.int16  # by torch; by the loader: voxels
            if (waits or (source.nbytes > STAGED and not pinned)) and not Watch.moving_modules:
                self.waits.append("copy")
        if name in (aten._local_scalar_dense, aten.nonzero):
            self.waits.append("number")
        if name is aten.convolution:
            self.convolutions.add(str(output.dtype).removeprefix("torch."))
        return output


def move(module: nn.Module, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
    """Replace a module's tensors, as ``Module._apply`` does; with fake ones torch would swap them, which fails."""
    Watch.moving_modules = True
    for part in module.modules() if recurse else [module]:
        for name, parameter in part._parameters.items():
            if parameter is not None:
                with torch.no_grad():
                    part._parameters[name] = nn.Parameter(function(parameter), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = function(buffer)
    Watch.moving_modules = False
    return module


@contextlib.contextmanager
def faked(watch: Watch) -> Iterator[None]:
    """Fake tensors; reading numbers gives zeros, and counts as a wait."""
    kept = nn.Module._apply, FakeTensor.tolist, FakeTensor.item
    torch.cuda.Event = Mock  # type: ignore[assignment, misc]
    StorageWeakRef.__del__ = lambda self: None  # type: ignore[method-assign]  # it frees what is free already
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda: True  # type: ignore[assignment, misc]
    torch.cuda.get_device_capability = lambda *_: (9, 0)

    def numbers(tensor: torch.Tensor) -> Any:
        if tensor.device.type == "cuda":
            watch.waits.append("number")
        return [1.0] * tensor.numel() if tensor.ndim else 1.0

    nn.Module._apply = move  # type: ignore[assignment, method-assign]
    FakeTensor.tolist = FakeTensor.item = numbers  # type: ignore[assignment, method-assign]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), watch:
            yield
    finally:
        nn.Module._apply, FakeTensor.tolist, FakeTensor.item = kept  # type: ignore[method-assign]


def config_of(stage: int = 1, **options: Any) -> NetworkConfig:
    return NetworkConfig(
        stage,
        blocks=2,
        volume_shape=model_grid(2).shape,
        field_of_view=brain_box(2),
        age_mean=50.0,
        age_sd=20.0,
        **options,
    )


def load_batch() -> dict[str, Any]:
    """Make a batch as the loader gives it, of real tensors on the CPU."""
    ages = torch.linspace(20, 80, BATCH)
    return {
        "voxels": torch.zeros(BATCH, *model_grid(2).shape, dtype=torch.int16),
        "scaling": torch.ones(BATCH, 4),
        "sex": torch.tensor([0, 1, 0, 1]),
        **dict.fromkeys(("chronological_age", "first_stage_age", "discretized_age"), ages),
        "out_of_fold": torch.zeros(BATCH, dtype=torch.bool),
        "subject_id": [f"sub-{index}" for index in range(BATCH)],
    }


LOADED = load_batch()


def train(*flags: str, stage: int = 1, loss: tuple[Any, ...] = (), frozen: int = 0, **options: Any) -> None:
    """Take a step of the trainer, and recalibrate on a batch."""
    args = parse_training_flags(stage, ["--batch_size", str(BATCH), "--save_every_steps", "1000", *flags])
    network = make_network(config_of(stage, **options), 0, args.activation_checkpointing)
    freeze(network, frozen)
    criterion = make_loss(*(loss or ("mse", args.ranking, None, 1.0, 10.0, 1.0)))
    subjects = [Subject(f"sub-{index}", Path(f"{index}.nii"), 20.0 + index, 0) for index in range(2 * BATCH)]
    kind = FirstStage() if stage == 1 else SecondStage(5.0, 6.0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            network, kind, criterion.to(GPU), ScanDataset(subjects, None), ScanDataset([], None), Path(folder),
            settings_from(TrainingSettings, args), {}, GPU, {},
        )  # type: ignore[arg-type]  # fmt: skip
        trainer.network.train()
        trainer.train_step(dict(LOADED))
        trainer._every_scan = lambda: iter([to_device(dict(LOADED), GPU)["volume"]])  # type: ignore[method-assign]
        trainer.settings = settings_from(TrainingSettings, parse_training_flags(stage, [*flags, "--epochs", "101"]))
        trainer.recalibrate()


def train_in_a_group() -> None:
    """Take a step as one of two processes; the other one's part is whatever."""
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    own = distributed.wrap, distributed.gather_objects  # which need the addresses and the numbers of tensors
    distributed.wrap, distributed.gather_objects = (lambda network: network), (lambda item: [item])
    try:
        train()
    finally:
        distributed.wrap, distributed.gather_objects = own
        torch.distributed.destroy_process_group()


def predict(precision: str, folded: bool, **options: Any) -> None:
    network: Any = make_network(config_of(**options), 0).to(GPU).eval()
    network = network.folded().to(memory_format=torch.channels_last_3d) if folded else network
    with torch.no_grad(), autocast(GPU, precision):
        FirstStage().predict(network, to_device(dict(LOADED), GPU))["brain_age"].float().cpu()


def draw_map() -> None:
    network: Any = make_network(config_of(), 0).to(GPU).folded()
    volumes = to_device(dict(LOADED), GPU)["volume"]
    sex = torch.zeros(1, dtype=torch.int64, device=GPU)
    explaining.explain(network, volumes[:1], volumes[:1], sex, "integrated_gradients", 2)


def rank(kind: str) -> None:
    training = fit_sorter(
        Sorter(kind, 8), steps=2, batch_size=4, learning_rate=1e-3, low=0.0, high=110.0, generator=torch.Generator(),
        device=GPU,
    )  # fmt: skip
    list(training)


CASES: dict[str, Callable[[], None]] = {
    "first stage": train,
    "second stage": lambda: train(stage=2),
    "float32, sgd, no ranking": lambda: train(
        "--precision", "float32", "--optimizer", "sgd", "--momentum", "0.9", "--ranking", "none"
    ),
    "every augmentation, absolute error": lambda: train(
        "--augmentation", ",".join(AUGMENTATIONS), loss=("mae", "soft", None, 1.0, 10.0, 1.0)
    ),
    "activation checkpointing": lambda: train("--activation_checkpointing", "true"),
    "accumulation, adam, amsgrad": lambda: train(
        "--accumulation_steps", "2", "--optimizer", "adam", "--amsgrad", "true"
    ),
    "paper's network": lambda: train(model="scaledense_paper"),
    "plain blocks": lambda: train(dense_connections=False, asymmetric_convolutions=False, squeeze_excitation=False),
    "without sex": lambda: train(use_sex=False),
    "frozen blocks": lambda: train(frozen=1),
    "one of two processes": train_in_a_group,
    "prediction, folded": lambda: predict("float32", True),
    "prediction, folded, bfloat16": lambda: predict("bfloat16", True),
    "prediction": lambda: predict("float32", False, flip_averaging=True),
    "map": draw_map,
    "sorter": lambda: rank("lstmla"),
}


# ---- the first stage, broken on purpose ----


def uploading(forward: Forward, block: Any, x: torch.Tensor) -> torch.Tensor:
    return forward(block, x * torch.ones(1).to(x.device))


def on_the_wrong_device(forward: Forward, block: Any, x: torch.Tensor) -> torch.Tensor:
    return forward(block, x) + torch.ones(1)[None]


def waiting(forward: Forward, block: Any, x: torch.Tensor) -> torch.Tensor:
    x.detach().cpu()
    return forward(block, x)


def in_float32(forward: Forward, block: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cuda", enabled=False):
        return forward(block, x.float())


BROKEN = {"wrong device": on_the_wrong_device, "wait": waiting, "upload": uploading, "wrong type": in_float32}


def train_broken(name: str) -> None:
    """Train the first stage with blocks that do something wrong."""
    own = layers.ScaleDenseBlock.forward
    layers.ScaleDenseBlock.forward = lambda block, x: BROKEN[name](own, block, x)  # type: ignore[method-assign]
    try:
        train()
    finally:
        layers.ScaleDenseBlock.forward = own  # type: ignore[method-assign]


def main() -> None:
    cases = CASES | {name: partial(train_broken, name) for name in BROKEN}
    for name, case in cases.items():
        watch, error = Watch(), ""
        try:
            with faked(watch):
                case()
        except Exception as problem:
            error = "".join(traceback.format_exception(problem))
        found = {"waits": watch.waits, "types": sorted(watch.convolutions), "error": error}
        print(json.dumps({"case": name, **found}), flush=True)


if __name__ == "__main__":
    main()
