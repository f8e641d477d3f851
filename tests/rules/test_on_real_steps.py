"""The rules on real steps: each speaks on its faulty ones, and none on healthy ones."""

from __future__ import annotations

import copy
import inspect
import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.helpers.lab import codes, measure, train

BF16 = torch.bfloat16


def net(width=16):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))


def sgd(model, lr=0.05):
    return torch.optim.SGD(model.parameters(), lr=lr)


def batch(generator=None):
    return (
        torch.randn(16, 8, generator=generator),
        torch.randint(4, (16,), generator=generator),
    )


def finding(report, code):
    found = [each for each in report.findings if each.code == code]
    assert len(found) == 1, codes(report)
    return found[0]


# AMP002: two fp32 runs from one seed differ.

UNSEEDED = torch.Generator()


def unseeded_dropout(arm):
    """Its masks come from a generator that nobody seeds."""
    model, (x, y) = net(), batch()
    keep = torch.full((16, 8), 0.7)

    def loss_of():
        return F.cross_entropy(model(x * torch.bernoulli(keep, generator=UNSEEDED)), y)

    return train(arm, sgd(model), loss_of)


def seeded_once_in_the_process(arm):
    """The augmentation's generator goes on from one arm to the next."""
    model, (x, y) = net(), batch()

    def loss_of():
        with torch.autocast("cpu", enabled=False):
            noise = torch.rand(16, 1, generator=UNSEEDED)
        return F.cross_entropy(model(x) * noise, y)

    return train(arm, sgd(model), loss_of)


CALLS = itertools.count()


def driven_by_a_counter_of_the_process(arm):
    """Its loss is weighed by how often any arm's step was called."""
    model, (x, y) = net(), batch()
    return train(arm, sgd(model), lambda: F.cross_entropy(model(x), y) * (1 + 0.01 * next(CALLS)))


@pytest.mark.parametrize("setup", [seeded_once_in_the_process, driven_by_a_counter_of_the_process])
def test_amp002_speaks_of_fp32_runs_that_do_not_repeat(setup) -> None:
    UNSEEDED.manual_seed(0)
    report = measure(setup, max_loss_diff=None)
    assert codes(report) == ["AMP002"]
    assert finding(report, "AMP002").severity == "warning"
    assert report.verdict == "pass"


# AMP003: the arms start from other weights or other data.


def unseeded_weights(arm):
    model, (x, y) = net(), batch()
    nn.init.normal_(model[0].weight, generator=UNSEEDED)
    return train(arm, sgd(model), lambda: F.cross_entropy(model(x), y))


def unseeded_data(arm):
    model = net()

    def loss_of():
        x, y = batch(UNSEEDED)
        return F.cross_entropy(model(x), y)

    return train(arm, sgd(model), loss_of)


SEEDED = torch.Generator().manual_seed(0)
LOADER = itertools.cycle(
    [
        (torch.randn(16, 8, generator=SEEDED), torch.randint(4, (16,), generator=SEEDED))
        for _ in range(100)
    ]
)


def one_loader_for_both_arms(arm):
    """The second arm goes on where the first stopped."""
    model = net()

    def loss_of():
        x, y = next(LOADER)
        return F.cross_entropy(model(x), y)

    return train(arm, sgd(model), loss_of)


def other_order_per_arm(arm):
    model = net()
    batches = [batch() for _ in range(4)]
    data = itertools.cycle(batches if arm.enabled else batches[::-1])

    def loss_of():
        x, y = next(data)
        return F.cross_entropy(model(x), y)

    return train(arm, sgd(model), loss_of)


class Pretrained:
    """The model that both arms go on training."""

    model = net()

    def __call__(self, arm):
        x, y = batch()
        return train(arm, sgd(self.model), lambda: F.cross_entropy(self.model(x), y))


@pytest.mark.parametrize(
    ("setup", "what"),
    [
        (unseeded_weights, "weights"),
        (Pretrained(), "weights"),
        (unseeded_dropout, "first inputs"),
        (unseeded_data, "first inputs"),
        (one_loader_for_both_arms, "first inputs"),
        (other_order_per_arm, "first inputs"),
    ],
)
def test_amp003_speaks_of_arms_that_start_apart(setup, what) -> None:
    UNSEEDED.manual_seed(0)
    report = measure(setup)
    assert codes(report) == ["AMP003"]
    assert finding(report, "AMP003").severity == "error"
    assert finding(report, "AMP003").evidence["what"] == what
    assert report.verdict == "fail"


