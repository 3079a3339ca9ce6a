"""Quality control of preprocessing: quantities, verdict and picture of a scan."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage, signal

from utils.preparation.parameters import LIMITS
from utils.preparation.records import DOUBTFUL, FAIL, PASS
from utils.preparation.template import Template, load_tissue_maps, sample, voxel_coordinates

TISSUE_LEVELS = 0.7, 0.9  # probabilities from which a voxel counts as gray or white matter
NONLINEAR_ONLY = ("affine_dice", "smallest_jacobian", "largest_jacobian")

PICTURE_ZOOM = 2
COLOURS = 96  # of a picture
LINE = 6  # slices side by side
SURROUNDINGS = 6  # voxels around the brain that a picture shows; the face is further away
AXIAL, CORONAL, SAGITTAL = (24, 34, 44, 54, 64), (32, 48, 64, 80), (30, 45, 60)  # voxels of the 2 mm grid
TEMPLATE_COLOUR, MASK_COLOUR = (255, 80, 80), (80, 220, 120)


@dataclass(frozen=True)
class Alignment:
    """Where the voxels of the template's grid are in a native volume.

    Parameters
    ----------
    affine : (4, 4) float array, voxel to mm, of the native volume
    matrix : (4, 4) float array, from mm of the template to mm of the native volume
    displacement : (91, 109, 91, 3) float32 array, mm, or None
    header : (4, 4) float array, voxel to mm, as the file gives it
    """

    affine: np.ndarray
    matrix: np.ndarray
    displacement: np.ndarray | None
    header: np.ndarray


def measure_quality(
    volume: np.ndarray,
    native: np.ndarray,
    native_mask: np.ndarray,
    alignment: Alignment,
    scanned: tuple[slice, ...],
    template: Template,
) -> dict[str, float]:
    """Measure the quantities that `judge` needs.

    Parameters
    ----------
    volume : (91, 109, 91) float32 array, the result
    native : (D, H, W) float32 array, the scan without its bias field
    native_mask : (D, H, W) bool array, the brain
    alignment : Alignment
    scanned : tuple of 3 slice
        The box of the native volume that was scanned.
    template : Template

    Returns
    -------
    dict of quantity to float; see `LIMITS`
    """
    brain, inside = template.brain, volume > 0
    both = (inside & brain).sum()
    where = voxel_coordinates(alignment.affine, alignment.matrix, alignment.displacement)[:, brain]
    outside = np.any((where < -0.5) | (where > np.array(native.shape)[:, None] - 0.5), axis=0)
    # What the affine does to the header's own axes, even if the header is wrong.
    whole = alignment.header @ np.linalg.inv(alignment.affine) @ alignment.matrix
    left, scales, right = np.linalg.svd(whole[:3, :3])
    turn = left @ right
    turn = turn * np.sign(np.linalg.det(turn))
    quality = {
        "brain_volume": native_mask.sum() * abs(np.linalg.det(alignment.affine[:3, :3])) / 1000,
        "dice": 2 * both / (inside.sum() + brain.sum()),
        "coverage": both / brain.sum(),
        "correlation": brain_correlation(volume, template),
        "white_to_gray": white_to_gray(volume),
        "outside_field_of_view": outside.mean(),
        "cut_area": cut_area(native_mask, scanned, np.linalg.norm(alignment.affine[:3, :3], axis=0)),
        "rotation": np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))),
        "smallest_scale": scales[-1],
        "largest_scale": scales[0],
        **_signal_and_noise(native, native_mask),
    }
    if alignment.displacement is not None:
        jacobian = _jacobian(alignment.displacement)[brain]
        quality |= {"smallest_jacobian": jacobian.min(), "largest_jacobian": jacobian.max()}
        rough = sample(native_mask.astype(np.float32), alignment.affine, alignment.matrix) > 0.5
        quality["affine_dice"] = 2 * (rough & brain).sum() / (rough.sum() + brain.sum())
    return {name: float(value) for name, value in quality.items() if np.isfinite(value)}


def judge(quality: dict[str, float], notes: list[str]) -> tuple[str, list[str]]:
    """Give a verdict and its reasons.

    Parameters
    ----------
    quality : dict of quantity to float
    notes : list of str
        Further reasons for doubt.

    Returns
    -------
    verdict : {"pass", "doubtful", "fail"}
    reasons : list of str
    """
    verdict = DOUBTFUL if notes else PASS
    reasons = list(notes)
    for name, limits in LIMITS.items():
        value = quality.get(name)
        if value is None:
            if name not in NONLINEAR_ONLY:
                verdict = DOUBTFUL if verdict == PASS else verdict
                reasons.append(f"{name} could not be measured")
            continue
        hopeless = value < limits.fail_below or value > limits.fail_above
        if hopeless:
            verdict = FAIL
        elif not (value < limits.doubt_below or value > limits.doubt_above):
            continue
        elif verdict == PASS:
            verdict = DOUBTFUL
        low, high = limits[1:5:3] if hopeless else limits[2:4]
        wanted = f"at least {low:g}" if value < low else f"at most {high:g}"
        reasons.append(f"{name} is {value:.3g}, expected {wanted} ({limits.meaning})")
    return verdict, reasons


def misplacement(volume: np.ndarray, template: Template) -> np.ndarray:
    """Estimate how far a brain is shifted from the template's, by the maximum of their cross-correlation.

    Parameters
    ----------
    volume : (91, 109, 91) float array, 0 outside the brain
    template : Template

    Returns
    -------
    (3,) int array, voxels
    """
    brains = [own - own.mean() for own in (volume, np.where(template.brain, template.volume, 0))]
    agreement = signal.correlate(*brains, mode="same", method="fft")
    return np.array(np.unravel_index(agreement.argmax(), volume.shape)) - (np.array(volume.shape) // 2)


def cut_area(mask: np.ndarray, scanned: tuple[slice, ...], voxel_size: np.ndarray) -> float:
    """Return the largest area of brain on a face of the box that was scanned, square cm."""
    areas = []
    for axis in range(3):
        face = np.delete(voxel_size, axis).prod() / 100
        planes = np.moveaxis(mask[scanned], axis, 0)
        areas += [planes[0].sum() * face, planes[-1].sum() * face]
    return float(max(areas))


def brain_correlation(volume: np.ndarray, template: Template) -> float:
    """Return the correlation of a (91, 109, 91) volume with the template in its brain; 0 if it is constant there."""
    inside = volume[template.brain]
    return float(np.corrcoef(inside, template.volume[template.brain])[0, 1]) if inside.std() > 0 else 0.0


def white_to_gray(volume: np.ndarray) -> float:
    """Return the median intensity of white matter over that of gray, where the template has them.

    Parameters
    ----------
    volume : (91, 109, 91) float array, 0 outside the brain

    Returns
    -------
    float
        1.15 to 1.73 in 181 T1-weighted scans of three scanners; NaN if there is no brain at one of these places.
    """
    gray, white = (
        volume[(own > level) & (volume > 0)] for own, level in zip(load_tissue_maps(), TISSUE_LEVELS, strict=True)
    )
    return float(np.median(white) / np.median(gray)) if gray.size and white.size else float("nan")


def _signal_and_noise(native: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Measure the brightness of bright tissue, and the noise by second-order differences along the first axis."""
    signal = np.percentile(native[mask], 75)
    core = ndimage.binary_erosion(mask, iterations=2)
    whole = core[:-2] & core[2:] & core[1:-1]
    if not whole.any():
        return {"signal": signal, "noise": np.nan, "signal_to_noise": np.nan}
    second = (native[:-2] + native[2:] - 2 * native[1:-1])[whole] / np.sqrt(6)
    noise = np.median(np.abs(second)) * 1.4826
    return {"signal": signal, "noise": noise, "signal_to_noise": signal / max(noise, 1e-9 * signal)}


