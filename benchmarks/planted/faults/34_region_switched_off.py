"""The model opens an autocast region of its own, whose use_amp nobody sets, so everything within
runs in float32; pass the setting on, or drop the inner region.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

EXPECT = ("AMP101",)


class Config:
    width = 48
    use_amp = False  # <- here


class GraphNet(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.use_amp = config.use_amp
        self.node, self.message = nn.Linear(10, config.width), nn.Linear(config.width, config.width)
        self.readout = nn.Linear(config.width, 3)

    def propagate(self, adjacency, nodes):
        hidden = torch.relu(self.node(nodes))
        for _ in range(2):
            hidden = torch.relu(self.message(adjacency @ hidden)) + hidden
        return self.readout(hidden.mean(1))

    def forward(self, adjacency, nodes):
        with torch.autocast(nodes.device.type, enabled=self.use_amp):  # <- here
            return self.propagate(adjacency, nodes)  # <- here


@pytest.fixture
def model(amp_device):
    return GraphNet(Config()).to(amp_device)


@pytest.fixture
def optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-3)


@pytest.fixture
def graphs(amp_device):
    links = (torch.rand(16, 12, 12) < 0.3).float() + torch.eye(12)
    adjacency = links / links.sum(-1, keepdim=True)
    nodes = torch.randn(16, 12, 10)
    labels = nodes.mean(1)[:, :3].argmax(1)
    return adjacency.to(amp_device), nodes.to(amp_device), labels.to(amp_device)


@pytest.mark.amp(dtype="bfloat16")
def test_graph_classifier(model, optimizer, graphs):
    adjacency, nodes, labels = graphs
    return F.cross_entropy(model(adjacency, nodes), labels)
