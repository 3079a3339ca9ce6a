"""Discretized ages: the released numbers, and tables that do not fit."""

import numpy as np
import pytest

from utils.common.errors import InputError
from utils.data.discretized_ages import discretize_age, read_discretized_ages, write_discretized_ages

IDS = ["sub-1", "sub-10", "sub-2"]
AGES = np.array([62.5, 34.2, 57.499])
SHA = "a" * 64


def test_numbers_of_the_released_code(reference_folder) -> None:
    with np.load(reference_folder / "scaledense_reference.npz") as stored:
        ages = stored["discretize/age"]
        np.testing.assert_array_equal(discretize_age(ages, 5), stored["discretize/step5"])
        np.testing.assert_array_equal(discretize_age(ages, 10), stored["discretize/step10"])


@pytest.mark.parametrize("interval", [1.0, 2.5, 5.0, 10.0])
def test_halves_go_up_and_nothing_moves_further_than_half(interval) -> None:
    centres = np.arange(0, 100, interval)
    np.testing.assert_array_equal(discretize_age(centres + interval / 2, interval), centres + interval)
    ages = np.linspace(0, 100, 1001)
    assert np.abs(discretize_age(ages, interval) - ages).max() <= interval / 2 + 1e-9


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "train_discretized_age.npy"
    write_discretized_ages(path, IDS, AGES, 5.0, SHA, np.array([True, True, False]))
    return path


def test_round_trip_joins_by_subject_without_pickle(table) -> None:
    rows = read_discretized_ages(table, ["sub-2", "sub-1"], 5.0, SHA)
    assert rows["discretized_age"].tolist() == [55.0, 65.0]
    np.testing.assert_allclose(rows["brain_age"], [57.499, 62.5])
    assert rows["out_of_fold"].tolist() == [False, True]
    assert sorted(p.name for p in table.parent.iterdir()) == [table.name]


def change(table, **fields):
    content = np.load(table)
    for name, value in fields.items():
        content[name] = value
    np.save(table, content)


def test_every_misfit_is_named(table) -> None:
    with pytest.raises(InputError, match="lacks sub-3"):
        read_discretized_ages(table, ["sub-1", "sub-3"], 5.0, SHA)
    with pytest.raises(InputError, match="interval of 5 years; expected 2.5"):
        read_discretized_ages(table, IDS, 2.5, SHA)
    with pytest.raises(InputError, match="another first stage"):
        read_discretized_ages(table, IDS, 5.0, "b" * 64)
    change(table, brain_age=np.nan)
    with pytest.raises(InputError, match="not finite"):
        read_discretized_ages(table, IDS, 5.0, SHA)
    change(table, subject_id=["sub-1", "sub-2", "sub-2"])
    with pytest.raises(InputError, match="has sub-2 twice"):
        read_discretized_ages(table, ["sub-1"], 5.0, SHA)


def test_other_files_are_refused(table, tmp_path) -> None:
    with pytest.raises(InputError, match="no such table"):
        read_discretized_ages(tmp_path / "none.npy", IDS, 5.0, SHA)
    np.save(table, np.arange(3))
    with pytest.raises(InputError, match="not a table of discretized ages"):
        read_discretized_ages(table, IDS, 5.0, SHA)
    np.save(table, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="not a readable"):
        read_discretized_ages(table, IDS, 5.0, SHA)


def test_long_subject_ids_stay_whole(tmp_path) -> None:
    path, name = tmp_path / "ages.npy", "x" * 200
    write_discretized_ages(path, [name], AGES[:1], 5.0, SHA, np.array([True]))
    assert read_discretized_ages(path, [name], 5.0, SHA)["subject_id"].tolist() == [name]
