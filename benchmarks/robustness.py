"""How far a brain age moves if the same scan is stored, shaded or masked in another way.

    python -m benchmarks.robustness --raw raw --output_dir runs/robustness --count 10

Writes changed copies of some raw scans, estimates all of them by predict.py, and prints a table of the changes.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
from scipy import ndimage

from benchmarks.preprocessing import _bias_field, _resampled, load
from utils.common.files import PROJECT
from utils.data.image_files import is_nifti
from utils.data.names import subject_id_of

AS_IT_IS = "as it is"
SEPARATOR = "__"
MOVED = 3.0  # years; a larger move should carry a mark
EROSION, BLUR = 2.0, 1.0  # mm


def change(image: Any, brain: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[str, Any]]:
    """Yield the kinds of change and the changed scans.

    Parameters
    ----------
    image : nibabel image, a raw scan
    brain : bool array, its brain on its own grid
    rng : numpy.random.Generator
    """
    volume, affine = np.asarray(image.dataobj, np.float32), image.affine
    size = np.linalg.norm(affine[:3, :3], axis=0)
    top = float(np.percentile(volume[brain], 99))

    def made(data: np.ndarray) -> Any:
        return nibabel.Nifti1Image(data.astype(np.float32), affine)

    yield AS_IT_IS, made(volume)
    for wanted in (1.0, 2.0, 3.0):
        yield f"{wanted:g} mm", _resampled(volume, affine, wanted / size)
    for gamma in (0.7, 1.4):
        yield f"gamma {gamma:g}", made(top * (np.maximum(volume, 0) / top) ** gamma)
    yield "strong bias field", made(volume * _bias_field(volume.shape, rng))
    yield f"blurred by {BLUR:g} mm", made(ndimage.gaussian_filter(volume, BLUR / size))
    yield "brain extracted", made(np.where(brain, np.maximum(volume, 1e-3 * top), 0))
    core = ndimage.distance_transform_edt(brain, sampling=size) > EROSION
    yield f"brain eroded by {EROSION:g} mm", made(np.where(core, np.maximum(volume, 1e-3 * top), 0))


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each kind of change: how far ages moved, and whether large moves are marked."""
    names = table["subject_id"].str.split(SEPARATOR, expand=True)
    table = table.assign(person=names[0], kind=names[1])
    usual = table[table["kind"] == AS_IT_IS].set_index("person")["brain_age"]
    table["move"] = table["brain_age"] - table["person"].map(usual)
    rows = []
    for kind, group in table.groupby("kind", sort=False):
        moved = group["move"].abs() > MOVED
        rows.append({
            "change": kind, "scans": len(group), "failed": int(group["brain_age"].isna().sum()),
            "mean move": group["move"].mean(), "mean size of moves": group["move"].abs().mean(),
            "largest": group["move"].abs().max(), f"over {MOVED:g} years": int(moved.sum()),
            "of them marked unlike": int((moved & (group["status"] == "unlike training scans")).sum()),
            "others marked unlike": int((~moved & (group["status"] == "unlike training scans")).sum()),
        })  # fmt: skip
    return pd.DataFrame(rows).sort_values("change", key=lambda kinds: kinds != AS_IT_IS, kind="stable")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, nargs="+", required=True, help="folders of raw scans")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/robustness"), help="folder for everything")
    parser.add_argument("--weights_dir", type=Path, default=PROJECT / "weights", help="weights of bash_predict.sh")
    parser.add_argument("--count", type=int, default=10, help="scans to change, spread evenly over each folder")
    args = parser.parse_args()
    changed, whole = args.output_dir / "changed", args.output_dir / "whole"
    for folder in (changed, whole):
        folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for raw in args.raw:
        found = sorted(filter(is_nifti, raw.iterdir()))
        paths += found[:: max(1, len(found) // args.count)][: args.count]
    for path in paths:
        link = whole / path.name
        if not link.is_symlink():
            link.symlink_to(path.resolve())
    masks = args.output_dir / "masks_of_whole"
    run("preprocess.py", "--input", whole, "--output_dir", masks, "--save_masks", "true")
    for number, path in enumerate(paths):
        brain = np.asarray(load(masks / "masks" / path.name).dataobj) > 0
        for kind, image in change(load(path), brain, np.random.default_rng(number)):
            target = changed / f"{subject_id_of(path.name)}{SEPARATOR}{kind}.nii.gz"
            if not target.exists():
                nibabel.save(image, target)
    out = args.output_dir / "predictions"
    run("predict.py", "--input", changed, "--output_dir", out, "--overwrite", "true", "--weights_dir", args.weights_dir)
    table = summarize(pd.read_csv(out / "predictions.csv"))
    table.to_csv(args.output_dir / "moves.csv", index=False)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.2f}"))


def run(script: str, *flags: object) -> None:
    """Run an entry point; doubtful or failed scans are no reason to stop."""
    subprocess.run([sys.executable, str(PROJECT / script), *map(str, flags)], check=False)


if __name__ == "__main__":
    main()
