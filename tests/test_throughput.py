"""The benchmark: its floor is counted right, the plain way computes what ours does, and the script runs."""

import json
import os
import subprocess
import sys

import pytest
import torch

from benchmarks.network_speed import OURS, PLAIN, Variant, build, config_of, floor_of, make_plain, random_batch
from benchmarks.throughput import throughput_parser
from model.building import make_network
from model.cpu_layers import use_cpu_layers
from tests.conftest import ROOT

CPU = torch.device("cpu")
RATES = {"float32": 1e12, "tf32": 1e12, "bfloat16": 4e12, "copy": 1e11}
SMALL = ("--voxel_size", "8", "--blocks", "3", "--batch_size", "4")


def test_operations_are_those_counted_elsewhere() -> None:
    args = throughput_parser().parse_args(["--batch_size", "32"])
    plain = Variant("scaledense", PLAIN)
    stem = 2 * 7**3 * 8 * 81 * 99 * 81  # has no gradient with respect to the image
    assert floor_of(plain, "training", args, RATES)["operations"] == pytest.approx(3 * 114e9 - stem, rel=0.002)
    folded = floor_of(plain, "inference", args, RATES)
    assert folded["operations"] / 114e9 == pytest.approx(27 / 36, rel=0.02)
    assert folded["seconds"] == pytest.approx(max(folded["operations"] / 1e12, folded["bytes"] / 1e11))
    assert floor_of(Variant("scaledense", OURS, "bfloat16"), "inference", args, RATES)["seconds"] < folded["seconds"]


@pytest.mark.parametrize("model", ["scaledense", "scaledense_paper"])
def test_the_plain_way_computes_what_ours_computes(model) -> None:
    """Output, gradients and running statistics of a training step, in float64."""
    args = throughput_parser().parse_args(SMALL)
    volumes = torch.randn(4, 23, 27, 23, 1, dtype=torch.float64).permute(0, 4, 1, 2, 3)
    results = []
    for change in (make_plain, use_cpu_layers):
        network = make_network(config_of(Variant(model, OURS), args), 0).double()
        torch.nn.init.normal_(network.output_layer[-1].weight, generator=torch.Generator().manual_seed(0))
        change(network)
        output = network(volumes, torch.tensor([0, 1, 1, 0]))
        output.square().sum().backward()
        results.append((output, [p.grad for p in network.parameters()], network.state_dict()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [PLAIN, OURS])
def test_a_step_of_training_learns(name) -> None:
    args = throughput_parser().parse_args(SMALL)
    variant = Variant("scaledense_paper", name)
    batch, step = random_batch(variant, args, CPU), build(variant, "training", args, CPU)
    losses = [step(batch) for _ in range(15)]
    assert losses[-1] < 0.9 * losses[0]


def test_it_runs_and_writes_its_figures(tmp_path) -> None:
    environment = os.environ | {
        "PYTHON": sys.executable, "MODEL": "scaledense", "PRECISION": "float32", "VOXEL_SIZE": "8", "ROUNDS": "1",
        "NUM_WORKERS": "0", "BATCH_SIZE": "2", "COHORT_SIZE": "50", "OUTPUT": str(tmp_path / "figures.json"),
        "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = ["bash", str(ROOT / "bash_throughput.sh"), "--blocks", "1", "--steps", "1"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    figures = json.loads((tmp_path / "figures.json").read_text())
    wanted = [("scaledense", PLAIN), ("scaledense", OURS)]
    for task in ("training", "inference"):
        assert [(row["model"], row["name"]) for row in figures[task]] == wanted
        for row in figures[task]:
            assert row["seconds_per_scan"] > 0
            assert row["share_of_floor"] > 0
            assert row["ratio_to_own_plain"] > 0
            assert f"{row['ratio_to_scaledense_plain']:.2f}" in result.stdout
    assert figures["loader"]["ratio"] > 0
    assert 0 <= figures["loader"]["waiting_share_of_training"] < 1
    assert figures["cohort"]["seconds_to_first_batch"] > 0
    assert figures["cohort"]["resident_GiB_of_all_processes"] > 0
    assert figures["git_commit"] or not (ROOT / ".git").exists()
