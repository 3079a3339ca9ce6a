"""Measure training, inference and loading: our way, the plain way, and the floor of the hardware.

Every variant is built, warmed up and measured in turn, for several rounds, so
that the ratios of the medians hold even where the machine's speed drifts. Each
measurement has a process of its own: what one variant leaves behind, memory
above all, would change the next.
"""

import operator
import os
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial, reduce
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.common.errors import run_command, user_errors
from utils.options.everything import parse_training_flags, throughput_parser

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

    from utils.common import distributed
    from utils.common.files import check_writable, write_json
    from utils.training.trainer import describe_run

    check_writable(args.output.parent)
    with user_errors():
        for variant in variants_of(args):
            config_of(variant, args)
    device = distributed.start(args.device)
    args.device, args.batch_size = device.type, args.batch_size or (32 if device.type == "cuda" else 2)
    results: dict[str, Any] = {"flags": vars(args), **describe_run(device)}
    if args.cohort_size:  # first, while this process is small
        results["cohort"] = measure_cohort(args, device)
        figures = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in results["cohort"].items())
        print(f"a cohort of {args.cohort_size} scans: {figures}")
    rates = results["rates"] = measure_rates(device)
    print(f"{results['device_name']}, {torch.get_num_threads()} threads: " + ", ".join(
        f"{name} {value / 1e9:.0f} {'GB' if name == 'copy' else 'GFLOP'}/s" for name, value in rates.items()
    ))  # fmt: skip
    for task in ("training", "inference"):
        results[task] = measure_all(variants_of(args), task, args, rates)
        print_table(results[task], task, args)
        write_json(args.output, results)
    results["loader"] = measure_loader(args, device)
    print_loader(results["loader"])
    write_json(args.output, results)
    print(f"\nwritten to {args.output}")


# ---- the floor ----


def measure_rates(device: Any) -> dict[str, float]:
    """Measure what the device can do: operations a second in each precision, bytes read and written a second.

    The operations are those of a matrix product or of a 3x3x3 convolution of
    64 channels, whichever is faster: a CPU's library may be tuned for either.
    ``tf32`` is float32 with TF32 allowed, which only a GPU has.
    """
    import torch

    rates: dict[str, float] = {}
    size, side = (8192, 96) if device.type == "cuda" else (2048, 32)
    for name, dtype in (("float32", torch.float32), ("tf32", torch.float32), ("bfloat16", torch.bfloat16)):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
        a, b = torch.randn(2, size, size, device=device).to(dtype)
        volumes = torch.randn(2, side, side, side, 64, device=device).to(dtype).permute(0, 4, 1, 2, 3)
        kernel = torch.randn(64, 3, 3, 3, 64, device=device).to(dtype).permute(0, 4, 1, 2, 3)
        product = 2 * size**3 / median_seconds(partial(torch.matmul, a, b), device, 9)
        convolve = partial(torch.nn.functional.conv3d, volumes, kernel, padding=1)
        convolution = 2 * 27 * 64 * 64 * 2 * side**3 / median_seconds(convolve, device, 9)
        rates[name] = max(product, convolution)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
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
    from utils.data.images import model_grid

    def note(_: Any, inputs: Any, output: Any) -> None:
        elements.append(inputs[0].numel() + output.numel())

    with torch.device("meta"):
        network: Any = ScaleDense(config_of(variant, args))
        make_plain(network)
        if task == "inference":  # folded, the 3x3x3 branch has the operations of all
            for block in network.trunk.blocks:
                for layer in (block[0], block[3]):
                    layer.branches = layer.branches[:1]
        volumes = torch.zeros(1, 1, *model_grid(args.voxel_size).shape)
        elements = [volumes.numel()]
        for block in network.trunk.blocks:
            block.register_forward_hook(note)
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
    rate = rates[variant.precision if variant.ours else "tf32"]
    floor["seconds"] = max(floor["operations"] / rate, floor["bytes"] / rates["copy"])
    return floor


# ---- training and inference ----


def config_of(variant: Variant, args: Namespace) -> Any:
    """Describe the network of a variant."""
    from model.scaledense import NetworkConfig
    from utils.data.images import model_grid

    shape = model_grid(args.voxel_size).shape
    return NetworkConfig(1, variant.model, volume_shape=shape, blocks=args.blocks, age_mean=50.0, age_sd=20.0)