def _jacobian(displacement: np.ndarray) -> np.ndarray:
    """Return the Jacobian determinant at each voxel, (91, 109, 91) array."""
    signs = np.array([-1.0, 1.0, 1.0])  # the first axis points left
    gradients = [np.gradient(displacement[..., axis], 2.0) for axis in range(3)]
    matrix = np.eye(3) + np.stack([np.stack(part, -1) * signs for part in gradients], -2)
    return np.linalg.det(matrix)


def draw_picture(
    path: Path, head: np.ndarray, volume: np.ndarray, template: Template, name: str, verdict: str, reasons: list[str]
) -> None:
    """Draw slices of a result: at the top with the template's outline, at the bottom with that of the brain mask.

    Parameters
    ----------
    path : Path of the PNG file
    head : (91, 109, 91) float32 array
        The scan on the template's grid, with the tissue around the brain.
    volume : (91, 109, 91) float32 array
        The result, 0 outside the brain.
    template : Template
    name, verdict, reasons : str, str, list of str
        Written at the top.
    """
    inside = volume > 0
    near = ndimage.binary_dilation(inside, iterations=SURROUNDINGS)
    rows = [
        slices(volume, volume, template.brain, TEMPLATE_COLOUR),
        slices(np.where(near, head, 0), volume, inside, MASK_COLOUR),
    ]
    width = max(row.shape[1] for row in rows)
    header = 64
    canvas = Image.new("RGB", (width, header + sum(row.shape[0] for row in rows)), (16, 16, 16))
    pen = ImageDraw.Draw(canvas)
    pen.text((8, 4), f"{name}: {verdict}", (255, 255, 255), ImageFont.load_default(18))
    text = textwrap.wrap("; ".join(reasons), 190, max_lines=2, placeholder=" ...")
    pen.text((8, 27), "\n".join(text), (220, 220, 220), ImageFont.load_default(12))
    top = header
    for row in rows:
        canvas.paste(Image.fromarray(row), (0, top))
        top += row.shape[0]
    canvas.quantize(COLOURS).save(path, format="PNG", optimize=True)


