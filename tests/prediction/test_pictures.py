"""Pictures and maps of scans."""

import matplotlib.image
import nibabel
import numpy as np

from tests.conftest import VOXEL_SIZE
from tests.prediction.conftest import prepared_scan
from utils.data.images import model_grid
from utils.prediction.pictures import draw_scan, write_map
from utils.prediction.scan_ages import PredictedScan


def test_the_picture_shows_the_chronological_age_and_the_warnings(tmp_path) -> None:
    prepared_scan(tmp_path / "a.nii.gz")
    scan = PredictedScan(
        "a", tmp_path / "a.nii.gz", tmp_path / "a.nii.gz", brain_age=50.0, radius=5.0, age_range=(20, 80)
    )

    def red() -> int:
        draw_scan(tmp_path / "a.png", scan)
        picture = matplotlib.image.imread(tmp_path / "a.png")[..., :3]
        return int((np.abs(picture - [0xC4 / 255, 0x4E / 255, 0x52 / 255]).max(-1) < 0.02).sum())

    amounts = [red()]
    scan.chronological_age = 60.0
    amounts.append(red())
    scan.warnings.append("a warning of several words")
    amounts.append(red())
    assert amounts[1] > amounts[0] + 30  # the mark and its legend
    assert amounts[2] > amounts[1] + 30  # the text


def test_a_map_is_written_as_it_is(tmp_path) -> None:
    prepared_scan(tmp_path / "a.nii.gz")
    grid = model_grid(VOXEL_SIZE)
    values = np.random.default_rng(0).normal(size=grid.shape)
    write_map(tmp_path / "maps", PredictedScan("a", tmp_path / "a.nii.gz"), values, VOXEL_SIZE)
    image = nibabel.load(tmp_path / "maps" / "a_map.nii.gz")
    np.testing.assert_allclose(image.get_fdata(), values, rtol=1e-5)
    np.testing.assert_array_equal(image.affine, grid.affine)
    assert (tmp_path / "maps" / "a_map.png").exists()