def make_plain(network: Any) -> None:
    """Let the blocks run one torch layer after the other, each with a result of its own."""
    from torch import nn
    from torch.nn import functional

    def forward(block: Any, x: Any) -> Any:
        for layer in block:
            if hasattr(layer, "branches"):
                x = reduce(operator.add, [branch(x) for branch in layer.branches])
            elif isinstance(layer, nn.ELU):
                x = functional.elu(x)
            elif hasattr(layer, "gate"):
                x = x * layer.gate(x.mean((2, 3, 4)))[:, :, None, None, None]
            else:
                x = layer(x)
        return x

    for block in network.trunk.blocks:
        block.forward = forward.__get__(block)


def build(variant: Variant, task: str, args: Namespace, device: Any) -> Callable[[dict[str, Any]], Any]:
    """Build a variant; return a function that takes one step with a batch, or predicts it."""
    import torch

    import model.layers
    from model.building import make_network
    from model.ranking import CascadeLoss, SoftRank
    from utils.data.dataset import to_device
    from utils.training.trainer import autocast, compiled, make_optimizer

    model.layers.COLUMNS = model.layers.COLUMNS if variant.wide_batch_norm else 1
    network: Any = make_network(config_of(variant, args), 0, variant.activation_checkpointing).to(device)
    if not variant.ours:
        make_plain(network)
    if task == "inference":
        network = network.folded() if variant.ours else network.eval()
    network = network.to(memory_format=torch.channels_last_3d if variant.channels_last else torch.contiguous_format)
    criterion, generator = CascadeLoss(ranker=SoftRank()), torch.Generator().manual_seed(0)
    parameters = list(network.parameters())
    if variant.fused_optimizer:
        optimizer = make_optimizer(parameters, parse_training_flags(1, ["--recipe", "paper"]))
    else:
        optimizer = torch.optim.Adam(parameters, 1e-3, weight_decay=5e-4, amsgrad=True)
    forward = compiled(network, device) if variant.compile else network

    def step(batch: dict[str, Any]) -> None:
        """Ours decodes, augments and normalizes the volumes; the plain way gets them ready and contiguous."""
        if variant.ours:
            batch = to_device(batch, device, ("flip", "shift") if task == "training" else (), (0,))
            if not variant.channels_last:
                batch["volume"] = contiguous(batch["volume"])
        if task == "inference":
            with torch.inference_mode(), autocast(device, variant.precision):
                forward(batch["volume"], batch["sex"]).cpu()
            return
        with autocast(device, variant.precision):
            brain_age = forward(batch["volume"], batch["sex"])
        loss = criterion(brain_age, batch["chronological_age"], generator)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if variant.ours:  # training checks every gradient
            torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]).item()
        optimizer.step()
        loss.item()

    return step


def random_batch(variant: Variant, args: Namespace, device: Any) -> dict[str, Any]:
    """Make a batch as the loader gives it, of int16 voxels; for the plain way, of normalized volumes."""
    import torch

    from utils.data.dataset import to_device
    from utils.data.images import model_grid

    shape = args.batch_size, *model_grid(args.voxel_size).shape
    generator = torch.Generator().manual_seed(0)
    voxels = torch.randint(-1500, 2000, shape, generator=generator).clamp(min=0).to(torch.int16)
    batch = {
        "voxels": voxels,
        "scaling": torch.tensor([[1.0, 0.0, 1 / 500, 2.0]]).repeat(args.batch_size, 1),
        "sex": torch.arange(args.batch_size) % 2,
        "chronological_age": torch.rand(args.batch_size, generator=generator) * 60 + 20,
    }
    if variant.ours:
        return {name: value.to(device) for name, value in batch.items()}
    batch = to_device(batch, device)
    return batch | {"volume": contiguous(batch["volume"])}


def contiguous(volumes: Any) -> Any:
    """Give one channel the strides of one channel first, which ``Tensor.contiguous`` leaves as they are."""
    import torch

    return volumes.clone(memory_format=torch.contiguous_format)


def measure(variant: Variant, task: str, args: Namespace) -> tuple[float, float] | None:
    """Build a variant and measure it; return the seconds for a scan and the peak of memory in bytes."""
    import torch

    from utils.common import distributed

    # Without `start`, everything is as torch and glibc have it by themselves.
    device = distributed.start(args.device) if variant.keep_memory else torch.device(args.device)
    before = reset_peak_memory(device)
    try:
        batch = random_batch(variant, args, device)
        step = partial(build(variant, task, args, device), batch)
        for _ in range(2):  # allocate, choose algorithms, compile
            step()
        seconds = median_seconds(step, device, args.steps, warm=False) / args.batch_size
    except torch.cuda.OutOfMemoryError:
        return None
    return seconds, peak_memory(device) - before


