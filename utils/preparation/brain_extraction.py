"""Find the brain of a head with the two networks of deepbet 1.0.2.

References
----------
Fisch et al., "deepbet: Fast brain extraction of T1-weighted MRI using
convolutional neural networks", Computers in Biology and Medicine 2024.
"""

import hashlib
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load
from scipy import ndimage
from torch import nn
from torch.nn import functional as F

from utils.common.errors import InputError
from utils.common.torch_errors import is_out_of_gpu_memory
from utils.data.image_files import UnusableScanError
from utils.preparation.parameters import MASK_LEVEL, MASK_SIGMA, NETWORKS_SHA256

NETWORKS = Path(__file__).with_name("deepbet") / "networks.safetensors"  # LICENSE beside it tells their origin
LEAST_BRAIN = 100_000  # cubic mm
COARSE, FINE = (128,) * 3, (256,) * 3  # voxels of the whole scan, and of the box around its brain
LEAST_AREA = 0.02  # share of a plane of the coarse mask, above which the plane belongs to the box
BOX_MARGIN = np.float32(0.1)  # of the box's size, on each side


def _unit(convolution: nn.Module, channels: int) -> nn.Sequential:
    """Return a convolution with what follows it nearly everywhere."""
    return nn.Sequential(convolution, nn.InstanceNorm3d(channels), nn.ReLU(inplace=True))


class Block(nn.Module):
    """Two convolutions with a shortcut; a change of channels halves the resolution."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        stride = 1 if channels_in == channels else 2
        self.convolutions = nn.Sequential(
            *_unit(nn.Conv3d(channels_in, channels, 3, stride, 1, bias=False), channels),
            nn.Conv3d(channels, channels, 3, 1, 1, bias=False),
            nn.InstanceNorm3d(channels),
        )
        self.shortcut = nn.Sequential() if stride == 1 else nn.Sequential(
            nn.Conv3d(channels_in, channels, 1, stride, bias=False), nn.InstanceNorm3d(channels)
        )  # fmt: skip

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (B, channels, D', H', W') features."""
        return self.convolutions(features).add_(self.shortcut(features)).relu_()


