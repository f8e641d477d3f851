"""Compare CUDA's rules on a CPU with CUDA's autocast itself, operator by operator.

Run it with a build of torch for CUDA (a GPU is not needed), transformers and timm. Each model's
forward pass runs on the CPU under our rules, and once more with tensors that only pretend to be on
a GPU, under torch's own autocast for CUDA. Each operator's name is compared, and the dtypes of what
it takes and makes. Fused attention counts as one operator, and so does BatchNorm by whatever
library, since the devices have other kernels for them. cuDNN's recurrent layers need a GPU to be
asked.

Then both passes run once more with dropout, as `--amp-snapshot` sees them, and the lines of the two
dtype maps are compared. A backward pass can't be asked without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import warnings

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_amp.judge.dtype_map import lines_of
from pytest_amp.judge.dtype_map_text import diff
from pytest_amp.lab.policy import cuda_rules
from pytest_amp.lab.watch.operators import OpRecord

# They move no data and convert nothing, and depend on the layout that a kernel chose.
UNCOUNTED = {
    "_unsafe_view", "_reshape_alias", "alias", "as_strided", "clone", "contiguous", "copy_",
    "detach", "empty", "empty_like", "expand", "lift_fresh", "permute", "reshape", "select",
    "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unsqueeze",
    "view",
}  # fmt: skip


class Trace(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []
        self.inside = 0

    def note(self, name, given, made):
        def dtypes(tree):
            found = [each for each in pytree.tree_leaves(tree) if isinstance(each, torch.Tensor)]
            return ",".join(str(each.dtype)[6:] for each in found if each.is_floating_point())

        self.calls.append(f"{name}({dtypes(given)}) -> {dtypes(made)}")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        name = func._schema.name.removeprefix("aten::").replace(
            "cudnn_batch_norm", "native_batch_norm"
        )
        only_moves = name == "_to_copy" and made.dtype == args[0].dtype
        if (
            not self.inside
            and name not in UNCOUNTED
            and func.namespace == "aten"
            and not only_moves
        ):
            self.note(name, (args, kwargs), made)
        return made

    @contextlib.contextmanager
    def as_one(self):
        """Count fused attention as one operator."""
        original = F.scaled_dot_product_attention

        def call(*args, **kwargs):
            self.inside += 1
            try:
                made = original(*args, **kwargs)
            finally:
                self.inside -= 1
            self.note("scaled_dot_product_attention", (args, kwargs), made)
            return made

        F.scaled_dot_product_attention = call
        try:
            yield
        finally:
            F.scaled_dot_product_attention = original


def small(name, **more):
    """A model of transformers from its configuration, made small."""

    def build():
        import transformers

        config = getattr(transformers, f"{name}Config")(**more)
        model = getattr(transformers, f"{name}Model")(config).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return model

    return build


def timms(name, **more):
    def build():
        import timm

        return timm.create_model(name, **more).train()

    return build


class Losses(nn.Module):
    """The losses and normalizations that people write."""

    def forward(self, x):
        target = torch.zeros(len(x), dtype=torch.long, device=x.device)
        half = F.linear(x, x.new_ones(10, x.shape[1]))
        return (
            F.cross_entropy(half, target, label_smoothing=0.1)
            + F.mse_loss(half, half.detach()) + F.smooth_l1_loss(half, half * 0)
            + half.norm() + F.normalize(half).sum() + half.logsumexp(-1).sum()
            + F.binary_cross_entropy_with_logits(half, half.sigmoid()) + half.pow(2).mean()
            + torch.einsum("ij,kj->ik", half, half).sum() + torch.cdist(half, half).sum()
            + F.cosine_similarity(half, half).sum() + half.var() + (half / 3).prod()
            + F.kl_div(half.log_softmax(-1), half.softmax(-1)) + F.softplus(half).sum()
        )  # fmt: skip


TOKENS, IMAGE = {"input_ids": (2, 16)}, {"pixel_values": (2, 3, 32, 32)}
PIXELS = {"": (2, 3, 32, 32)}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**SIZES, "vocab_size": 99, "intermediate_size": 64}
GROUPED = {**TEXT, "num_key_value_heads": 2}
VISION = {**SIZES, "image_size": 32, "patch_size": 8, "intermediate_size": 64}
MODELS = {
    "GPT-2": (small("GPT2", vocab_size=99, n_embd=32, n_layer=2, n_head=2, n_positions=32), TOKENS),
    "Llama": (small("Llama", **TEXT), TOKENS),
    "Qwen2": (small("Qwen2", **GROUPED), TOKENS),
    "Mistral": (small("Mistral", **GROUPED), TOKENS),
    "Gemma": (small("Gemma", **GROUPED, head_dim=16), TOKENS),
    "BERT": (small("Bert", **TEXT), TOKENS),
    "RoBERTa": (small("Roberta", **TEXT), TOKENS),
    "DistilBERT": (
        small("DistilBert", vocab_size=99, dim=32, n_layers=2, n_heads=2, hidden_dim=64), TOKENS,
    ),
    "ALBERT": (small("Albert", **TEXT, embedding_size=16), TOKENS),
    "T5": (
        small("T5", vocab_size=99, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2),
        {**TOKENS, "decoder_input_ids": (2, 8)},
    ),
    "Mamba": (small("Mamba", vocab_size=99, hidden_size=32, num_hidden_layers=2), TOKENS),
    "OPT": (
        small("OPT", **SIZES, vocab_size=99, ffn_dim=64, word_embed_proj_dim=32, dropout=0.0),
        TOKENS,
    ),
    "Bloom": (small("Bloom", vocab_size=99, hidden_size=32, n_layer=2, n_head=2), TOKENS),
    "ViT": (small("ViT", **VISION), IMAGE),
    "DINOv2": (small("Dinov2", **SIZES, image_size=32, patch_size=8), IMAGE),
    "Swin": (
        small("Swin", image_size=32, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2],
              window_size=4),
        IMAGE,
    ),
    "ConvNeXt": (small("ConvNext", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2), IMAGE),
    "SegFormer": (small("Segformer"), {"pixel_values": (2, 3, 64, 64)}),
    "ResNet-18": (timms("resnet18"), PIXELS),
    "EfficientNet-B0": (timms("efficientnet_b0"), PIXELS),
    "MLP-Mixer": (timms("mixer_s32_224", img_size=32), PIXELS),
    "RegNet": (timms("regnety_002"), PIXELS),
    "losses": (Losses, {"x": (4, 8)}),
}  # fmt: skip


def inputs_of(shapes, device):
    def made(name, shape):
        if name in ("", "pixel_values", "x"):
            return torch.randn(shape, device=device)
        return torch.ones(shape, dtype=torch.long, device=device)

    named = {name: made(name, shape) for name, shape in shapes.items()}
    return [named.pop("")] if "" in named else [], named


def with_dropout(build):
    def built():
        model = build()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.1
        return model

    return built


@contextlib.contextmanager
def traced(watch):
    with watch.as_one(), watch:
        yield


def ours(build, shapes, dtype, watching):
    torch.manual_seed(0)
    model = build()
    args, kwargs = inputs_of(shapes, "cpu")
    with cuda_rules(), watching, torch.autocast("cuda", dtype):
        model(*args, **kwargs)


def cudas(build, shapes, dtype, watching):
    model = build()
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    if tensor is not None:
                        fake = torch.empty_like(tensor, device="cuda")
                        held[name] = fake.requires_grad_(tensor.requires_grad)
        args, kwargs = inputs_of(shapes, "cuda")
        # torch.autocast would switch itself off without a GPU.
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", dtype)
        torch.autocast_increment_nesting()
        try:
            with watching:
                model(*args, **kwargs)
        finally:
            torch.autocast_decrement_nesting()
            torch.clear_autocast_cache()
            torch.set_autocast_enabled("cuda", False)


def calls(how, build, shapes, dtype):
    trace = Trace()
    how(build, shapes, dtype, traced(trace))
    return trace.calls


def map_of(how, build, shapes, dtype):
    record = OpRecord()
    how(with_dropout(build), shapes, dtype, record.watching())
    # Of tensors that pretend to be on a GPU, it can't tell what is a view of another.
    return frozenset(each for each in lines_of(record.operators()) if each.op not in UNCOUNTED)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--only", action="append")
    parser.add_argument("--differences", type=int, default=6, help="how many to show of a model")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {options.dtype}")
    for name in options.only or MODELS:
        build, shapes = MODELS[name]
        try:
            on_cpu, on_cuda = (calls(how, build, shapes, dtype) for how in (ours, cudas))
            maps = [map_of(how, build, shapes, dtype) for how in (cudas, ours)]
        except Exception as error:  # noqa: BLE001
            print(f"{name:<16} {type(error).__name__}: {str(error).splitlines()[0][:120]}")
            continue
        matcher = difflib.SequenceMatcher(a=on_cuda, b=on_cpu, autojunk=False)
        same = sum(block.size for block in matcher.get_matching_blocks())
        changes = list(diff(*maps))
        print(
            f"{name:<16} {same} of {len(on_cuda)} operators and their dtypes; "
            f"{len(maps[0])} lines of the map, {len(changes)} differ",
            flush=True,
        )
        print("".join(f"    {line}\n" for line in changes[: options.differences]), end="")
        shown = 0
        for kind, a, b, c, d in matcher.get_opcodes():
            if kind != "equal" and shown < options.differences:
                shown += 1
                print(f"    CUDA {on_cuda[a:b]}\n    ours {on_cpu[c:d]}")


if __name__ == "__main__":
    main()
