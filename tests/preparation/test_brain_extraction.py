"""Brain extraction: deepbet's networks and box, the largest part, too little GPU memory, a damaged file."""

import numpy as np
import pytest
import torch

from utils.common.errors import InputError
from utils.data.image_files import UnusableScanError
from utils.preparation import brain_extraction
from utils.preparation.brain_extraction import bounding_box, brain_probability, extract_brain, load_networks

# Of deepbet 1.0.2's TorchScript on `waves`: mean, standard deviation and eight voxels.
PUBLISHED = {
    "box": (0.161238, 0.356056, (0.002003, 0.994257, 0.0, 0.000001, 0.102285, 0.000021, 0.000096, 0.00006)),
    "brain": (0.334992, 0.465352, (1.0, 0.999964, 0.999999, 0.002622, 1.0, 0.000018, 0.000096, 0.000038)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_networks_compute_what_deepbet_computes(name) -> None:
    x, y, z = np.meshgrid(*[np.arange(64) / 10] * 3, indexing="ij")
    waves = 0.45 + 0.2 * np.sin(1.3 * x + y) * np.cos(0.7 * y - z) + 0.1 * np.sin(3 * z)
    with torch.inference_mode():
        found = load_networks("cpu")[name](torch.tensor(waves, dtype=torch.float32)[None, None])[0]
    mean, deviation, voxels = PUBLISHED[name]
    assert found.mean().item() == pytest.approx(mean, abs=1e-4)
    assert found.std().item() == pytest.approx(deviation, abs=1e-4)
    np.testing.assert_allclose(found[8::16, 20, 8::16].flatten()[:8], voxels, atol=1e-3)


@pytest.mark.parametrize(
    ("first", "last", "shape", "box"),  # the latter three as deepbet 1.0.2 gives them
    [
        ((51, 38, 30), (83, 72, 51), (76, 47, 124), ((28, 51), (12, 27), (27, 51))),
        ((48, 38, 54), (92, 87, 120), (390, 343, 300), ((132, 293), (88, 246), (111, 297))),
        ((33, 56, 16), (92, 108, 36), (229, 451, 306), ((48, 175), (179, 399), (33, 90))),
    ],
)
def test_the_box_is_that_of_deepbet(first, last, shape, box) -> None:
    mask = np.zeros((128, 128, 128), bool)
    mask[tuple(map(slice, first, last))] = True
    assert bounding_box(mask, shape) == tuple(slice(*ends) for ends in box)


def test_a_scan_without_a_brain_is_refused(monkeypatch) -> None:
    with pytest.raises(UnusableScanError, match="no brain"):
        bounding_box(np.zeros((128, 128, 128), bool), (60, 60, 60))
    nothing = np.zeros((60, 60, 60), np.float32)
    monkeypatch.setattr(brain_extraction, "brain_probability", lambda *_: (nothing, (slice(0, 60),) * 3))
    with pytest.raises(UnusableScanError, match="no brain"):
        extract_brain(nothing, np.full(3, 2.0), "cpu")


def test_the_largest_part_is_taken_and_its_holes_are_filled(monkeypatch) -> None:
    found = np.zeros((100, 100, 100), np.float32)
    brain, apart, hole = (slice(10, 70),) * 3, (slice(80, 90),) * 3, (slice(35, 45),) * 3
    found[brain] = found[apart] = 1
    found[hole] = 0
    monkeypatch.setattr(brain_extraction, "brain_probability", lambda *_: (found, (slice(0, 100),) * 3))
    mask = extract_brain(found, np.full(3, 2.0), "cpu")
    assert mask[brain].mean() > 0.99
    assert mask[hole].all()
    assert not mask[apart].any()


def test_the_cpu_extracts_the_brain_where_the_gpu_has_too_little_memory(monkeypatch) -> None:
    """Other processes may share the GPU; cuDNN has its own word for it."""

    def run(volume: np.ndarray, device: str) -> tuple[np.ndarray, tuple[slice, ...]]:
        if device == "cuda":
            raise RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED")
        return volume, (slice(0, 100),) * 3

    monkeypatch.setattr(brain_extraction, "brain_probability", run)
    assert extract_brain(np.ones((100, 100, 100), np.float32), np.full(3, 2.0), "cuda").all()


def test_a_damaged_file_of_networks_is_refused(monkeypatch, tmp_path) -> None:
    damaged = tmp_path / "networks.safetensors"
    damaged.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    monkeypatch.setattr(brain_extraction, "NETWORKS", damaged)
    load_networks.cache_clear()
    with pytest.raises(InputError, match="missing or damaged; fetch the project again"):
        brain_probability(np.ones((60, 60, 60), np.float32), "cpu")
