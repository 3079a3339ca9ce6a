"""Measure training, inference and loading: our way, the plain way, and the floor of the hardware.

Every variant is built, warmed up and measured in turn, several rounds in one
process; the ratios of the medians hold even where the machine's speed drifts.
"""

import ctypes
import gc
import os
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.errors import run_command
from utils.options import throughput_parser, training_parser

PLAIN, OURS = "plain way", "our way"


@dataclass(frozen=True)
class Variant:
    """A way to train or to predict."""

    model: str
    name: str
    precision: str = "float32"
    ours: bool = True
    channels_last: bool = True
    keep_memory: bool = True
    fused_optimizer: bool = True
    wide_batch_norm: bool = True
    compile: bool = False
    activation_checkpointing: bool = False


def variants_of(args: Namespace) -> list[Variant]:
    """List what is measured: the plain way of both networks, ours, and ours with one lever changed."""
    models = ["scaledense", "scaledense_paper"] if args.model == "both" else [args.model]
    precisions = ["float32", "bfloat16"] if args.precision == "both" else [args.precision]
    plain = Variant("scaledense", PLAIN, ours=False, channels_last=False, keep_memory=False, fused_optimizer=False)
    variants = [plain]
    for model in models:
        if model != "scaledense":
            variants.append(replace(plain, model=model))
        variants += [Variant(model, OURS, precision) for precision in precisions]
        if args.levers:
            base = Variant(model, OURS, precisions[-1])
            for lever in ("channels_last", "keep_memory", "fused_optimizer", "wide_batch_norm"):
                changed: dict[str, Any] = {"name": f"without {lever}", lever: False}
                variants.append(replace(base, **changed))
            for lever in ("activation_checkpointing", "compile"):
                changed = {"name": f"with {lever}", lever: True}
                variants.append(replace(base, **changed))
    return variants


def main() -> None:
    args = throughput_parser().parse_args()
    import torch

    from utils import distributed
    from utils.engine import describe_run
    from utils.files import write_json

    device = distributed.start(args.device)
    args.batch_size = args.batch_size or (32 if device.type == "cuda" else 2)
    rates = measure_rates(device)
    print(f"{describe_run(device)['device_name']}, {torch.get_num_threads()} threads: " + ", ".join(
        f"{name} {value / 1e9:.0f} {'GB' if name == 'copy' else 'GFLOP'}/s" for name, value in rates.items()
    ))  # fmt: skip
    results: dict[str, Any] = {"flags": vars(args), **describe_run(device), "rates": rates}
    for task in ("training", "inference"):
        results[task] = measure_all(variants_of(args), task, args, device, rates)
        print_table(results[task], task, args)
    results["loader"] = measure_loader(args, device)
    print_loader(results["loader"])
    if args.cohort_size:
        results["cohort"] = measure_cohort(args, device)
        print(f"\n{args.cohort_size} scans: " + ", ".join(f"{k} {v:.2f}" for k, v in results["cohort"].items()))
    write_json(args.output, results)
    print(f"\nwritten to {args.output}")


# ---- the floor ----