def test_amp003_speaks_of_an_optimizer_that_all_arms_share() -> None:
    model, (x, y) = net(), batch()
    optimizer = sgd(model, 1e-4)

    report = measure(lambda arm: train(arm, optimizer, lambda: F.cross_entropy(model(x), y)))
    assert codes(report) == ["AMP003"]
    assert finding(report, "AMP003").evidence["what"] == "optimizer"
    assert "was made outside setup(arm)" in finding(report, "AMP003").message


def test_amp003_is_silent_on_data_that_reduced_precision_rounded_on_its_way() -> None:
    def setup(arm):
        model, (x, y) = net(), batch()
        mix = torch.eye(8) + 0.1 * torch.randn(8, 8)

        def loss_of():
            return F.cross_entropy(model((x @ mix).float()).float(), y)

        return train(arm, sgd(model), loss_of)

    assert codes(measure(setup)) == []


def test_amp003_is_silent_on_optimizers_that_setup_copies() -> None:
    model, (x, y) = net(), batch()
    originals = model, sgd(model)

    def setup(arm):
        model, optimizer = copy.deepcopy(originals)
        return train(arm, optimizer, lambda: F.cross_entropy(model(x), y))

    assert codes(measure(setup)) == []


def test_amp003_goes_by_the_first_losses_where_there_is_nothing_to_look_at() -> None:
    def setup(arm):
        weight = torch.zeros(4, requires_grad=True)

        def step():
            loss = (weight - torch.rand(4, generator=UNSEEDED)).square().sum()
            (grad,) = torch.autograd.grad(loss, weight)
            weight.data -= 0.1 * grad
            return loss

        return step

    report = measure(setup, ignore="AMP101")
    assert finding(report, "AMP003").evidence["what"] == "first losses"


def test_amp003_is_a_warning_where_only_the_dtypes_draw_differs() -> None:
    def setup(arm):
        first, model = nn.Linear(8, 8), net()
        optimizer = torch.optim.SGD([*first.parameters(), *model.parameters()], lr=0.05)
        # The last 16 of a number of draws that 16 does not divide are others in another dtype.
        x, y = torch.randn(3, 8), torch.arange(3)

        def loss_of():
            noise = torch.randn_like(F.linear(x, first.weight))
            return F.cross_entropy(model(noise.float()) + 0 * first(x).sum(), y)

        return train(arm, optimizer, loss_of)

    report = measure(setup)
    assert set(codes(report)) == {"AMP003"}
    assert finding(report, "AMP003").severity == "warning"
    assert report.verdict != "fail"


# AMP004: the baseline is not float32.


def hard_coded_autocast(arm):
    model, (x, y) = net(), batch()

    def loss_of():
        with torch.autocast("cpu", dtype=BF16):
            return F.cross_entropy(model(x), y)

    return train(arm, sgd(model), loss_of)


def decorated_forward(arm):
    class Decorated(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        @torch.autocast("cpu", dtype=BF16)
        def forward(self, x):
            return self.net(x)

    model, (x, y) = Decorated(), batch()
    return train(arm, sgd(model), lambda: F.cross_entropy(model(x).float(), y))


def hard_coded_cast(arm):
    model, (x, y) = net(), batch()

    def loss_of():
        h = F.linear(x.bfloat16(), model[0].weight.bfloat16()).float()
        return F.cross_entropy(model[2](h.relu()), y)

    return train(arm, sgd(model), loss_of)


def hard_coded_cast_with_a_reduced_batch(arm):
    model, (x, y) = net(), batch()
    x = x.bfloat16()  # there before the step, like weights, and none

    def loss_of():
        h = F.linear(x, model[0].weight.bfloat16()).float()
        return F.cross_entropy(model[2](h.relu()), y)

    return train(arm, sgd(model), loss_of)


def hard_coded_half_matmul(arm):
    model, (x, y) = net(), batch()
    mix = torch.eye(16)

    def loss_of():
        return F.cross_entropy((mix.half() @ model(x).half()).float(), y)

    return train(arm, sgd(model), loss_of)


@pytest.mark.parametrize(
    "setup",
    [
        hard_coded_autocast,
        decorated_forward,
        hard_coded_cast,
        hard_coded_cast_with_a_reduced_batch,
        hard_coded_half_matmul,
    ],
)
def test_amp004_speaks_of_reduced_precision_that_is_hard_coded(setup) -> None:
    report = measure(setup)
    assert codes(report) == ["AMP004"]
    assert finding(report, "AMP004").severity == "error"
    assert report.verdict == "fail"


def test_amp004_is_a_warning_where_frozen_weights_are_kept_in_bfloat16() -> None:
    class Lora(nn.Module):
        """A low-rank update in float32 on a frozen bfloat16 base."""

        def __init__(self):
            super().__init__()
            self.base = nn.Linear(8, 4, bias=False).to(BF16).requires_grad_(False)
            self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 4, bias=False)
            nn.init.zeros_(self.up.weight)

        def forward(self, x):
            return self.base(x.to(BF16)).float() + self.up(self.down(x))

    def setup(arm):
        model, (x, y) = Lora(), batch()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        return train(arm, optimizer, lambda: F.cross_entropy(model(x), y))

    report = measure(setup)
    assert codes(report) == ["AMP004"]
    assert finding(report, "AMP004").severity == "warning"
    assert report.verdict == "pass"


