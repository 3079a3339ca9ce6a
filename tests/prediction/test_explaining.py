"""Maps of where a network looks: against functions and brains whose answer is known."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from model.building import make_config, make_loss, make_network
from tests.conftest import VOXEL_SIZE
from utils.data.dataset import ScanDataset, collate, to_device
from utils.data.images import model_grid
from utils.data.scans import ScanStore
from utils.data.subjects import Subject
from utils.options import everything as options
from utils.prediction.explaining import explain, number_cubes
from utils.preparation.simulation import draw_subjects, simulate_volume
from utils.training.stages import FirstStage
from utils.training.trainer import Training

METHODS = ("occlusion", "integrated_gradients")
CPU = torch.device("cpu")
SEX = torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize("method", METHODS)
def test_a_map_finds_what_a_known_function_looks_at(method) -> None:
    rng = torch.Generator().manual_seed(0)
    volume = torch.randn(1, 1, 12, 14, 12, generator=rng)
    volume[..., 0] = volume.min()  # background
    weights = torch.zeros(12, 14, 12)
    weights[4:6, 4:6, 4:6] = 1.0

    def network(volumes: torch.Tensor, sex: torch.Tensor) -> torch.Tensor:
        return 50 + (volumes[:, 0] * weights).sum((1, 2, 3))

    reference = torch.zeros_like(volume)
    reference[..., 0] = -1
    values = explain(network, volume, reference, SEX, method, 8)
    assert values.shape == (12, 14, 12)
    looked_at = weights > 0
    difference = (volume[0, 0] * weights).sum()
    assert values[~looked_at].abs().max() < 1e-4
    if method == "occlusion":  # the cube is one of those that are covered
        torch.testing.assert_close(values[looked_at], difference.expand(8), atol=1e-3, rtol=1e-4)
    else:
        torch.testing.assert_close(values.sum(), difference, atol=1e-3, rtol=1e-4)


def test_cubes_cover_the_brain_and_leave_out_the_rest() -> None:
    brain = torch.zeros(1, 1, 7, 8, 9, dtype=torch.bool)
    brain[0, 0, 1, 1, 1] = brain[0, 0, 6, 7, 8] = True
    cubes = number_cubes(brain, 4)[0, 0]
    assert cubes.shape == (7, 8, 9)
    assert cubes.unique().tolist() == [0, 1, 2]
    assert (cubes[:4, :4, :4] == 1).all()
    assert (cubes[4:, 4:, 8:] == 2).all()
    assert (cubes == 0).sum() == 7 * 8 * 9 - 64 - 12


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """A network trained on simulated brains, new brains, and how much each voxel of theirs changes with age."""
    people = [replace(person, sex=0) for person in draw_subjects(46, seed=3)]
    shape = model_grid(VOXEL_SIZE).shape
    volumes = {person.subject_id: simulate_volume(person, 3, VOXEL_SIZE) for person in people}
    folder = tmp_path_factory.mktemp("simulated")
    subjects = []
    for person in people:
        path = folder / f"{person.subject_id}.nii"
        nibabel.save(nibabel.Nifti1Image(volumes[person.subject_id], model_grid(VOXEL_SIZE).affine), path)
        subjects.append(Subject(person.subject_id, path, person.true_brain_age, 0))
    store = ScanStore(VOXEL_SIZE, "brain")
    train, new = ScanDataset(subjects[:40], store), ScanDataset(subjects[40:], store)
    args = options.parse_training_flags(
        1,
        ["--model", "scaledense", "--blocks", "3", "--filters", "4", "--epochs", "30", "--num_workers", "0", "--device", "cpu", "--use_sex",
         "false", "--valid_folder", "", "--augmentation", "flip"],
    )  # fmt: skip
    config = make_config(args, 1, shape, None, [subject.chronological_age for subject in train.subjects])
    network = make_network(config, 0)
    Training(
        network, FirstStage(), make_loss(args), train, ScanDataset([], store), folder, args, CPU, {"network": {}}
    ).fit()
    mean = sum(to_device(collate([item]), CPU)["volume"] for item in train) / len(train)
    changes = []
    for person in people[40:]:
        young, old = (
            simulate_volume(replace(person, true_brain_age=age), 3, VOXEL_SIZE).astype(float) for age in (25.0, 85.0)
        )
        changes.append(np.abs(old - young))
    return network.folded(), new, mean, changes


@pytest.mark.parametrize("method", METHODS)
def test_maps_of_simulated_brains_find_the_regions_that_change(method, simulated) -> None:
    network, new, mean, changes = simulated
    maps, areas = [], []
    for item, change in zip(new, changes, strict=True):
        batch = to_device(collate([item]), CPU)
        values = explain(network, batch["volume"], mean, SEX, method, VOXEL_SIZE).abs().numpy()
        inside = np.asarray(item["voxels"]) > 0
        truth = change[inside] > np.quantile(change[inside], 0.8)
        areas.append(roc_auc_score(truth, values[inside]))
        maps.append(values)
    change = np.mean(changes, 0)
    inside = change > 0
    truth = change[inside] > np.quantile(change[inside], 0.8)
    together = roc_auc_score(truth, np.mean(maps, 0)[inside])
    print(f"{method}: area under the curve {np.mean(areas):.3f}, mean of the maps {together:.3f}, chance 0.5")
    assert np.mean(areas) > 0.53
    assert together > 0.58