def measure_rates(device: Any) -> dict[str, float]:
    """Measure what the device can do: operations a second in each precision, bytes read and written a second.

    The operations are those of a matrix product or of a 3x3x3 convolution of
    64 channels, whichever is faster: a CPU's library may be tuned for either.
    """
    import torch

    rates: dict[str, float] = {}
    size, side = (8192, 96) if device.type == "cuda" else (2048, 32)
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(2, size, size, device=device).to(dtype)
        volumes = torch.randn(2, side, side, side, 64, device=device).to(dtype).permute(0, 4, 1, 2, 3)
        kernel = torch.randn(64, 3, 3, 3, 64, device=device).to(dtype).permute(0, 4, 1, 2, 3)
        product = 2 * size**3 / median_seconds(partial(torch.matmul, a, b), device, 9)
        convolve = partial(torch.nn.functional.conv3d, volumes, kernel, padding=1)
        convolution = 2 * 27 * 64 * 64 * 2 * side**3 / median_seconds(convolve, device, 9)
        rates[str(dtype).removeprefix("torch.")] = max(product, convolution)
    source = torch.randn(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    rates["copy"] = 2 * source.nbytes / median_seconds(lambda: target.copy_(source), device, 9)
    return rates


def floor_of(variant: Variant, task: str, args: Namespace, rates: dict[str, float]) -> dict[str, float]:
    """Count operations and least bytes of a scan, and the seconds that they take at the measured rates.

    Notes
    -----
    Operations: of all convolutions and matrix products as the network is
    defined (for inference: with each asymmetric layer folded to 27 taps).
    Bytes: each block reads its input and writes its output once; training
    reads both and writes their gradients once more in the backward pass, and
    reads and writes weights, gradients and the optimizer's three moments once
    a batch.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from model.scaledense import ScaleDense
    from utils.images import model_grid

    def note(_: Any, inputs: Any, output: Any) -> None:
        elements.append(inputs[0].numel() + output.numel())

    with torch.device("meta"):
        network: Any = ScaleDense(config_of(variant, args)).double()  # float64 takes the plain layers
        network = network.folded() if task == "inference" else network
        volumes = torch.zeros(1, 1, *model_grid(args.voxel_size).shape, dtype=torch.float64)
        elements = [volumes.numel()]
        for block in network.trunk.blocks:
            block.register_forward_hook(note)
        volumes.requires_grad_(task == "training")  # so that the first layer is counted as it is defined
        with FlopCounterMode(display=False) as counter:
            output = network.trunk(volumes)  # the head's are a millionth
            if task == "training":
                output.sum().backward()
    weights = sum(parameter.numel() for parameter in network.parameters())
    width = 2 if variant.precision == "bfloat16" else 4
    passes = {"inference": 1, "training": 3}[task]
    moved = {"inference": weights * width, "training": 4 * weights * 13}[task]
    floor = {
        "operations": counter.get_total_flops(),
        "bytes": passes * width * sum(elements) + moved / args.batch_size,
    }
    floor["seconds"] = max(floor["operations"] / rates[variant.precision], floor["bytes"] / rates["copy"])
    return floor


# ---- training and inference ----


def config_of(variant: Variant, args: Namespace) -> Any:
    """Describe the network of a variant."""
    from model.scaledense import NetworkConfig
    from utils.images import model_grid

    shape = model_grid(args.voxel_size).shape
    return NetworkConfig(1, variant.model, volume_shape=shape, blocks=args.blocks, age_mean=50.0, age_sd=20.0)


def make_plain(network: Any) -> None:
    """Let the blocks run one torch layer after the other, each with a result of its own."""
    from torch import nn
    from torch.nn import functional

    def forward(block: Any, x: Any) -> Any:
        for layer in block:
            if hasattr(layer, "branches"):
                x = sum(branch(x) for branch in layer.branches)
            elif isinstance(layer, nn.ELU):
                x = functional.elu(x)
            elif hasattr(layer, "gate"):
                x = x * layer.gate(x.mean((2, 3, 4)))[:, :, None, None, None]
            else:
                x = layer(x)
        return x

    for block in network.trunk.blocks:
        block.forward = forward.__get__(block)


@contextmanager
def built(variant: Variant, task: str, args: Namespace, device: Any) -> Iterator[Callable[[], Any]]:
    """Build a variant; give a function that takes one step or predicts one batch."""
    import torch

    import model.layers
    from model.building import make_network
    from model.ranking import CascadeLoss, SoftRank
    from utils.dataset import to_device
    from utils.engine import autocast, compiled, make_optimizer

    keep_memory(variant.keep_memory)
    torch.backends.cudnn.benchmark = variant.ours
    torch.backends.cudnn.allow_tf32 = not variant.ours  # torch's default, and ours
    columns, model.layers.COLUMNS = model.layers.COLUMNS, model.layers.COLUMNS if variant.wide_batch_norm else 0
    network: Any = make_network(config_of(variant, args), 0, variant.activation_checkpointing).to(device)
    if not variant.ours:
        make_plain(network)
    batch = random_batch(args, device)
    sex, age = batch["sex"], batch["chronological_age"]
    flags = training_parser(1).parse_args([])
    criterion, generator = CascadeLoss(ranker=SoftRank()), torch.Generator().manual_seed(0)
    layout = torch.channels_last_3d if variant.channels_last else torch.contiguous_format
    if task == "inference":
        network = network.folded() if variant.ours else network.eval()
    network = network.to(memory_format=layout)
    if variant.fused_optimizer:
        optimizer = make_optimizer(network.parameters(), flags)
    else:
        optimizer = torch.optim.Adam(network.parameters(), 1e-3, weight_decay=5e-4, amsgrad=True)
    forward = compiled(network, device) if variant.compile else network
    normalized = to_device(batch, device)["volume"].contiguous()

    def volumes(seed: Any) -> Any:
        """Ours decodes, augments and normalizes in each step; the plain way has float32 volumes ready."""
        if not variant.ours:
            return normalized
        prepared = to_device(batch, device, seed)["volume"]
        return prepared if variant.channels_last else prepared.contiguous()

    def step() -> None:
        if task == "inference":
            with torch.inference_mode(), autocast(device, variant.precision):
                forward(volumes(None), sex).cpu()
            return
        with autocast(device, variant.precision):
            brain_age = forward(volumes((0,)), sex)
        loss = criterion(brain_age, age, generator)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()

    yield step
    model.layers.COLUMNS = columns
    if variant.compile:
        torch.compiler.reset()


def random_batch(args: Namespace, device: Any) -> dict[str, Any]:
    """Make a batch as the loader gives it: int16 voxels, some of them background."""
    import torch

    from utils.images import model_grid

    shape = args.batch_size, *model_grid(args.voxel_size).shape
    generator = torch.Generator().manual_seed(0)
    voxels = torch.randint(-1500, 2000, shape, generator=generator).clamp(min=0).to(torch.int16)
    batch = {
        "voxels": voxels,
        "scaling": torch.tensor([[1.0, 0.0, 1 / 500, 2.0]]).repeat(args.batch_size, 1),
        "sex": torch.arange(args.batch_size) % 2,
        "chronological_age": torch.rand(args.batch_size, generator=generator) * 60 + 20,
    }
    return {name: value.to(device) for name, value in batch.items()}


def measure(variant: Variant, task: str, args: Namespace, device: Any) -> tuple[float, float]:
    """Build a variant and measure it; return the seconds for a scan and the peak of memory in bytes."""
    free_memory(device)
    before = reset_peak_memory(device)
    with built(variant, task, args, device) as step:
        for _ in range(2):  # allocate, choose algorithms, compile
            step()
        seconds = median_seconds(step, device, args.steps, warm=False) / args.batch_size
        return seconds, peak_memory(device) - before


def measure_all(
    variants: list[Variant], task: str, args: Namespace, device: Any, rates: dict[str, float]
) -> list[dict[str, Any]]:
    """Measure each variant in each round; return a row for each."""
    import torch
    from tqdm import tqdm

    levers_of_training = ("fused_optimizer", "wide_batch_norm", "activation_checkpointing")
    if task == "inference":
        variants = [v for v in variants if not any(lever in v.name for lever in levers_of_training)]
    seconds: dict[Variant, list[float]] = {variant: [] for variant in variants}
    memory: dict[Variant, float] = dict.fromkeys(variants, 0.0)
    with tqdm(total=len(variants) * args.rounds, desc=task, unit="variant", disable=None, leave=False) as bar:
        for _ in range(args.rounds):
            for variant in variants:
                try:
                    speed, peak = measure(variant, task, args, device)
                    seconds[variant].append(speed)
                    memory[variant] = max(memory[variant], peak)
                except torch.cuda.OutOfMemoryError:
                    pass
                bar.update()
    keep_memory(True)
    rows: list[dict[str, Any]] = []
    for variant in variants:
        row: dict[str, Any] = asdict(variant) | {"floor": floor_of(variant, task, args, rates)}
        if seconds[variant]:
            row |= {"seconds_per_scan": statistics.median(seconds[variant]), "rounds": seconds[variant]}
            row |= {"peak_memory": memory[variant]}
            row["share_of_floor"] = row["floor"]["seconds"] / row["seconds_per_scan"]
        rows.append(row)
    plain = next(row for row in rows if row["model"] == "scaledense" and row["name"] == PLAIN)
    for row in rows:
        own = next((r for r in rows if r["model"] == row["model"] and r["name"] == PLAIN), plain)
        for name, base in (("ratio_to_own_plain", own), ("ratio_to_scaledense_plain", plain)):
            if "seconds_per_scan" in row and "seconds_per_scan" in base:
                row[name] = base["seconds_per_scan"] / row["seconds_per_scan"]
    return rows


def print_table(rows: list[dict[str, Any]], task: str, args: Namespace) -> None:
    """Print a row for each variant."""
    print(f"\n{task}, batches of {args.batch_size}, medians of {args.rounds} rounds")
    print(f"{'network':<17}{'way':<32}{'precision':<10}{'scans/s':>9}{'peak GiB':>10}{'vs plain':>10}"
          f"{'vs scaledense plain':>21}{'of the floor':>14}")  # fmt: skip
    for row in rows:
        start = f"{row['model']:<17}{row['name']:<32}{row['precision']:<10}"
        if "seconds_per_scan" not in row:
            print(start + "out of memory")
            continue
        print(f"{start}{1 / row['seconds_per_scan']:>9.3g}{row['peak_memory'] / 2**30:>10.2f}"
              f"{row.get('ratio_to_own_plain', float('nan')):>10.2f}"
              f"{row.get('ratio_to_scaledense_plain', float('nan')):>21.2f}{row['share_of_floor']:>14.0%}")  # fmt: skip


# ---- loading ----


def measure_loader(args: Namespace, device: Any) -> dict[str, float]:
    """Measure reading from files and from the cache, and how long a training step waits for the cache."""
    import numpy as np

    from utils.dataset import EpochBatches, ScanDataset, make_loader
    from utils.scans import ScanStore
    from utils.simulation import draw_subjects, write_cohort
    from utils.subjects import Subject

    with tempfile.TemporaryDirectory(dir=args.output.parent if args.output.parent.is_dir() else None) as folder:
        cohort = Path(folder) / "cohort"
        write_cohort(cohort, draw_subjects(10, 0, 0), 0, args.voxel_size, workers=2)
        paths = sorted((cohort / "train").iterdir())
        stores = {
            "files": ScanStore(args.voxel_size, "brain"),
            "cache": ScanStore(args.voxel_size, "brain", Path(folder) / "cache", workers=2),
        }
        stores["cache"].prepare(paths)
        result: dict[str, float] = {}
        times: dict[str, list[float]] = {name: [] for name in stores}
        for _ in range(2 + 4 * args.rounds):
            for name, store in stores.items():
                started = time.perf_counter()
                for path in paths:
                    np.array(store.read(path).voxels)
                times[name].append((time.perf_counter() - started) / len(paths))
        for name, values in times.items():
            result[f"{name}_seconds_per_scan"] = statistics.median(values[2:])
        result["ratio"] = result["files_seconds_per_scan"] / result["cache_seconds_per_scan"]
        batches_wanted = max(6, 2 * args.rounds)
        copies = -(-batches_wanted * args.batch_size // len(paths))
        subjects = [Subject(path.name, path, 50.0 + index, 0) for index, path in enumerate(paths * copies)]
        dataset = ScanDataset(subjects, stores["cache"])
        batches = EpochBatches(len(subjects), args.batch_size, 0)
        model = "scaledense" if args.model == "both" else args.model
        precision = {"both": "bfloat16"}.get(args.precision, args.precision)
        with built(Variant(model, OURS, precision), "training", args, device) as step:
            loader = iter(make_loader(dataset, batches, args.num_workers, device))
            next(loader)
            step()
            waited, started = 0.0, time.perf_counter()
            for _ in range(batches_wanted - 1):
                asked = time.perf_counter()
                next(loader)
                waited += time.perf_counter() - asked
                step()
            result["waiting_share_of_training"] = waited / (time.perf_counter() - started)
    return result


def print_loader(result: dict[str, float]) -> None:
    """Print what `measure_loader` found."""
    print(
        f"\nloading a scan: {1e3 * result['files_seconds_per_scan']:.1f} ms from .nii.gz, "
        f"{1e3 * result['cache_seconds_per_scan']:.2f} ms from the cache, ratio {result['ratio']:.0f}; "
        f"training waits for data {result['waiting_share_of_training']:.2%} of the time"
    )


def measure_cohort(args: Namespace, device: Any) -> dict[str, float]:
    """Start a loader over a cohort of any size: empty files as scans, a sparse file as their voxels."""
    import numpy as np

    from utils.cohort import load_cohort
    from utils.dataset import EpochBatches, ScanDataset, make_loader
    from utils.images import model_grid
    from utils.scans import TYPES, ScanStore, data_path, make_index, write_index

    with tempfile.TemporaryDirectory() as folder:
        scans = Path(folder) / "train"
        scans.mkdir()
        paths = [scans / f"sub-{number:06d}.nii.gz" for number in range(args.cohort_size)]
        for path in paths:
            path.touch()
        table = Path(folder) / "labels.csv"
        table.write_text(
            "subject_id,age,sex\n" + "".join(f"{p.name[:10]},{20 + i % 60},F\n" for i, p in enumerate(paths))
        )
        store = ScanStore(args.voxel_size, "brain", Path(folder) / "cache")
        voxels = int(np.prod(model_grid(args.voxel_size).shape))
        int16 = TYPES.index(np.dtype(np.int16))
        index = make_index([
            (path.name, 0, path.stat().st_mtime_ns, number * 2 * voxels, int16, 1.0, 0.0, 100.0, 20.0)
            for number, path in enumerate(paths)
        ])  # fmt: skip
        base = store.base_of(scans)
        base.parent.mkdir()
        with data_path(base, index).open("wb") as file:
            file.truncate(len(paths) * 2 * voxels)
        write_index(base, index)
        started = time.perf_counter()
        subjects = load_cohort({"train": scans}, table, store)["train"]
        loader = make_loader(
            ScanDataset(subjects, store), EpochBatches(len(paths), args.batch_size, 0), args.num_workers, device
        )
        batches = iter(loader)
        next(batches)
        first = time.perf_counter() - started
        for _ in range(200):
            next(batches)
        workers = [worker.pid for worker in batches._workers] if args.num_workers else []  # type: ignore[attr-defined]
        memory = sum(proportional_memory(pid) for pid in (os.getpid(), *workers))
        return {"seconds_to_first_batch": first, "resident_GiB_of_all_processes": memory / 2**30}


# ---- time and memory ----


def median_seconds(function: Callable[[], Any], device: Any, times: int, warm: bool = True) -> float:
    """Time a function; the device has finished whenever a clock is read."""
    import torch

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    if warm:
        function()
    seconds = []
    for _ in range(times):
        synchronize()
        started = time.perf_counter()
        function()
        synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def keep_memory(keep: bool) -> None:
    """Keep what is freed, as `utils.distributed.keep_freed_memory`, or give it back as glibc does by itself."""
    from utils.distributed import keep_freed_memory

    if keep:
        keep_freed_memory()
    elif (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(-4, 65536)  # M_MMAP_MAX
        mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD, at the most that glibc raises it to
        mallopt(-1, 64 * 2**20)  # M_TRIM_THRESHOLD, twice that


def free_memory(device: Any) -> None:
    """Give all that is free back, so that each variant starts alike."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def reset_peak_memory(device: Any) -> float:
    """Start a new peak; return the bytes in use."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_memory(device: Any) -> float:
    """Return the most bytes in use since `reset_peak_memory`."""
    import torch

    return torch.cuda.max_memory_allocated() if device.type == "cuda" else _status("VmHWM")


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def proportional_memory(pid: int) -> float:
    """Return the bytes of a process, of shared pages its share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    run_command(main)