def slices(volume: np.ndarray, brain: np.ndarray, outline: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Arrange slices of the three directions in lines, with an outline.

    Parameters
    ----------
    volume : (91, 109, 91) float32 array
        The volume to show.
    brain : (91, 109, 91) float32 array, 0 outside the brain
        Its brightest voxels are shown in white.
    outline : (91, 109, 91) bool array
    colour : tuple of 3 int

    Returns
    -------
    (H, W, 3) uint8 array
    """
    level = float(np.percentile(brain[brain > 0], 99.5)) if (brain > 0).any() else 1.0
    tiles = []
    for axis, indices in ((2, AXIAL), (1, CORONAL), (0, SAGITTAL)):
        for index in indices:
            grey, mask = (np.rot90(np.take(part, index, axis)) for part in (volume, outline))
            grey = ndimage.zoom(np.clip(grey / level, 0, 1), PICTURE_ZOOM, order=1)
            mask = np.kron(mask, np.ones((PICTURE_ZOOM, PICTURE_ZOOM))) > 0
            tile = np.repeat((255 * grey).astype(np.uint8)[..., None], 3, 2)
            tile[mask & ~ndimage.binary_erosion(mask)] = colour
            tiles.append(tile)
    height = max(tile.shape[0] for tile in tiles)
    padded = [np.pad(tile, ((0, height - tile.shape[0]), (0, 4), (0, 0))) for tile in tiles]
    lines = [np.concatenate(padded[start : start + LINE], 1) for start in range(0, len(padded), LINE)]
    width = max(line.shape[1] for line in lines)
    return np.concatenate([np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0))) for line in lines])