# AMP005: flags that differ between the arms.


@pytest.mark.parametrize(
    ("set_flags", "flag"),
    [
        (lambda: torch.set_float32_matmul_precision("medium"), "float32_matmul_precision"),
        (lambda: setattr(torch.backends.cudnn, "benchmark", True), "cudnn.benchmark"),
        (lambda: torch.use_deterministic_algorithms(True), "deterministic_algorithms"),
    ],
)
def test_amp005_speaks_of_flags_that_one_arm_sets(set_flags, flag) -> None:
    def setup(arm):
        if arm.enabled:
            set_flags()
        model, (x, y) = net(), batch()
        return train(arm, sgd(model), lambda: F.cross_entropy(model(x), y))

    report = measure(setup)
    assert codes(report) == ["AMP005"]
    assert flag in finding(report, "AMP005").evidence
    assert report.verdict == "pass"


@pytest.mark.parametrize("given", [{}, {"reference": "fp32"}], ids=["by default", "named"])
def test_amp004_warns_where_both_arms_multiply_in_less_than_the_named_float32(given) -> None:
    def setup(arm):
        torch.set_float32_matmul_precision("medium")
        model, (x, y) = net(), batch()
        return train(arm, sgd(model), lambda: F.cross_entropy(model(x), y))

    found = measure(setup, **given).findings
    assert torch.get_float32_matmul_precision() == "highest"
    if not given:
        assert found == ()
        return
    [finding] = found
    assert (finding.code, finding.severity) == ("AMP004", "warning")
    assert finding.evidence["flags"]["float32_matmul_precision"] == "medium"
    assert "--amp-reference=tf32" in finding.message


# AMP101: autocast did nothing.


def plain_step(loss_of, model):
    optimizer = sgd(model)

    def step():
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        return loss

    return step


def autocast_never_entered(arm):
    model, (x, y) = net(), batch()
    return plain_step(lambda: F.cross_entropy(model(x), y), model)


def autocast_disabled(arm):
    model, (x, y) = net(), batch()

    def loss_of():
        with torch.autocast("cpu", dtype=BF16, enabled=False):
            return F.cross_entropy(model(x), y)

    return plain_step(loss_of, model)


def autocast_for_another_device(arm):
    model, (x, y) = net(), batch()

    def loss_of():
        with torch.autocast("cuda", dtype=BF16):
            return F.cross_entropy(model(x), y)

    return plain_step(loss_of, model)


def autocast_around_the_loss_only(arm):
    model, (x, y) = net(), batch()

    def loss_of():
        logits = model(x)
        with arm.autocast():
            return F.cross_entropy(logits, y)

    return plain_step(loss_of, model)


