"""Weights that are one over the size of a class are too small for float16, which makes some zero
and the others equal; they have to stay in float32."""

import pytest
import torch
import torch.nn.functional as F

EXPECT = ("AMP304", "loss gate")
SIZES = [4.0e7, 3.8e7, 2.9e7, 2.4e7, 1.9e7, 1.2e7, 8e6, 6e6]


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = torch.nn.Linear(20, 64)
        self.out = torch.nn.Linear(64, 8)
        self.register_buffer("class_weights", 1 / torch.tensor(SIZES))

    def forward(self, x):
        return self.out(F.relu(self.hidden(x)))

    def loss(self, logits, labels):
        weights = self.class_weights.to(logits.dtype)[labels]  # <- here
        losses = F.cross_entropy(logits, labels, reduction="none")
        return (weights * losses).sum() / weights.sum()  # <- here


@pytest.fixture
def model(amp_device):
    model = Classifier().to(amp_device)
    with torch.no_grad():  # it knows the frequent classes by now
        model.out.bias.copy_(torch.tensor([2.0, 2.0, 0.5, 0.0, 0.0, -1.0, -2.0, -2.0]))
    return model


@pytest.fixture
def optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.05)


@pytest.fixture
def batch(amp_device):
    labels = torch.cat([torch.randint(0, 2, (224,)), torch.randint(2, 8, (32,))])
    return torch.randn(256, 20).to(amp_device), labels.to(amp_device)


@pytest.mark.amp(dtype="float16")
def test_imbalanced(model, optimizer, batch):
    x, labels = batch
    return model.loss(model(x), labels)
