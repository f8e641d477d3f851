"""A graph network of PyTorch Geometric, on a random graph."""

import pytest
import torch
import torch.nn.functional as F

nn = pytest.importorskip("torch_geometric.nn", reason="needs pytest-amp[frameworks]")


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.GCNConv(64, 64), nn.SAGEConv(64, 8)

    def forward(self, nodes, edges):
        return self.second(self.first(nodes, edges).relu(), edges)


@pytest.fixture
def graph(amp_device):
    nodes, edges = torch.randn(512, 64), torch.randint(512, (2, 4096))
    return nodes.to(amp_device), edges.to(amp_device), torch.randint(8, (512,)).to(amp_device)


@pytest.fixture
def model(amp_device):
    return Net().to(amp_device)


@pytest.fixture
def optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2)


@pytest.mark.amp(max_time=10)
def test_graph(model, optimizer, graph):
    nodes, edges, targets = graph
    return F.cross_entropy(model(nodes, edges), targets)
