"""The losses: the released code's numbers, and what ranks must obey."""

import numpy as np
import pytest
import torch

from model.ranking import CascadeLoss, SoftRank, age_difference_loss, tied_rank


@pytest.fixture(scope="module")
def reference(reference_folder) -> dict[str, torch.Tensor]:
    with np.load(reference_folder / "scaledense_reference.npz") as stored:
        return {key: torch.from_numpy(stored[key].squeeze()) for key in stored.files if key.startswith("loss/")}


def test_numbers_of_the_released_code(reference) -> None:
    predicted, age = reference["loss/predicted"], reference["loss/chronological_age"]
    torch.testing.assert_close(tied_rank(age), reference["loss/target_rank"].float(), rtol=1e-6, atol=0)
    pairs = torch.stack([reference["loss/pair_i"], reference["loss/pair_j"]]).long()
    torch.testing.assert_close(
        age_difference_loss(predicted, age, pairs), reference["loss/age_difference"].float(), rtol=1e-4, atol=0
    )
    parts = CascadeLoss()(predicted, age, torch.Generator())
    torch.testing.assert_close(parts["mse_loss"], reference["loss/mse"].float(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("length", [1, 2, 3, 17])
def test_soft_rank_becomes_the_tied_rank(length) -> None:
    values = torch.randint(0, 6, (length,), generator=torch.Generator().manual_seed(length)).float() * 10
    torch.testing.assert_close(SoftRank(1e-3)(values), tied_rank(values))


def test_soft_rank_properties() -> None:
    values = torch.tensor([30.0, 71.5, 44.0, 71.5, 20.0])
    rank = SoftRank(2.0)
    ranks = rank(values)
    assert ranks[1] == ranks[3]  # ties share
    assert ranks.sum().item() == pytest.approx((5 + 1) / 2)  # as do the true ranks
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(rank(values[order]), ranks[order])
    torch.testing.assert_close(rank(values + 12), ranks)
    assert rank(values[:1]).item() == 1.0
    torch.autograd.gradcheck(rank, values.double().requires_grad_())


def test_soft_rank_teaches_the_order() -> None:
    values = torch.tensor([50.0, 51.0, 49.0, 50.5]).requires_grad_()
    target = tied_rank(torch.tensor([20.0, 40.0, 60.0, 80.0]))
    optimizer = torch.optim.Adam([values], lr=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        (SoftRank(1.0)(values) - target).square().mean().backward()
        optimizer.step()
    assert values.argsort().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("loss", ["mse", "mae"])
@pytest.mark.parametrize("size", [1, 6])
def test_total_is_the_weighted_sum_of_its_parts(loss, size) -> None:
    generator = torch.Generator().manual_seed(3)
    age = torch.rand(size, generator=generator) * 60 + 20
    predicted = age + torch.randn(size, generator=generator)
    parts = CascadeLoss(loss, SoftRank(), ranking_weight=3.0, age_difference_weight=0.5)(predicted, age, generator)
    expected = parts[f"{loss}_loss"] + 3 * (parts["ranking"] + 0.5 * parts["age_difference"])
    torch.testing.assert_close(parts["loss"], expected)


def test_gradients_of_the_weighted_parts_are_measured() -> None:
    age = torch.tensor([20.0, 35.0, 50.0, 65.0])
    predicted = (age + torch.tensor([3.0, -1.0, 2.0, 0.5])).requires_grad_()
    criterion = CascadeLoss("mse", SoftRank(5.0), ranking_weight=4.0, age_difference_weight=0.5)
    parts = criterion(predicted, age, torch.Generator().manual_seed(0))
    assert parts["mse_loss_gradient"].item() == pytest.approx(2 / 4 * (3**2 + 1 + 2**2 + 0.5**2) ** 0.5)
    for name, weight in (("ranking", 4.0), ("age_difference", 2.0)):
        (expected,) = torch.autograd.grad(weight * parts[name], predicted, retain_graph=True)
        torch.testing.assert_close(parts[f"{name}_gradient"], expected.norm())
        assert expected.norm() > 0
    (total,) = torch.autograd.grad(parts["loss"], predicted)  # the graph is still there
    assert total.norm() > 0
    without = CascadeLoss("mse", None)(predicted, age, torch.Generator())
    assert {name for name in without if name.endswith("gradient")} == {"mse_loss_gradient", "age_difference_gradient"}
    with torch.no_grad():
        assert not [name for name in criterion(predicted, age, torch.Generator()) if name.endswith("gradient")]


def test_pairs_come_from_the_generator_alone() -> None:
    age, predicted = torch.arange(8.0) * 7, torch.arange(8.0) ** 2

    def draw(seed: int) -> float:
        torch.manual_seed(seed)
        return CascadeLoss()(predicted, age, torch.Generator().manual_seed(5))["age_difference"].item()

    assert draw(1) == draw(2)
    generator = torch.Generator().manual_seed(5)
    losses = {CascadeLoss()(predicted, age, generator)["age_difference"].item() for _ in range(5)}
    assert len(losses) > 1


def test_losses_are_float32_under_any_precision() -> None:
    parts = CascadeLoss(ranker=SoftRank())(
        torch.tensor([64.2, 30.0], dtype=torch.bfloat16), torch.tensor([60.0, 31.0]), torch.Generator()
    )
    assert {part.dtype for part in parts.values()} == {torch.float32}
