"""Tables of discretized ages: what they hold, and those that do not fit."""

import numpy as np
import pytest

from utils.common.errors import InputError
from utils.data.discretized_ages import read_discretized_ages, write_discretized_ages

IDS = ["sub-1", "sub-10", "sub-2"]
AGES = np.array([62.5, 34.2, 57.499])
SHA = "a" * 64


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