def pointwise_without_autocast(arm):
    weight, x = nn.Parameter(torch.ones(64)), torch.randn(16, 64)
    optimizer = torch.optim.SGD([weight], lr=0.1)

    def step():
        optimizer.zero_grad()
        loss = (weight * x).sigmoid().mean()
        loss.backward()
        optimizer.step()
        return loss

    return step


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize(
    "setup",
    [
        autocast_never_entered,
        autocast_disabled,
        autocast_for_another_device,
        autocast_around_the_loss_only,
        pointwise_without_autocast,
    ],
)
def test_amp101_speaks_of_an_amp_arm_that_is_no_amp(setup) -> None:
    report = measure(setup)
    assert codes(report) == ["AMP101"]
    assert finding(report, "AMP101").severity == "error"
    assert report.verdict == "fail"


# AMP108: another reduced dtype ran than the one that was asked for.


def own_choice_of_bfloat16(arm):
    model, (x, y) = net(), batch()

    def loss_of():
        with torch.autocast("cpu", dtype=BF16, enabled=arm.enabled):
            return F.cross_entropy(model(x), y)

    return plain_step(loss_of, model)


def silently_substituted(arm):
    """As frameworks do that have no float16 on this device."""
    model, (x, y) = net(), batch()
    precision = {"no": None, "fp16": BF16, "bf16": BF16}[arm.mixed_precision]

    def loss_of():
        with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
            return F.cross_entropy(model(x), y)

    return plain_step(loss_of, model)


def pointwise_in_bfloat16(arm):
    weight, x = nn.Parameter(torch.ones(64)), torch.randn(16, 64)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    dtype = BF16 if arm.enabled else torch.float32

    def step():
        optimizer.zero_grad()
        loss = (weight.to(dtype) * x.to(dtype)).sigmoid().float().mean()
        loss.backward()
        optimizer.step()
        return loss

    return step


@pytest.mark.parametrize(
    "setup", [own_choice_of_bfloat16, silently_substituted, pointwise_in_bfloat16]
)
def test_amp108_speaks_of_bfloat16_where_float16_was_asked_for(setup) -> None:
    report = measure(setup, dtype="float16")
    assert "AMP108" in codes(report)
    assert finding(report, "AMP108").evidence == {"asked": "float16", "ran": "bfloat16"}
    assert codes(measure(setup, dtype="bfloat16")) == []


def test_a_substituted_dtype_is_a_warning_and_no_missing_autocast() -> None:
    report = measure(own_choice_of_bfloat16, dtype="float16")
    assert codes(report) == ["AMP108"]
    assert report.verdict == "pass"


# AMP301: the amp loss is not finite.


def overflow_in(build):
    def setup(arm):
        model = build()
        optimizer = sgd(model, lr=0.0)
        x = torch.full((16, 8), 30.0)
        return train(arm, optimizer, lambda: model(x).float().mean())

    return setup


class Cube(nn.Module):
    def forward(self, x):
        return x * x * x


def large_linear(scale):
    layer = nn.Linear(8, 8)
    nn.init.constant_(layer.weight, scale)
    return layer


@pytest.mark.parametrize(
    ("build", "module", "op"),
    [
        (lambda: nn.Sequential(large_linear(1.0), Cube(), nn.Linear(8, 1)), "1", "aten::mul"),
        (lambda: nn.Sequential(large_linear(1.0), large_linear(100.0), nn.ReLU()), "1", "addmm"),
        (
            lambda: nn.Sequential(nn.Sequential(nn.Identity(), large_linear(1e4)), nn.ReLU()),
            "0.1",
            "addmm",
        ),
    ],
)
def test_amp301_names_the_module_and_the_operator_that_overflowed(build, module, op) -> None:
    report = measure(overflow_in(build), dtype="float16")
    assert codes(report) == ["AMP301"]
    found = finding(report, "AMP301")
    assert found.module == module
    assert op in found.evidence["op"]
    assert report.verdict == "fail"
    assert codes(measure(overflow_in(build), dtype="bfloat16")) == []


# What is ignored is kept, and does not fail.


def test_an_ignored_finding_stays_in_the_report_and_does_not_fail() -> None:
    report = measure(autocast_never_entered, ignore={"AMP101": "known, see the tracker"})
    assert finding(report, "AMP101").suppressed == "known, see the tracker"
    assert report.verdict == "pass"


def test_a_rule_that_is_not_selected_says_nothing() -> None:
    assert codes(measure(autocast_never_entered, select="AMP0")) == []


# Healthy steps: not one rule speaks.


def plain_mlp(arm):
    model, (x, y) = net(), batch()
    return train(arm, sgd(model), lambda: F.cross_entropy(model(x), y))