def measure_all(variants: list[Variant], task: str, args: Namespace, rates: dict[str, float]) -> list[dict[str, Any]]:
    """Measure each variant in each round; return a row for each."""
    from tqdm import tqdm

    levers_of_training = ("fused_optimizer", "wide_batch_norm", "activation_checkpointing")
    if task == "inference":
        variants = [v for v in variants if not any(lever in v.name for lever in levers_of_training)]
    seconds: dict[Variant, list[float]] = {variant: [] for variant in variants}
    memory: dict[Variant, float] = dict.fromkeys(variants, 0.0)
    with (
        ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool,
        tqdm(total=len(variants) * args.rounds, desc=task, unit="variant", disable=None, leave=False) as bar,
    ):
        for _ in range(args.rounds):
            for variant in variants:
                measured = pool.submit(measure, variant, task, args).result()
                if measured:
                    seconds[variant].append(measured[0])
                    memory[variant] = max(memory[variant], measured[1])
                bar.update()
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
    """Measure reading from files and from the cache, the loader alone, and how long training waits for it.

    All scans lie in the system's page cache.
    """
    import nibabel
    import numpy as np

    from utils.data.dataset import EpochBatches, ScanDataset, make_loader
    from utils.data.scans import ScanStore
    from utils.data.subjects import Subject
    from utils.preparation.simulation import draw_subjects, write_cohort

    with tempfile.TemporaryDirectory() as folder:
        cohort = Path(folder) / "cohort"
        write_cohort(cohort, draw_subjects(20, 0, 0), 0, args.voxel_size, workers=2)
        paths = sorted((cohort / "train").iterdir())
        store = ScanStore(args.voxel_size, "brain", Path(folder) / "cache", workers=2)
        store.prepare(paths)

        def decode(path: Path) -> None:
            np.asarray(nibabel.load(path).dataobj, np.float32)  # type: ignore[attr-defined]

        result: dict[str, float] = {}
        times: dict[str, list[float]] = {"files": [], "cache": []}
        for _ in range(2 + 4 * args.rounds):
            for name, read in (("files", decode), ("cache", store.read)):
                started = time.perf_counter()
                for path in paths:
                    read(path)
                times[name].append((time.perf_counter() - started) / len(paths))
        for name, values in times.items():
            result[f"{name}_seconds_per_scan"] = statistics.median(values[2:])
        result["ratio"] = result["files_seconds_per_scan"] / result["cache_seconds_per_scan"]

        ahead = 2 * min(args.num_workers, os.cpu_count() or 1)  # batches that the loader has ready
        wanted = max(10, 5 * ahead)
        copies = -(-(ahead + wanted) * args.batch_size // len(paths))
        subjects = [Subject(path.name, path, 50.0 + index % 30, 0) for index, path in enumerate(paths * copies)]

        def batches() -> Any:
            order = EpochBatches(len(subjects), args.batch_size, 0, drop_last=True)
            loader = iter(make_loader(ScanDataset(subjects, store), order, args.num_workers, device))
            for _ in range(ahead):
                next(loader)
            return loader

        loader = batches()
        started = time.perf_counter()
        scans = sum(len(batch["sex"]) for batch in islice(loader, wanted - ahead))
        result["loader_scans_per_second"] = scans / (time.perf_counter() - started)
        model = "scaledense" if args.model == "both" else args.model
        precision = {"both": "bfloat16"}.get(args.precision, args.precision)
        step = build(Variant(model, OURS, precision), "training", args, device)
        loader = batches()
        step(next(loader))
        waited, started, steps = 0.0, time.perf_counter(), min(wanted - ahead - 1, 4 * args.rounds)
        for _ in range(steps):
            asked = time.perf_counter()
            batch = next(loader)
            waited += time.perf_counter() - asked
            step(batch)
        result["waiting_share_of_training"] = waited / (time.perf_counter() - started)
    return result


def print_loader(result: dict[str, float]) -> None:
    """Print what `measure_loader` found."""
    print(
        f"\nloading a scan: {1e3 * result['files_seconds_per_scan']:.1f} ms from .nii.gz, "
        f"{1e3 * result['cache_seconds_per_scan']:.2f} ms from the cache, ratio {result['ratio']:.0f};\n"
        f"the loader alone gives {result['loader_scans_per_second']:.0f} scans/s; "
        f"training waits for data {result['waiting_share_of_training']:.2%} of the time"
    )


def measure_cohort(args: Namespace, device: Any) -> dict[str, float]:
    """Start a loader over a cohort of any size: empty files as scans, a sparse file as their voxels."""
    import numpy as np

    from utils.data.cohort import load_cohort
    from utils.data.dataset import EpochBatches, ScanDataset, make_loader
    from utils.data.images import model_grid
    from utils.data.scans import TYPES, ScanStore, data_path, make_index, write_index

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
        for _ in islice(batches, 200):
            pass
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