def _up(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    """Return a step of the decoder, which multiplies the resolution by its stride."""
    narrow = channels_in // 4
    widen = nn.ConvTranspose3d(narrow, narrow, 3, stride, 1, output_padding=stride - 1, bias=False)
    return nn.Sequential(
        _unit(nn.Conv3d(channels_in, narrow, 1, bias=False), narrow),
        _unit(widen, narrow),
        _unit(nn.Conv3d(narrow, channels, 1, bias=False), channels),
    )


class LinkNet(nn.Module):
    """Segment a brain: encoder and decoder, whose stages of equal resolution are added up.

    References
    ----------
    Chaurasia and Culurciello, "LinkNet: Exploiting Encoder Representations
    for Efficient Semantic Segmentation", VCIP 2017.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = 16, 16, 32, 64, 128
        self.stem = _unit(nn.Conv3d(1, 16, 7, 2, 3, bias=False), 16).append(nn.MaxPool3d(3, 2, 1))
        self.down = nn.ModuleList(
            nn.Sequential(Block(before, width), Block(width, width)) for before, width in pairwise(widths)
        )
        self.up = nn.ModuleList([_up(128, 64, 2), _up(64, 32, 2), _up(32, 16, 2), _up(16, 16, 1)])
        self.head = nn.Sequential(
            _unit(nn.ConvTranspose3d(16, 8, 3, 2, 1, output_padding=1), 8),
            _unit(nn.Conv3d(8, 8, 3, 1, 1), 8),
            nn.ConvTranspose3d(8, 2, 2, 2),
        )

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        """Return the probability of brain.

        Parameters
        ----------
        volumes : (B, 1, D, H, W) float32 tensor, sizes divisible by 32, as `_normalize` returns them

        Returns
        -------
        (B, D, H, W) float32 tensor
        """
        stages = [self.stem(volumes)]
        for down in self.down:
            stages.append(down(stages[-1]))
        features = stages.pop()
        for up in self.up:
            features = up(features).add_(stages.pop())
        return self.head(features).softmax(1)[:, 1]


@lru_cache(maxsize=2)
def load_networks(device: str) -> dict[str, LinkNet]:
    """Load the networks that find the ``box`` around a brain and the ``brain`` in it, once for each device.

    Raises
    ------
    InputError
        If their file is missing or damaged.
    """
    content = NETWORKS.read_bytes() if NETWORKS.is_file() else b""
    if hashlib.sha256(content).hexdigest() != NETWORKS_SHA256:
        raise InputError(f"{NETWORKS}: is missing or damaged; fetch the project again, with all its files")
    tensors = load(content)
    networks = {}
    for name in ("box", "brain"):
        network = LinkNet()
        network.load_state_dict(
            {key.removeprefix(f"{name}."): part.float() for key, part in tensors.items() if key.startswith(f"{name}.")}
        )
        networks[name] = network.to(device).eval()
    return networks


def extract_brain(volume: np.ndarray, voxel_size: np.ndarray, device: str) -> np.ndarray:
    """Find the brain of an upright head.

    Parameters
    ----------
    volume : (D, H, W) float32 array, finite
    voxel_size : (3,) float array, mm
    device : {"cuda", "cpu"}

    Returns
    -------
    (D, H, W) bool array

    Raises
    ------
    UnusableScanError
        If no brain is found.
    """
    try:
        probability, box = brain_probability(volume, device)
    except RuntimeError as error:
        if not is_out_of_gpu_memory(error):
            raise
        # Other processes share the GPU.
        probability, box = brain_probability(volume, "cpu")
    finally:
        if device == "cuda":
            torch.cuda.empty_cache()
    mask = ndimage.gaussian_filter(probability, MASK_SIGMA / voxel_size) > MASK_LEVEL
    mask[box] = ndimage.binary_fill_holes(_largest_component(mask[box]))
    if mask.sum() * voxel_size.prod() < LEAST_BRAIN:
        raise UnusableScanError("no brain was found in it")
    return mask


@torch.inference_mode()
def brain_probability(volume: np.ndarray, device: str) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Estimate for each voxel of an upright head the probability that it is brain.

    Parameters
    ----------
    volume : (D, H, W) float32 array, finite
    device : {"cuda", "cpu"}

    Returns
    -------
    probability : (D, H, W) float32 array
        0 outside the box.
    box : tuple of 3 slices
        Around the brain.
    """
    networks = load_networks(device)
    head = torch.from_numpy(volume).to(device)
    coarse = _resize(head, COARSE)
    low, high = coarse.quantile(torch.tensor([0.005, 0.995], device=device))
    found = networks["box"](_normalize(coarse, low, high))[0] > 0.5
    box = bounding_box(_largest_component(found.cpu().numpy()), volume.shape)
    inside = networks["brain"](_normalize(_resize(head[box], FINE), low, high))[0]
    probability = np.zeros(volume.shape, np.float32)
    probability[box] = _resize(inside, head[box].shape).cpu().numpy()
    return probability, box


def bounding_box(mask: np.ndarray, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Return the box around a mask, with a margin, in a volume of another shape.

    Parameters
    ----------
    mask : (D, H, W) bool array
    shape : tuple of 3 int
        Of the volume.

    Raises
    ------
    UnusableScanError
        If the mask is nearly empty.
    """
    planes = [np.flatnonzero(mask.mean(axes) > LEAST_AREA) for axes in ((1, 2), (0, 2), (0, 1))]
    if not all(map(len, planes)):
        raise UnusableScanError("no brain was found in it")
    first, last = (np.array([found[end] for found in planes], np.float32) for end in (0, -1))
    scale = np.divide(shape, mask.shape, dtype=np.float32)
    centre = (scale * (last + 1 + first) / 2).round()
    half = ((1 + 2 * BOX_MARGIN) * (scale * (last + 1 - first))).round() / 2
    starts, stops = (np.clip(ends, 0, shape).astype(int).tolist() for ends in (centre - half, centre + half))
    return tuple(map(slice, starts, stops))


def _resize(volume: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a (D, H, W) volume with other sizes, by its nearest voxels."""
    return F.interpolate(volume[None, None], shape, mode="nearest-exact")[0, 0]


def _normalize(volume: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Return a volume as the networks take it: (1, 1, D, H, W), intensities as in their training."""
    volume = ((volume - low) / (high - low)).clamp_(0, 1)
    mean, deviation = volume.mean(), volume.std()
    return volume.sub_(mean).div_(deviation).mul_(0.226).add_(0.449)[None, None]


def _largest_component(mask: np.ndarray) -> np.ndarray:
    """Return the largest part of a mask; voxels that share a corner are connected."""
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    if not count:
        raise UnusableScanError("no brain was found in it")
    return labels == np.bincount(labels.ravel())[1:].argmax() + 1
