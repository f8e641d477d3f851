"""Ten small models on real data, for benchmarks/parity.py."""

import itertools
import pydoc_data.topics

import torch
import torch.nn.functional as F
from torch import nn

BATCH = 64


def digits():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)


def text():
    joined = "".join(pydoc_data.topics.topics.values())
    return torch.tensor([min(ord(each), 127) for each in joined[:200_000]])


def regression():
    from sklearn.datasets import load_diabetes

    data, target = load_diabetes(return_X_y=True)
    target = torch.tensor(target, dtype=torch.float32)[:, None]
    return 20 * torch.tensor(data, dtype=torch.float32), (target - target.mean()) / target.std()


def rows(data):
    """Return a function that draws a batch of rows of each tensor."""

    def draw():
        chosen = torch.randint(len(data[0]), (BATCH,))
        return tuple(each[chosen] for each in data)

    return draw


def windows(tokens, length=32, batch=16):
    def draw():
        starts = torch.randint(len(tokens) - length - 1, (batch, 1)) + torch.arange(length + 1)
        found = tokens[starts]
        return found[:, :-1], found[:, 1:]

    return draw


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x, causal):
        batch, length, width = x.shape
        mixed = self.mix(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(*mixed, is_causal=causal)
        return self.out(found.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    def __init__(self, width=64, heads=4, causal=True):
        super().__init__()
        self.causal = causal
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attend = Attention(width, heads)
        self.layers = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        x = x + self.attend(self.norms[0](x), self.causal)
        return x + self.layers(self.norms[1](x))


class CharTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(128, 64), nn.Embedding(32, 64)
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 128)

    def forward(self, ids):
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.blocks(x)))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.tokens, self.rnn = nn.Embedding(128, 48), kind(48, 96, batch_first=True)
        self.head = nn.Linear(96, 128)

    def forward(self, ids):
        return self.head(self.rnn(self.tokens(ids))[0])


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Flatten(), nn.Linear(512, 10),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x)


class Vit(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.places = nn.Linear(4, 64), nn.Parameter(torch.randn(16, 64) / 8)
        self.blocks = nn.Sequential(Block(causal=False), Block(causal=False))
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 10)

    def forward(self, x):
        cut = x.view(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)
        return self.head(self.norm(self.blocks(self.patches(cut) + self.places)).mean(1))


class Mlp(nn.Module):
    def __init__(self, *sizes, rate=0.1):
        super().__init__()
        layers = []
        for a, b in itertools.pairwise(sizes[:-1]):
            layers += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(rate)]
        self.layers = nn.Sequential(*layers, nn.Linear(*sizes[-2:]))

    def forward(self, x):
        return self.layers(x)


class Vae(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Mlp(64, 128, 32), Mlp(16, 128, 64)

    def forward(self, x):
        mean, log_variance = self.encoder(x).chunk(2, -1)
        hidden = mean + torch.exp(log_variance / 2) * torch.randn(mean.shape)
        return self.decoder(hidden), mean.float(), log_variance.float()


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.deep = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.norm, self.out = nn.GroupNorm(4, 32), nn.Conv2d(32, 1, 1)

    def forward(self, x):
        first = F.relu(self.down(x))
        deep = F.relu(self.norm(self.deep(F.max_pool2d(first, 2))))
        return self.out(torch.cat((first, F.relu(self.up(deep))), 1))


class Graph(nn.Module):
    """Images as nodes; each has the eight others nearest to it in the batch for neighbours."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList((nn.Linear(128, 64), nn.Linear(128, 10)))

    def forward(self, x):
        near = torch.cdist(x, x).topk(9, largest=False).indices[:, 1:]
        for layer in self.layers:
            x = layer(torch.cat((x, x[near].mean(1)), 1))
            x = F.relu(x) if layer is self.layers[0] else x
        return x


def classify(model, batch, loss):
    x, y = batch
    return loss(model(x), y)


def language(model, batch, loss):
    ids, following = batch
    return loss(model(ids).flatten(0, 1), following.flatten())


def reconstruct(model, batch, _loss):
    (x, _) = batch
    out, mean, log_variance = model(x)
    kept = F.binary_cross_entropy_with_logits(out.float(), x)
    return kept - 0.5 * (1 + log_variance - mean**2 - log_variance.exp()).mean() / 10


def segment(model, batch, _loss):
    x = batch[0].view(-1, 1, 8, 8)
    return F.binary_cross_entropy_with_logits(model(x).float(), (x > 0.5).float())


def fit(model, batch, _loss):
    x, y = batch
    return F.mse_loss(model(x).float(), y)


def contrast(model, batch, _loss):
    x, y = batch
    seen = F.normalize(model(x + 0.1 * torch.randn(x.shape)), dim=1)
    near = (seen @ seen.T) / 0.1
    same = (y[:, None] == y[None]).float().fill_diagonal_(0)
    scores = F.log_softmax(near.float().masked_fill(torch.eye(len(y), dtype=torch.bool), -1e9), 1)
    return -(same * scores).sum() / same.sum()


def adamw(parameters, slow):
    return torch.optim.AdamW(parameters, lr=3e-3 * slow)


def sgd(parameters, slow):
    return torch.optim.SGD(parameters, lr=0.05 * slow, momentum=0.9)


# By its name: the model, what draws its batches, its loss, its optimizer.
MODELS = {
    "MLP": (lambda: Mlp(64, 128, 128, 10), lambda: rows(digits()), classify, sgd),
    "CNN": (Cnn, lambda: rows(digits()), classify, sgd),
    "ViT": (Vit, lambda: rows(digits()), classify, adamw),
    "graph": (Graph, lambda: rows(digits()), classify, adamw),
    "contrast": (lambda: Mlp(64, 128, 32), lambda: rows(digits()), contrast, adamw),
    "VAE": (Vae, lambda: rows(digits()), reconstruct, adamw),
    "U-Net": (UNet, lambda: rows(digits()), segment, sgd),
    "transformer": (CharTransformer, lambda: windows(text()), language, adamw),
    "LSTM": (lambda: Recurrent(nn.LSTM), lambda: windows(text()), language, adamw),
    "regression": (lambda: Mlp(10, 64, 64, 1), lambda: rows(regression()), fit, sgd),
}
