"""Measure preprocessing on real scans: brain masks, age by ridge regression, and damaged scans."""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import nibabel
import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.spatial.transform import Rotation
from sklearn.metrics import mean_absolute_error
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from benchmarks.ridge_baseline import ridge, voxels_of
from utils.data.image_files import is_nifti
from utils.data.images import read_image
from utils.data.names import subject_id_of
from utils.data.tables import read_label_table

SEPARATOR = "__"  # between the name of a scan and its damage
FOLDS = 10
SEEDS = 3


def load(path: Path) -> Any:
    """Open a NIfTI file."""
    return nibabel.load(path)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Dice overlap of two masks."""
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def measure_masks(preprocessed: Path, segmentations: Path) -> dict[str, Any]:
    """Compare native brain masks with segmentations, whose labels above 0 are brain."""
    inside, overlap, names = [], [], []
    for path in sorted(filter(is_nifti, segmentations.iterdir())):
        mask_file = preprocessed / "masks" / path.name
        if mask_file.exists():
            brain, mask = (np.asarray(load(file).dataobj) > 0 for file in (path, mask_file))
            names.append(subject_id_of(path.name))
            inside.append(float((brain & mask).sum() / brain.sum()))
            overlap.append(dice(brain, mask))
    worst = int(np.argmin(inside))
    return {
        "scans": len(names),
        "inside": {"lowest": inside[worst], "of": names[worst], "median": float(np.median(inside))},
        "dice": {"lowest": min(overlap), "median": float(np.median(overlap))},
    }


def measure_ridge(preprocessed: Path, label_table: Path) -> dict[str, Any]:
    """Cross-validate ridge regression of age on smoothed voxels of 4 mm, z-scored within each scan."""
    labels = read_label_table(label_table)
    rows = {path: labels.find(path.name) for path in sorted(filter(is_nifti, preprocessed.iterdir()))}
    known = {path: row.age.years for path, row in rows.items() if row and np.isfinite(row.age.years)}
    paths, ages = list(known), np.array(list(known.values()))
    voxels = voxels_of(paths, "brain")
    bins = pd.qcut(ages, FOLDS, labels=False)
    maes, correlations = [], []
    for seed in range(SEEDS):
        folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(voxels, bins))
        predicted = cross_val_predict(ridge(), voxels, ages, cv=folds)
        maes.append(mean_absolute_error(ages, predicted))
        correlations.append(np.corrcoef(ages, predicted)[0, 1])
    return {"scans": len(paths), "mae": maes, "mean_mae": float(np.mean(maes)), "pearson": float(np.mean(correlations))}


def damage(image: Any, mask: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[str, Any]]:
    """Damage a scan in many ways.

    Parameters
    ----------
    image : nibabel image of the raw scan
    mask : (D, H, W) bool array, its brain mask
    rng : numpy Generator

    Yields
    ------
    name, image
    """
    upright = nibabel.as_closest_canonical(image)
    volume, affine = upright.get_fdata(dtype=np.float32), upright.affine
    brain = (
        np.asarray(nibabel.as_closest_canonical(nibabel.Nifti1Image(mask.astype(np.uint8), image.affine)).dataobj) > 0
    )
    top = float(np.percentile(volume, 99))
    size = np.linalg.norm(affine[:3, :3], axis=0)

    def made(data: np.ndarray, matrix: np.ndarray = affine) -> Any:
        return nibabel.Nifti1Image(data, matrix)

    for name, angles in (
        ("rotated +20 about x", (20, 0, 0)), ("rotated -20 about x", (-20, 0, 0)), ("rotated +20 about y", (0, 20, 0)),
        ("rotated +20 about z", (0, 0, 20)), ("rotated 20 about all", (20, 20, 20)),
    ):  # fmt: skip
        yield name, made(_rotate(volume, angles))
    shifted = affine.copy()
    shifted[:3, 3] += 60
    yield "shifted by 60 mm", made(volume, shifted)
    for name, wanted in (("1x1x3 mm", (1, 1, 3)), ("3x1x1 mm", (3, 1, 1)), ("upsampled to 1 mm", (1, 1, 1))):
        yield name, _resampled(volume, affine, np.array(wanted) / size)
    yield "strong bias field", made(volume * _bias_field(volume.shape, rng))
    noise = rng.normal(0, 0.06 * top, (2, *volume.shape))
    yield "noise", made(np.hypot(volume + noise[0], noise[1]).astype(np.float32))
    lowest, highest = np.flatnonzero(brain.any((0, 1)))[[0, -1]]
    cut = max(0, lowest - 3)
    yield "neck cut", made(volume[:, :, cut:], affine @ nibabel.affines.from_matvec(np.eye(3), [0, 0, cut]))
    padded = np.pad(volume, 80)
    yield "padded by 80 voxels", made(padded, affine @ nibabel.affines.from_matvec(np.eye(3), [-80] * 3))
    yield "top of the brain cut", made(volume[:, :, : highest - round(24 / size[2])])
    yield "uint8", made(np.clip(255 * volume / volume.max(), 0, 255).astype(np.uint8))
    yield "int16", made(np.round(volume).astype(np.int16))
    yield "float64, negative background", made(np.where(volume > 0.05 * top, volume, -1024).astype(np.float64))
    yield "float64, NaN background", made(np.where(volume > 0.05 * top, volume, np.nan).astype(np.float64))
    bare = nibabel.Nifti1Image(np.asarray(image.dataobj), None)
    bare.header.set_zooms(image.header.get_zooms())
    bare.header["qform_code"] = bare.header["sform_code"] = 0
    yield "no qform, no sform", bare
    flip = np.diag([-1.0, 1, 1, 1])
    for name, lie in (
        ("header: left is right", flip), ("header: front is back", np.diag([1.0, -1, 1, 1])),
        ("header: top is bottom", np.diag([1.0, 1, -1, 1])),
        ("header: turned by 180 about z", np.diag([-1.0, -1, 1, 1])),
        ("header: x is y is z", np.eye(4)[[1, 2, 0, 3]]),
        ("header: turned by 90 about x", np.eye(4)[[0, 2, 1, 3]] @ flip),
    ):  # fmt: skip
        yield name, made(volume, lie @ affine)


def _rotate(volume: np.ndarray, angles: tuple[float, ...]) -> np.ndarray:
    """Rotate the head within a larger field of view."""
    padded = np.pad(volume, 12)
    matrix = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    centre = (np.array(padded.shape) - 1) / 2
    return ndimage.affine_transform(padded, matrix, centre - matrix @ centre, order=1)


def _resampled(volume: np.ndarray, affine: np.ndarray, step: np.ndarray) -> Any:
    """Resample to voxels that are `step` times as large along each axis."""
    smooth = ndimage.gaussian_filter(volume, np.sqrt(np.maximum(step**2 - 1, 0)) / np.sqrt(8 * np.log(2)))
    shape = [int(size / s) for size, s in zip(volume.shape, step, strict=True)]
    offset = (step - 1) / 2
    data = ndimage.affine_transform(smooth, step, offset, shape, order=1)
    return nibabel.Nifti1Image(data, affine @ nibabel.affines.from_matvec(np.diag(step), offset))


def _bias_field(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draw a second-order field whose logarithm has a standard deviation of 0.3."""
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    terms = [*axes, *(one * other for one, other in itertools.combinations_with_replacement(axes, 2))]
    field = sum(weight * term for weight, term in zip(rng.normal(size=len(terms)), terms, strict=True))
    return np.exp(0.3 * (field - field.mean()) / field.std()).astype(np.float32)