def fresh_batches(arm):
    model = net()

    def loss_of():
        x, y = batch()
        return F.cross_entropy(model(x), y)

    return train(arm, sgd(model), loss_of)


def cnn_with_batchnorm(arm):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4)
    )
    x, y = torch.randn(16, 3, 8, 8), torch.randint(4, (16,))
    return train(arm, sgd(model, 0.01), lambda: F.cross_entropy(model(x), y))


def transformer_with_dropout(arm):
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.1, batch_first=True)
    head = nn.Linear(16, 4)
    optimizer = torch.optim.AdamW([*layer.parameters(), *head.parameters()], lr=1e-3)
    x, y = torch.randn(8, 6, 16), torch.randint(4, (8,))
    return train(arm, optimizer, lambda: F.cross_entropy(head(layer(x).mean(1)), y))


def accumulation(arm):
    model = net()
    optimizer = sgd(model)

    def step():
        optimizer.zero_grad()
        total = 0.0
        for _ in range(3):
            x, y = batch()
            with arm.autocast():
                loss = F.cross_entropy(model(x), y) / 3
            arm.scaler.scale(loss).backward()
            total += loss.detach()
        arm.scaler.step(optimizer)
        arm.scaler.update()
        return total

    return step


def gan(arm):
    generator, critic = net(), nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    of_generator, of_critic = (
        torch.optim.Adam(generator.parameters(), lr=1e-3),
        torch.optim.Adam(critic.parameters(), lr=1e-3),
    )
    real = torch.randn(16, 4) + 2

    def judged(samples, target):
        logits = critic(samples)
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))

    def step():
        with arm.autocast():
            fake = generator(torch.randn(16, 8))
            critic_loss = judged(real, 1.0) + judged(fake.detach(), 0.0)
        of_critic.zero_grad()
        arm.scaler.scale(critic_loss).backward()
        arm.scaler.step(of_critic)
        with arm.autocast():
            generator_loss = judged(fake, 1.0)
        of_generator.zero_grad()
        arm.scaler.scale(generator_loss).backward()
        arm.scaler.step(of_generator)
        arm.scaler.update()
        return {"generator": generator_loss, "critic": critic_loss}

    return step


def clip_after_unscale(arm):
    model, (x, y) = net(), batch()
    optimizer = sgd(model)

    def step():
        optimizer.zero_grad()
        with arm.autocast():
            loss = F.cross_entropy(model(x), y)
        arm.scaler.scale(loss).backward()
        arm.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        arm.scaler.step(optimizer)
        arm.scaler.update()
        return loss

    return step


def sparse_embedding(arm):
    embed, head = nn.Embedding(50, 8, sparse=True), nn.Linear(8, 4)
    optimizer = torch.optim.SGD([*embed.parameters(), *head.parameters()], lr=0.1)
    at, y = torch.randint(50, (16, 5)), torch.randint(4, (16,))
    return train(arm, optimizer, lambda: F.cross_entropy(head(embed(at).mean(1)), y))


def tied_weights(arm):
    embed, head = nn.Embedding(20, 16), nn.Linear(16, 20, bias=False)
    head.weight = embed.weight
    optimizer = torch.optim.AdamW(embed.parameters(), lr=1e-3)
    at = torch.randint(20, (16,))
    return train(arm, optimizer, lambda: F.cross_entropy(head(embed(at)), at.roll(1)))


def checkpointing(arm):
    first, model, (x, y) = nn.Linear(8, 8), net(), batch()
    optimizer = torch.optim.SGD([*first.parameters(), *model.parameters()], lr=0.05)

    def loss_of():
        h = checkpoint(lambda v: F.dropout(first(v), 0.1).relu(), x, use_reentrant=False)
        return F.cross_entropy(model(h), y)

    return train(arm, optimizer, loss_of)


def recurrent(arm):
    cell, head = nn.GRUCell(8, 16), nn.Linear(16, 4)
    optimizer = torch.optim.SGD([*cell.parameters(), *head.parameters()], lr=0.05)
    x, y = torch.randn(16, 5, 8), torch.randint(4, (16,))

    def loss_of():
        state = torch.zeros(16, 16)
        for t in range(5):
            state = cell(x[:, t], state)
        return F.cross_entropy(head(state), y)

    return train(arm, optimizer, loss_of)


