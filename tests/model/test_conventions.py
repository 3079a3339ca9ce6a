"""Discretized ages: the released numbers, and halves."""

import numpy as np
import pytest
import torch

from model.conventions import discretize_age


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
    assert torch.equal(
        discretize_age(torch.from_numpy(ages), interval), torch.from_numpy(discretize_age(ages, interval))
    )
