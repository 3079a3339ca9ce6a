"""Measure training and inference: this project's way, the plain way, and the limit of the hardware.

Every variant is built, warmed up and measured in turn, for several rounds, so
that the ratios of the medians hold even if the machine's speed drifts. Each
measurement runs in a process of its own, because what one variant leaves
behind, above all in memory, would affect the next.
"""

import operator
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial, reduce
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from model.building import make_network
from model.conventions import MODELS
from model.ranking import CascadeLoss, SoftRank
from model.scaledense import NetworkConfig, ScaleDense
from utils.common import distributed
from utils.common.torch_errors import is_out_of_gpu_memory
from utils.data.dataset import to_device
from utils.data.images import model_grid
from utils.evaluation.predicting import autocast
from utils.options.flags import settings_from
from utils.options.training import parse_training_flags
from utils.training.optimization import make_optimizer
from utils.training.settings import TrainingSettings
from utils.training.speed import speed_up

PLAIN, OURS = "plain way", "our way"
Batch = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """A way to train or to predict.

    Parameters
    ----------
    model : {"scaledense", "scaledense_paper"}
    name : {"plain way", "our way"}
    precision : {"float32", "bfloat16"}
    """

    model: str
    name: str
    precision: str = "float32"


def variants_of(args: Namespace) -> list[Variant]:
    """List what to measure; plain `scaledense`, which all are compared with, is always the first."""
    precisions = ("float32", "bfloat16") if args.precision == "both" else (args.precision,)
    variants = [Variant("scaledense", PLAIN)]
    for model in MODELS if args.model == "both" else (args.model,):
        variants += [Variant(model, PLAIN), *(Variant(model, OURS, precision) for precision in precisions)]
    return list(dict.fromkeys(variants))


def config_of(variant: Variant, args: Namespace) -> NetworkConfig:
    """Describe the network of a variant; it sees the whole grid."""
    shape = model_grid(args.voxel_size).shape
    return NetworkConfig(1, variant.model, volume_shape=shape, blocks=args.blocks, age_mean=50.0, age_sd=20.0)


# ---- the limit of the hardware ----


def measure_rates(device: torch.device, with_bfloat16: bool) -> dict[str, float]:
    """Measure the device: operations per second in each precision, bytes read and written per second.

    The operations are those of a matrix product or of a 3x3x3 convolution of
    64 channels, whichever is faster: a CPU's library may be tuned for either.
    ``tf32`` is float32 with TF32 allowed, which only a GPU has. A processor
    without bfloat16 instructions takes minutes for these products.
    """
    rates: dict[str, float] = {}
    size, side = (8192, 96) if device.type == "cuda" else (2048, 32)
    kinds = {"float32": torch.float32, "tf32": torch.float32} | ({"bfloat16": torch.bfloat16} if with_bfloat16 else {})
    for name, dtype in kinds.items():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
        a, b = torch.randn(2, size, size, device=device).to(dtype)
        volumes = torch.randn(2, side, side, side, 64, device=device).to(dtype).permute(0, 4, 1, 2, 3)
        kernel = torch.randn(64, 3, 3, 3, 64, device=device).to(dtype).permute(0, 4, 1, 2, 3)
        product = 2 * size**3 / median_seconds(partial(torch.matmul, a, b), device, 5)
        convolve = partial(functional.conv3d, volumes, kernel, padding=1)
        convolution = 2 * 27 * 64 * 64 * 2 * side**3 / median_seconds(convolve, device, 5)
        rates[name] = max(product, convolution)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    source = torch.randn(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    rates["copy"] = 2 * source.nbytes / median_seconds(lambda: target.copy_(source), device, 5)
    return rates


def floor_of(variant: Variant, task: str, args: Namespace, rates: dict[str, float]) -> dict[str, float]:
    """Count the operations and the fewest bytes of a scan, and the seconds they take at the measured rates.

    Notes
    -----
    Operations: those of all convolutions and matrix products as the network
    is defined; for inference, each asymmetric layer is one convolution of 27
    taps. Bytes: each block reads its input and writes its output once.
    Training reads both again and writes their gradients in the backward pass;
    once a batch, it reads and writes weights, gradients and the optimizer's
    two moments.
    """
    with torch.device("meta"):
        config = config_of(variant, args)
        network: Any = ScaleDense(config)
        make_plain(network)
        volumes = torch.zeros(1, 1, *config.volume_shape)
        elements = [volumes.numel()]
        for block in network.trunk.blocks:
            block.register_forward_hook(lambda _, x, output: elements.append(x[0].numel() + output.numel()))
            if task == "inference":  # folded, a layer has the operations of its 3x3x3 branch
                for layer in (block.convolution_1, block.convolution_2):
                    layer.branches = layer.branches[:1]
        with FlopCounterMode(display=False) as counter:
            output = network.trunk(volumes)  # the head has a millionth of the operations
            if task == "training":
                output.sum().backward()
    weights = sum(parameter.numel() for parameter in network.parameters())
    width = 2 if variant.precision == "bfloat16" else 4
    passes, weight_bytes = {"inference": (1, weights * width), "training": (3, 11 * weights * 4)}[task]
    operations = counter.get_total_flops()
    moved = passes * width * sum(elements) + weight_bytes / args.batch_size
    rate = rates["tf32" if variant.name == PLAIN else variant.precision]
    return {"operations": operations, "bytes": moved, "seconds": max(operations / rate, moved / rates["copy"])}


# ---- the two ways ----


def make_plain(network: Any) -> None:
    """Let the blocks run one torch layer after the other, each with a result of its own, as the authors' do."""

    def forward(block: Any, x: Any) -> Any:
        for layer, norm in ((block.convolution_1, block.norm_1), (block.convolution_2, block.norm_2)):
            x = functional.elu(norm(reduce(operator.add, [branch(x) for branch in layer.branches])))
        hidden = functional.relu(block.excitation.reduce(x.mean((2, 3, 4))))
        x = x * torch.sigmoid(block.excitation.expand(hidden))[:, :, None, None, None]
        return functional.max_pool3d(x, 2)

    for block in network.trunk.blocks:
        block.forward = forward.__get__(block)


def build(variant: Variant, task: str, args: Namespace, device: torch.device) -> Callable[[Batch], Any]:
    """Build a variant; return a function that trains on a batch and gives the loss, or gives its estimates."""
    ours, training = variant.name == OURS, task == "training"
    network: Any = make_network(config_of(variant, args), 0).to(device)
    settings = settings_from(TrainingSettings, parse_training_flags(1, []))
    if not ours:
        make_plain(network)
    elif training:
        fuse = "true" if variant.precision == "bfloat16" else "false"
        speed_up(network, replace(settings, fuse=fuse, precision=variant.precision), 0, device)
    if not training:
        network = network.folded() if ours else network.eval()
    network = network.to(memory_format=torch.channels_last_3d if ours else torch.contiguous_format)
    parameters = list(network.parameters())
    if ours:
        optimizer = make_optimizer(parameters, settings)
    else:
        optimizer = torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=settings.weight_decay)
    criterion, generator = CascadeLoss(ranker=SoftRank()), torch.Generator().manual_seed(0)

    def step(batch: Batch) -> Any:
        if ours:  # decodes, augments and normalizes the volumes, which the plain way is given ready
            batch = to_device(batch, device, settings.augmentation if training else (), (0,))
        if not training:
            with torch.inference_mode(), autocast(device, variant.precision):
                return network(batch["volume"], batch["sex"]).cpu()
        with autocast(device, variant.precision):
            brain_age = network(batch["volume"], batch["sex"])
        loss = criterion(brain_age, batch["chronological_age"], generator)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if ours:  # the trainer checks every gradient
            torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]).item()
        optimizer.step()
        return loss.item()

    return step


