"""Measure training, inference and loading: this project's way, the plain way, and the limit of the hardware."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model.conventions import MODELS
from utils.common.errors import run_command, user_errors
from utils.options.flags import Parser, add_device, add_overwrite, count, flag, flags_of, whole


def throughput_parser() -> Parser:
    """Return the parser of this script."""
    parser = Parser(
        "Measure scans per second and memory of training and inference, ours against the plain way,\n"
        "as a share of what the hardware could do; and how fast scans are loaded.\n\n"
        "Prints tables, and writes a JSON file with device, versions and commit."
    )
    flag(parser, "--model", "both", str, "networks to measure", choices=("both", *MODELS))
    flag(
        parser, "--precision", "both", str, "precision of our way; the plain way uses float32",
        choices=("both", "float32", "bfloat16"),
    )  # fmt: skip
    flag(parser, "--batch_size", "0", whole, "scans in a batch; 0: 32 on CUDA, 2 on a CPU")
    flag(parser, "--voxel_size", "2", count, "mm, of the grid")
    flag(parser, "--blocks", "5", count, "number of blocks of the networks")
    flag(parser, "--rounds", "5", count, "how often each variant is built and measured")
    flag(parser, "--steps", "3", count, "steps in a round; their median counts")
    flag(parser, "--num_workers", "8", whole, "processes that read scans")
    flag(parser, "--cohort_size", "0", whole, "scans of a cohort whose start to measure, such as 100000; 0: none")
    add_device(parser)
    flag(parser, "--output", "runs/throughput.json", Path, "file for the figures")
    add_overwrite(parser)
    return parser


def main() -> None:
    args = throughput_parser().parse_args()
    # Imported here, so that --help and wrong flags answer at once.
    from benchmarks.loading_speed import measure_cohort, measure_loader
    from benchmarks.network_speed import config_of, measure_all, measure_rates, variants_of
    from utils.common import distributed
    from utils.common.files import check_results, write_json
    from utils.common.provenance import describe_run

    check_results(args.output.parent, [args.output.name], args.overwrite, variable="OUTPUT")
    with user_errors():
        for variant in variants_of(args):
            config_of(variant, args)
    device = distributed.start(args.device)
    args.device, args.batch_size = device.type, args.batch_size or (32 if device.type == "cuda" else 2)
    results: dict[str, Any] = {"flags": flags_of(args), **describe_run(device)}
    if args.cohort_size:  # first, while this process is small
        results["cohort"] = measure_cohort(args, device)
        print_figures(f"a cohort of {args.cohort_size} scans", results["cohort"])
    rates = results["rates"] = measure_rates(device, args.precision != "float32")
    print_figures(results["device_name"], {f"{name}, 1e9 a second": rate / 1e9 for name, rate in rates.items()})
    for task in ("training", "inference"):
        results[task] = measure_all(task, args, rates)
        print_table(f"{task}, batches of {args.batch_size}, medians of {args.rounds} rounds", results[task])
        write_json(args.output, results)
    results["loader"] = measure_loader(args, device)
    print_figures("loading", results["loader"])
    write_json(args.output, results)
    print(f"\nwritten to {args.output}")


def print_figures(title: str, figures: dict[str, float]) -> None:
    """Print a line for each figure."""
    print(f"\n{title}")
    for name, value in figures.items():
        print(f"  {name.replace('_', ' '):<36}{value:>12.4g}")


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Print a line for each variant."""
    print(f"\n{title}")
    print(f"{'network':<18}{'way':<11}{'precision':<10}{'scans/s':>9}{'peak GiB':>10}{'vs plain':>10}"
          f"{'vs scaledense plain':>21}{'of the floor':>14}")  # fmt: skip
    for row in rows:
        start = f"{row['model']:<18}{row['name']:<11}{row['precision']:<10}"
        if not row["rounds"]:
            print(f"{start} out of memory")
            continue
        own, first = (row.get(f"ratio_to_{name}_plain", float("nan")) for name in ("own", "scaledense"))
        print(f"{start}{1 / row['seconds_per_scan']:>9.3g}{row['peak_memory'] / 2**30:>10.2f}{own:>10.2f}{first:>21.2f}"
              f"{row['share_of_floor']:>14.0%}")  # fmt: skip


if __name__ == "__main__":
    run_command(main)
