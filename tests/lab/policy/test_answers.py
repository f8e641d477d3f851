"""CUDA's rules, as the installed torch tells them."""

from __future__ import annotations

import pytest
import torch

from pytest_amp.lab.policy.answers import answer, operators

# "CUDA Op-Specific Behavior" in torch's documentation of autocast.
FLOAT16 = """
    matmul addbmm addmm addmv addr baddbmm bmm chain_matmul linalg_multi_dot conv1d conv2d conv3d
    conv_transpose1d conv_transpose2d conv_transpose3d gru_cell linear lstm_cell mm mv prelu
    rnn_tanh_cell rnn_relu_cell
"""
FLOAT32 = """
    pow reciprocal acos asin binary_cross_entropy_with_logits cosh cosine_embedding_loss cdist
    cosine_similarity cumprod cumsum dist erfinv exp expm1 group_norm hinge_embedding_loss kl_div
    l1_loss layer_norm log log10 log_softmax log1p log2 margin_ranking_loss mse_loss
    multilabel_margin_loss multi_margin_loss nll_loss norm pdist poisson_nll_loss prod rsqrt sinh
    smooth_l1_loss soft_margin_loss softmax softplus sum renorm tan triplet_margin_loss
"""
WIDEST = "addcdiv addcmul atan2 bilinear cross dot grid_sampler index_put scatter_add tensordot"
# The documentation also names cross_entropy, normalize and softmin, which are made of others.


def answers_of(name: str) -> set[str]:
    names = [each for each in operators() if each.partition("::")[2].partition(".")[0] == name]
    assert names, f"{name} has no kernel"
    return {answer(each)[0] for each in names}


@pytest.mark.parametrize("name", FLOAT16.split())
def test_what_is_documented_to_run_in_float16_does(name: str) -> None:
    assert answers_of(name) == {"lower"}


@pytest.mark.parametrize("name", FLOAT32.split())
def test_what_is_documented_to_run_in_float32_does(name: str) -> None:
    assert answers_of(name) <= {"float32", "result"}


@pytest.mark.parametrize("name", WIDEST.split())
def test_what_is_documented_to_take_the_widest_dtype_does(name: str) -> None:
    assert answers_of(name) == {"promote"}


def test_binary_cross_entropy_is_refused_in_cudas_words() -> None:
    rule, message = answer("aten::binary_cross_entropy")
    assert rule == "refused"
    assert "unsafe to autocast" in message


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_operator_has_an_answer(capfd) -> None:
    told = {name: answer(name)[0] for name in operators()}
    # cuDNN's RNNs are only in builds for CUDA, and need weights as cuDNN lays them out.
    assert {name for name, rule in told.items() if rule == "unchanged"} <= {"aten::_cudnn_rnn"}
    assert len(told) >= 110


@pytest.mark.parametrize(
    "around",
    [torch.no_grad, torch.enable_grad, torch.inference_mode, lambda: torch.device("meta")],
)
def test_the_answer_does_not_depend_on_what_is_in_force(around) -> None:
    answer.cache_clear()
    with around(), torch.autocast("cpu", torch.bfloat16):
        assert [answer(f"aten::{name}")[0] for name in ("mm", "exp", "sum", "atan2")] == [
            "lower", "float32", "result", "promote",
        ]  # fmt: skip
    assert not torch.is_autocast_enabled("cuda")
    assert torch.get_autocast_dtype("cuda") is torch.float16


def test_the_answer_does_not_depend_on_the_pass_that_is_running() -> None:
    """In a backward pass torch asks for the device that a stand-in says it is on."""
    answer.cache_clear()
    leaf, told = torch.ones(2, requires_grad=True), []
    leaf.register_hook(lambda _: told.append(answer("aten::linalg_vector_norm")[0]))
    leaf.sum().backward()
    assert told == ["result"]
