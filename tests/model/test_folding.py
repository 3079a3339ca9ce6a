"""Folded convolutions compute in evaluation what asymmetric layers and batch norms compute."""

import pytest
import torch
from torch import nn

from model.folding import FoldedBlock
from model.layers import AsymmetricConv3d, ScaleDenseBlock
from model.scaledense import NetworkConfig, ScaleDense
from tests.model.helpers import channels_last, randomized


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_a_folded_block_equals_the_block(dtype, tolerance) -> None:
    block = randomized(ScaleDenseBlock(4, 8).to(dtype)).eval()
    x, folded = channels_last(2, 4, 9, 8, 10, dtype=dtype), FoldedBlock(block)
    with torch.no_grad():
        expected, output = block(x), folded(x)
    assert (output - expected).norm() / expected.norm() < tolerance
    assert not any(isinstance(part, nn.BatchNorm3d | AsymmetricConv3d) for part in folded.modules())


@pytest.mark.parametrize("model", ["scaledense", "scaledense_paper"])
def test_a_folded_network_equals_the_network(model) -> None:
    network = randomized(ScaleDense(NetworkConfig(1, model, True, (26, 28, 27), 3, 4, 50.0, 20.0)))
    nn.init.normal_(network.output_layer[-1].weight)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    volumes, sex = channels_last(3, 1, 26, 28, 27, dtype=torch.float32), torch.tensor([0, 1, 1])
    folded = network.train().folded()
    assert not folded.training
    with torch.no_grad():
        torch.testing.assert_close(folded(volumes, sex), network.eval()(volumes, sex), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