def random_batch(variant: Variant, args: Namespace, device: torch.device) -> Batch:
    """Make a batch of int16 voxels, as the loader does; for the plain way, of normalized volumes."""
    generator = torch.Generator().manual_seed(0)
    shape = args.batch_size, *model_grid(args.voxel_size).shape
    batch: Batch = {
        "voxels": torch.randint(-1500, 2000, shape, generator=generator).clamp(min=0).to(torch.int16),
        "scaling": torch.tensor([[1.0, 0.0, 1 / 500, 2.0]]).repeat(args.batch_size, 1),
        "sex": torch.arange(args.batch_size) % 2,
        "chronological_age": torch.rand(args.batch_size, generator=generator) * 60 + 20,
    }
    if variant.name == OURS:
        return {name: value.to(device) for name, value in batch.items()}
    batch = to_device(batch, device)
    # Tensor.contiguous would leave one channel the strides of channels last.
    return batch | {"volume": batch["volume"].clone(memory_format=torch.contiguous_format)}


# ---- measurement ----


def measure_all(task: str, args: Namespace, rates: dict[str, float]) -> list[dict[str, Any]]:
    """Measure each variant in each round; return a row for each."""
    variants = variants_of(args)
    rows = {v: asdict(v) | {"floor": floor_of(v, task, args, rates), "rounds": []} for v in variants}
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for variant in tqdm(variants * args.rounds, task, unit="variant", disable=None, leave=False):
            measured = pool.submit(measure, variant, task, args).result()
            if measured:
                row = rows[variant]
                row["rounds"].append(measured[0])
                row["peak_memory"] = max(row.get("peak_memory", 0.0), measured[1])
    plain: dict[str, float] = {}  # seconds for a scan, by network
    for row in rows.values():
        if not row["rounds"]:
            continue
        seconds = row["seconds_per_scan"] = statistics.median(row["rounds"])
        row["share_of_floor"] = row["floor"]["seconds"] / seconds
        if row["name"] == PLAIN:
            plain[row["model"]] = seconds
        for name, model in (("own", row["model"]), ("scaledense", "scaledense")):
            if model in plain:
                row[f"ratio_to_{name}_plain"] = plain[model] / seconds
    return list(rows.values())


def measure(variant: Variant, task: str, args: Namespace) -> tuple[float, float] | None:
    """Return the seconds for a scan and the peak memory in bytes; None if the GPU has too little."""
    # The plain way leaves torch and glibc as they are.
    device = distributed.start(args.device) if variant.name == OURS else torch.device(args.device)
    before = reset_peak_memory(device)
    try:
        step = partial(build(variant, task, args, device), random_batch(variant, args, device))
        step()  # allocates and chooses algorithms, as does the first step of `median_seconds`
        seconds = median_seconds(step, device, args.steps) / args.batch_size
    except RuntimeError as error:
        if not is_out_of_gpu_memory(error):
            raise
        return None
    return seconds, peak_memory(device) - before


def median_seconds(function: Callable[[], Any], device: torch.device, times: int) -> float:
    """Time a function after a first call; the device is idle whenever the clock is read."""
    clock = []
    for _ in range(times + 1):
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        clock.append(time.perf_counter())
    return statistics.median(end - start for start, end in pairwise(clock))


def reset_peak_memory(device: torch.device) -> float:
    """Start a new peak; return the bytes in use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return bytes_in("/proc/self/status", "VmRSS")


def peak_memory(device: torch.device) -> float:
    """Return the most bytes in use since `reset_peak_memory`."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else bytes_in("/proc/self/status", "VmHWM")


def bytes_in(path: str, key: str) -> float:
    """Read one entry, which is in kB, of a file that Linux keeps of a process."""
    lines = Path(path).read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))