def write_damaged(raw: Path, preprocessed: Path, output: Path, count: int) -> None:
    """Write damaged copies of some scans, spread evenly over the folder."""
    output.mkdir(parents=True, exist_ok=True)
    paths = sorted(filter(is_nifti, raw.iterdir()))
    for number, path in enumerate(paths[:: max(1, len(paths) // count)][:count]):
        image, mask = load(path), load(preprocessed / "masks" / path.name)
        for name, damaged in damage(image, np.asarray(mask.dataobj) > 0, np.random.default_rng(number)):
            nibabel.save(damaged, output / f"{subject_id_of(path.name)}{SEPARATOR}{name}.nii.gz")


def compare_damaged(preprocessed: Path, damaged: Path) -> list[dict[str, Any]]:
    """Correlate the results of damaged scans with those of the undamaged scans, inside either brain."""
    rows = pd.read_csv(damaged / "qc.csv")
    rows["damage"] = rows["name"].str.split(SEPARATOR).str[1]
    result = []
    for kind, group in rows.groupby("damage", sort=False):
        correlations, mirrored = [], []
        for name in group["name"]:
            file = damaged / f"{name}.nii.gz"
            if file.exists():
                one = read_image(preprocessed / f"{name.split(SEPARATOR)[0]}.nii.gz", 2)
                other = read_image(file, 2)
                correlations.append(_correlation(one, other))
                mirrored.append(_correlation(one, other[::-1]))
        verdicts = group["verdict"].value_counts()
        result.append({
            "damage": kind, "scans": len(group), **{v: int(verdicts.get(v, 0)) for v in ("pass", "doubtful", "fail")},
            "lowest": min(correlations, default=None), "median": float(np.median(correlations)) if correlations else None,
            "median_mirrored": float(np.median(mirrored)) if mirrored else None,
            "reason": str(group["reasons"].fillna("").mode()[0])[:120],
        })  # fmt: skip
    return result


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    brain = (one > 0) | (other > 0)
    return float(np.corrcoef(one[brain], other[brain])[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    kinds = ("masks", "ridge", "damage", "compare")
    parser.add_argument("what", choices=kinds, help="what to measure; damage writes damaged scans, for compare")
    parser.add_argument(
        "--preprocessed", type=Path, nargs="+", required=True,
        help="folders of preprocess.py; for masks and damage, made with --save_masks true",
    )  # fmt: skip
    parser.add_argument("--raw", type=Path, help="folder of raw scans, for damage")
    parser.add_argument("--segmentations", type=Path, help="folder of native segmentations, for masks")
    parser.add_argument("--label_table", type=Path, help="table of subject and age, for ridge")
    parser.add_argument("--damaged", type=Path, help="folder for damaged scans (damage), or of their results (compare)")
    parser.add_argument("--count", type=int, default=10, help="scans to damage")
    args = parser.parse_args()
    for folder in args.preprocessed:
        if args.what == "masks":
            found: Any = measure_masks(folder, args.segmentations)
        elif args.what == "ridge":
            found = measure_ridge(folder, args.label_table)
        elif args.what == "damage":
            write_damaged(args.raw, folder, args.damaged, args.count)
            found = f"written to {args.damaged}; now preprocess them with --keep_failed true"
        else:
            found = compare_damaged(folder, args.damaged)
        print(folder, json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
