"""ScaleDense, the network of both stages, as released and as in the paper's figure."""

import copy
import math
from collections import OrderedDict
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args, get_origin

import torch
from torch import nn
from torch.nn import functional

from model.conventions import MODELS
from model.folding import FoldedBlock
from model.layers import ScaleDenseBlock, recompute

OLDEST = 200.0  # years; no scale of ages is larger
MOST_BLOCKS = 30  # any volume is too small for more
STEM_SHRINKAGE = 10  # voxels: a 7x7x7 kernel with dilation 2 spans 13, padding gives back 2


def _is_of(value: Any, kind: Any) -> bool:
    """Tell whether a value fits the type of a field of `NetworkConfig`; a list may stand for a tuple."""
    if isinstance(kind, type):
        return type(value) is kind or (kind is float and isinstance(value, int | float) and math.isfinite(value))
    if get_origin(kind) is tuple:
        own = get_args(kind)[0]
        return isinstance(value, list | tuple) and len(value) in (2, 3) and all(_is_of(part, own) for part in value)
    return any(_is_of(value, own) for own in get_args(kind))  # a union, such as with None


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that is needed to build a network again; stored in its checkpoint.

    Parameters
    ----------
    stage : {1, 2}
        1 estimates the age, 2 the residual to a discretized age.
    model : {"scaledense", "scaledense_paper"}
        The network of the released code, or the lighter one of the paper's
        figure 2, which has no stem and narrower blocks.
    use_sex : bool
        Whether the head takes the sex of the subject.
    volume_shape : tuple of 3 int
        Voxels along each axis of the input volumes.
    blocks, filters : int
        Number of blocks; channels of the stem (``scaledense``) or of the
        first block (``scaledense_paper``).
    age_mean, age_sd : float, years
        Mean and standard deviation of the training ages. The raw output is
        multiplied by `age_sd` and, in the first stage, shifted by
        `age_mean`, so that it starts near the years it must reach; the
        second stage's discretized age is standardized by them. Released
        checkpoints have 0 and 1, which changes nothing.
    field_of_view : tuple of 3 (first, last) int, or None
        The box of voxels that the trunk looks at; None: the whole volume.
    dense_connections : bool
        Whether every block sees the outputs of all earlier ones, or that of
        the block before it alone.
    asymmetric_convolutions : bool
        Whether a convolution along each axis is added to every 3x3x3 one.
    squeeze_excitation : bool
        Whether each block weighs its channels by their means.
    flip_averaging : bool
        Whether an estimate is the mean over the volume and its left-right
        mirror image; in training it never is.

    Raises
    ------
    TypeError, ValueError
        If a value is of another type or out of range, or the volume does
        not survive the pooling.
    """

    stage: int
    model: str = "scaledense"
    use_sex: bool = True
    volume_shape: tuple[int, int, int] = (91, 109, 91)
    blocks: int = 5
    filters: int = 8
    age_mean: float = 0.0
    age_sd: float = 1.0
    field_of_view: tuple[tuple[int, int], ...] | None = None
    flip_averaging: bool = False
    dense_connections: bool = True
    asymmetric_convolutions: bool = True
    squeeze_excitation: bool = True

    def __post_init__(self) -> None:
        wrong = [part.name for part in fields(self) if not _is_of(getattr(self, part.name), part.type)]
        if wrong:
            raise TypeError(f"{', '.join(wrong)}: of another type")
        object.__setattr__(self, "volume_shape", tuple(self.volume_shape))
        if self.field_of_view is not None:
            object.__setattr__(self, "field_of_view", tuple((int(a), int(b)) for a, b in self.field_of_view))
        if self.stage not in (1, 2):
            raise ValueError(f"stage is {self.stage}; expected 1 or 2")
        if self.model not in MODELS:
            raise ValueError(f"model is '{self.model}'; expected one of {', '.join(MODELS)}")
        if self.blocks < 1 or self.filters < 1:
            raise ValueError(f"{self.blocks} blocks of {self.filters} filters; expected at least one of each")
        if not 0 < self.age_sd < OLDEST:
            raise ValueError(f"age_sd is {self.age_sd}; expected a positive number of years")
        if not abs(self.age_mean) < OLDEST:
            raise ValueError(f"age_mean is {self.age_mean}; expected a number of years")
        if any(not 0 <= a <= b < size for (a, b), size in zip(self.box, self.volume_shape, strict=True)):
            raise ValueError(f"the field of view {self.field_of_view} is not within the volume {self.volume_shape}")
        shape = [b - a + 1 for a, b in self.box]
        minimum = 2 ** min(self.blocks, MOST_BLOCKS) + (STEM_SHRINKAGE if self.has_stem else 0)
        if min(shape) < minimum:
            raise ValueError(
                f"a volume of {'x'.join(map(str, shape))} voxels does not survive "
                f"{self.model} with {self.blocks} blocks: every axis needs at least {minimum} "
                "voxels; use fewer blocks or smaller voxels"
            )

    @property
    def box(self) -> tuple[tuple[int, int], ...]:
        """First and last voxel of the field of view along each axis."""
        return self.field_of_view or tuple((0, size - 1) for size in self.volume_shape)

    @property
    def has_stem(self) -> bool:
        """Whether a convolution stands before the first block."""
        return self.model == "scaledense"

    @property
    def widths(self) -> list[tuple[int, int]]:
        """Input and output channels of every block's own path."""
        channels = self.filters if self.has_stem else 1
        widths = []
        for index in range(self.blocks):
            out_channels = 2 * channels if self.has_stem else self.filters * 2**index
            widths.append((channels, out_channels))
            channels = channels + out_channels if self.dense_connections else out_channels
        return widths

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python values."""
        return asdict(self)


class ScaleDenseTrunk(nn.Module):
    """Turn volumes into pooled features.

    Every block sees the max-pooled outputs of the stem (or the image) and of
    all earlier blocks, unless `config.dense_connections` is off.

    Parameters
    ----------
    config : NetworkConfig

    Notes
    -----
    The released network pools the output of its last block together with
    that block's max-pooled input, 1944 features with 8 filters and 5 blocks.
    The network of the paper's figure pools only the output, 128 features.

    References
    ----------
    Cheng et al. 2021, section III-B and figure 2.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.box = tuple(slice(a, b + 1) for a, b in config.box)
        self.stem: nn.Module = nn.Identity()
        if config.has_stem:
            convolution = nn.Conv3d(1, config.filters, 7, padding=1, dilation=2)
            self.stem = nn.Sequential(OrderedDict(convolution=convolution, elu=nn.ELU()))
        self.blocks = nn.ModuleList(
            ScaleDenseBlock(*width, config.asymmetric_convolutions, config.squeeze_excitation)
            for width in config.widths
        )
        self.pool_all = config.has_stem
        self.dense_connections = config.dense_connections
        last_in, last_out = config.widths[-1]
        self.features = last_in + last_out if self.pool_all and self.dense_connections else last_out
        self.activation_checkpointing = False
        self.frozen: list[nn.Module] = []  # of `model.building.freeze`

    def train(self, mode: bool = True) -> "ScaleDenseTrunk":
        """Switch between training and evaluation; frozen parts stay in evaluation."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        """Compute features.

        Parameters
        ----------
        volumes : (B, 1, D, H, W) float tensor, MNI152 space, normalized

        Returns
        -------
        (B, features) float32 tensor (float64 for float64 volumes)

        Notes
        -----
        Half of MNI152's grid is empty: the box of the brain saves a third
        of the work and more.
        """
        x = self.stem(volumes[:, :, *self.box])
        for block in self.blocks:
            path = recompute(block, x) if self.training and self.activation_checkpointing else block(x)
            x = torch.cat([functional.max_pool3d(x, 2), path], 1) if self.dense_connections else path
        pooled = x if self.pool_all else path
        return pooled.mean((2, 3, 4), dtype=torch.promote_types(pooled.dtype, torch.float32))


class ScaleDense(nn.Module):
    """The first or the second stage: a trunk and the head of that stage.

    Parameters
    ----------
    config : NetworkConfig

    Notes
    -----
    The head always runs in float32: bfloat16 tells ages near 64 years apart
    by no less than half a year.

    References
    ----------
    Cheng et al. 2021, sections III-B and III-C.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = ScaleDenseTrunk(config)
        self.image_layer = nn.Sequential(nn.Linear(self.trunk.features, 32), nn.ELU())
        width = 32
        if config.stage == 2:
            self.discretized_age_layer = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
            width += 16
        if config.use_sex:
            self.sex_layer = nn.Sequential(nn.Linear(2, 16), nn.Linear(16, 8), nn.ELU())
            width += 8
        self.output_layer = nn.Sequential(nn.Linear(width, 16), nn.Linear(16, 1))
        if not self.output_layer[0].weight.is_meta:  # weights without values need none; drawing them takes 1.5 s there
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights as the authors do: Kaiming, Xavier, biases zero.

        Notes
        -----
        The last layer starts at zero instead: the first stage begins at the
        mean age for everybody, so that its ReLU never starts dead, and the
        second stage at a residual of zero.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
            if isinstance(module, nn.Conv3d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.output_layer[-1].weight)  # type: ignore[arg-type]

    def folded(self) -> "ScaleDense":
        """Return a faster copy of this network for evaluation alone; see `model.folding`."""
        blocks: Any = {id(part): FoldedBlock(part) for part in self.modules() if isinstance(part, ScaleDenseBlock)}
        return copy.deepcopy(self, blocks).eval()

    def forward(
        self,
        volumes: torch.Tensor,
        sex: torch.Tensor | None = None,
        discretized_age: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Estimate ages (first stage) or residuals (second stage).

        Parameters
        ----------
        volumes : (B, 1, D, H, W) float32 tensor, MNI152 space, normalized
        sex : (B,) int64 tensor, 0 female, 1 male; unused without the sex input
        discretized_age : (B,) float32 tensor, years; second stage only

        Returns
        -------
        (B,) float32 tensor, years
            Brain age of the first stage, residual age of the second.
        """
        views = [volumes]
        if self.config.flip_averaging and not self.training:
            views.append(volumes.flip(2))
        estimates = []
        for view in views:
            features = self.trunk(view)
            with torch.autocast(volumes.device.type, enabled=False):
                estimates.append(self._head(features, sex, discretized_age))
        return torch.stack(estimates).mean(0) if len(estimates) > 1 else estimates[0]

    def _head(
        self,
        features: torch.Tensor,
        sex: torch.Tensor | None,
        discretized_age: torch.Tensor | None,
    ) -> torch.Tensor:
        """Join the image's features, the sex and the discretized age, in that order."""
        config = self.config
        parts = [self.image_layer(features)]
        if config.use_sex:
            if sex is None:
                raise ValueError("this network needs the sex of each subject; none was given")
            parts.append(self.sex_layer(functional.one_hot(sex.long(), 2).to(features.dtype)))
        if config.stage == 2:
            if discretized_age is None:
                raise ValueError("the second stage needs discretized ages; none were given")
            standardized = (discretized_age.to(features.dtype) - config.age_mean) / config.age_sd
            parts.append(self.discretized_age_layer(standardized[:, None]))
        output = config.age_sd * self.output_layer(torch.cat(parts, 1))[:, 0]
        return output if config.stage == 2 else functional.relu(config.age_mean + output)
