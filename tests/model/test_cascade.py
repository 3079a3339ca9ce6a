"""Both stages as one network: what it computes, unknown sex, gradients."""

import torch

from model.cascade import Cascade
from model.scaledense import NetworkConfig, ScaleDense

SHAPE = (16, 18, 16)


def make(stage: int, seed: int, flip_averaging: bool = False) -> ScaleDense:
    torch.manual_seed(seed)
    config = NetworkConfig(
        stage, "scaledense_paper", True, SHAPE, 2, 2, 50.0, 15.0, ((1, 14), (0, 17), (1, 14)), flip_averaging
    )
    network = ScaleDense(config)
    torch.nn.init.normal_(network.output_layer[-1].weight)
    return network.eval()


def test_it_is_the_mean_of_the_cascades() -> None:
    members = [(make(1, seed), make(2, seed + 10)) for seed in range(2)]
    volumes, sex = torch.randn(3, 1, *SHAPE), torch.tensor([0, 1, 1])
    expected = []
    for first, second in members:
        discretized = torch.floor(first(volumes, sex) / 5 + 0.5) * 5
        expected.append(discretized + second(volumes, sex, discretized))
    cascade = Cascade(members, 5.0)
    torch.testing.assert_close(cascade(volumes, sex), torch.stack(expected).mean(0))
    torch.testing.assert_close(cascade.folded()(volumes, sex), cascade(volumes, sex), atol=1e-3, rtol=1e-5)


def test_unknown_sex_gives_the_mean_of_both() -> None:
    cascade = Cascade([(make(1, 0), make(2, 1))], 5.0)
    volumes = torch.randn(2, 1, *SHAPE)
    of_both = [cascade(volumes, torch.tensor([sex, 1])) for sex in (0, 1)]
    torch.testing.assert_close(cascade(volumes, torch.tensor([-1, 1])), (of_both[0] + of_both[1]) / 2)


def test_gradients_pass_the_discretization() -> None:
    first, second = make(1, 0), make(2, 1)
    torch.nn.init.zeros_(second.output_layer[-1].weight)
    volumes = torch.randn(1, 1, *SHAPE, requires_grad=True)
    Cascade([(first, second)], 5.0)(volumes, torch.tensor([0])).sum().backward()
    gradient = volumes.grad.clone()
    volumes.grad = None
    first(volumes, torch.tensor([0])).sum().backward()
    torch.testing.assert_close(gradient, volumes.grad)
    assert gradient.abs().sum() > 0


def test_flip_averaging_and_field_of_view() -> None:
    network = make(1, 0, flip_averaging=True)
    volumes, sex = torch.randn(2, 1, *SHAPE), torch.tensor([0, 1])
    torch.testing.assert_close(network(volumes, sex), network(volumes.flip(2), sex))
    one_way = make(1, 0)
    torch.testing.assert_close(network(volumes, sex), (one_way(volumes, sex) + one_way(volumes.flip(2), sex)) / 2)
    outside = volumes.clone()
    outside[:, :, 0] += 100
    outside[..., 15] += 100
    torch.testing.assert_close(one_way(outside, sex), one_way(volumes, sex))
    assert not torch.equal(network.train()(volumes, sex), network(volumes.flip(2), sex))