def functional(arm):
    """Its only module is the loss, whose input is computed under autocast."""
    weight, (x, y), loss = nn.Parameter(0.1 * torch.randn(4, 8)), batch(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD([weight], lr=0.05)
    return train(arm, optimizer, lambda: loss(F.linear(x, weight).float(), y))


def scheduled(arm):
    model, (x, y) = net(), batch()
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=1000)
    step = train(arm, optimizer, lambda: F.cross_entropy(model(x), y))

    def scheduled_step():
        before = arm.scaler.get_scale()
        loss = step()
        if arm.scaler.get_scale() >= before:
            scheduler.step()
        return loss

    return scheduled_step


def part_in_float32(arm):
    model, head, (x, y) = net(), nn.Linear(4, 4), batch()
    optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.05)

    def loss_of():
        h = model(x)
        with torch.autocast("cpu", enabled=False):
            return F.cross_entropy(head(h.float()), y)

    return train(arm, optimizer, loss_of)


HEALTHY = [
    plain_mlp,
    fresh_batches,
    cnn_with_batchnorm,
    transformer_with_dropout,
    accumulation,
    gan,
    clip_after_unscale,
    sparse_embedding,
    tied_weights,
    checkpointing,
    recurrent,
    functional,
    scheduled,
    part_in_float32,
]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("setup", HEALTHY)
def test_no_rule_speaks_on_a_healthy_step(setup, dtype) -> None:
    report = measure(setup, dtype=dtype, steps=12)
    assert [str(each) for each in report.findings] == []
    assert report.verdict == "pass"


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_no_rule_speaks_on_a_healthy_rnn_where_the_dtype_has_a_kernel(kind) -> None:
    def setup(arm):
        layer, head = kind(8, 16, batch_first=True), nn.Linear(16, 4)
        optimizer = torch.optim.SGD([*layer.parameters(), *head.parameters()], lr=0.05)
        x, y = torch.randn(16, 5, 8), torch.randint(4, (16,))
        return train(arm, optimizer, lambda: F.cross_entropy(head(layer(x)[0][:, -1]), y))

    try:
        with torch.autocast("cpu", BF16):
            kind(8, 16, batch_first=True)(torch.ones(16, 5, 8))[0].sum().backward()
    except RuntimeError:
        pytest.skip(f"no {kind.__name__} kernel for bfloat16 on this CPU")
    assert codes(measure(setup, dtype="bfloat16")) == []


def test_noise_in_the_amp_dtype_is_at_most_a_warning() -> None:
    def setup(arm):
        encode, decode = nn.Linear(8, 8), nn.Linear(4, 8)
        optimizer = torch.optim.Adam([*encode.parameters(), *decode.parameters()], lr=1e-2)
        x = torch.randn(64, 8)

        def loss_of():
            mean, log_variance = encode(x).chunk(2, 1)
            sample = mean + torch.randn_like(mean) * (log_variance / 2).exp()
            kl = (mean.square() + log_variance.exp() - log_variance - 1).float().mean()
            return F.mse_loss(decode(sample).float(), x) + 0.1 * kl

        return train(arm, optimizer, loss_of)

    for dtype in ("bfloat16", "float16"):
        report = measure(setup, dtype=dtype, steps=20)
        assert not [each for each in report.findings if each.severity == "error"]
        assert report.verdict in ("pass", "inconclusive")


# What the GradScaler skips, fp32 skips too: curves that agree because nothing moves are no parity.


def test_training_that_dies_half_way_is_no_parity() -> None:
    def setup(arm):
        model, (x, y) = net(), batch()
        calls = itertools.count()

        def loss_of():
            loss = F.cross_entropy(model(x), y)
            return loss if next(calls) < 3 else poisoned(loss)

        def poisoned(loss):
            if arm.enabled:
                loss.register_hook(lambda grad: grad * float("nan"))
            return loss

        return train(arm, sgd(model), loss_of)

    report = measure(setup, dtype="float16", steps=12)
    assert report.amp.skipped_steps >= 8
    assert report.gate("loss_diff").verdict == "inconclusive"
    assert "training stands still" in report.gate("loss_diff").reason


# AMP307: an average of weights in reduced precision. AMP406: casts up for nothing.


def line_of(function, text):
    """Where in this file the function has that text."""
    lines, first = inspect.getsourcelines(function)
    number = next(index for index, line in enumerate(lines) if text in line)
    return f"tests/rules/test_on_real_steps.py:{first + number}"


def average_of_weights(average, weight):
    kept = average.mul_(0.999)
    kept.add_(weight.to(average.dtype), alpha=0.001)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_amp307_names_the_line_of_an_average_that_stays_where_it_began(dtype) -> None:
    def setup(arm):
        model, (x, y) = net(), batch()
        average = copy.deepcopy(model).requires_grad_(False).to(arm.dtype)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        inner = train(arm, optimizer, lambda: F.cross_entropy(model(x).float(), y))

        def step():
            loss = inner()
            with torch.no_grad():
                for mine, weight in zip(average.parameters(), model.parameters(), strict=True):
                    average_of_weights(mine, weight)
            return loss

        return step

    report = measure(setup, dtype=dtype)
    assert (codes(report), report.verdict) == (["AMP307"], "pass")
    found = finding(report, "AMP307")
    assert found.location == line_of(average_of_weights, "kept.add_")
    assert found.evidence["lost"] > 0.8


class Adapter(nn.Module):
    def __init__(self):
        super().__init__()
        self.base = nn.Linear(64, 64).requires_grad_(False)
        self.down, self.up = nn.Linear(64, 4, bias=False), nn.Linear(4, 64, bias=False)

    def forward(self, x):
        own = x.to(self.down.weight.dtype)
        return self.base(x) + self.up(self.down(own))


def test_amp406_names_the_line_of_a_cast_that_only_makes_a_second_copy() -> None:
    def setup(arm):
        model = nn.Sequential(*(layer for _ in range(4) for layer in (Adapter(), nn.ReLU())))
        trained = [each for each in model.parameters() if each.requires_grad]
        x = torch.randn(512, 64)
        optimizer = torch.optim.SGD(trained, lr=0.01)
        return train(arm, optimizer, lambda: model(x).float().square().mean())

    report = measure(setup)
    assert (codes(report), report.verdict) == (["AMP406"], "pass")
    found = finding(report, "AMP406")
    assert found.location == line_of(Adapter.forward, "own =")
    copies = 3 * 2 * 512 * 64  # of three activations in bfloat16; the first input is float32
    assert found.evidence["held"] == copies


# Findings are placed.


def line_at(location):
    """The text of the line that a finding is placed at."""
    source, _, number = location.rpartition(":")
    return Path(source).read_text("utf-8").splitlines()[int(number) - 1].strip()


def test_a_new_scaler_in_each_step_is_placed_where_it_is_made() -> None:
    def setup(arm):
        model, (x, y) = net(), batch()
        optimizer = sgd(model)

        def step():
            scaler = torch.amp.GradScaler("cpu", enabled=arm.enabled, init_scale=2.0**10)
            optimizer.zero_grad()
            with arm.autocast():
                loss = F.cross_entropy(model(x).float(), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            return loss

        return step

    found = finding(measure(setup, dtype="float16"), "AMP207")
    assert line_at(found.location).startswith("scaler = torch.amp.GradScaler")


def test_an_overflow_that_stays_is_placed_at_the_backward_pass() -> None:
    def setup(arm):
        model, (x, y) = net(), batch()
        optimizer = sgd(model)

        def step():
            with arm.autocast():
                loss = F.cross_entropy(model(x).float(), y)
            arm.scaler.scale(loss).backward()
            before = arm.scaler.get_scale()
            arm.scaler.step(optimizer)
            arm.scaler.update()
            if arm.scaler.get_scale() >= before:
                optimizer.zero_grad()
            return loss

        return step

    found = finding(measure(setup, dtype="float16"), "AMP207")
    assert line_at(found.location) == "arm.scaler.scale(loss).backward()"


def test_a_gradient_is_placed_at_the_backward_pass_that_bends_it() -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.sign = -1 if x.dtype is BF16 else 1
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return ctx.sign * grad  # the line

    def setup(arm):
        model, (x, y) = net(), batch()

        def loss_of():
            hidden = model[0](x)
            return F.cross_entropy(model[2](Wrong.apply(hidden).relu()).float(), y)

        return train(arm, sgd(model), loss_of)

    found = finding(measure(setup, dtype="bfloat16"), "AMP304")
    assert line_at(found.location).endswith("# the line")
