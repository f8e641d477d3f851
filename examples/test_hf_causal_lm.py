"""A Hugging Face causal language model, made from a config: nothing is downloaded."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel


@pytest.fixture
def model(amp_device):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=128, n_positions=32, n_embd=32, n_layer=2, n_head=2,
                        bos_token_id=0, eos_token_id=0)  # fmt: skip
    return GPT2LMHeadModel(config).to(amp_device)


@pytest.fixture
def optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


@pytest.fixture
def tokens(amp_device):
    text = b"Mixed precision is worth it only as long as it is still safe. " * 3
    return torch.tensor(list(text[:128])).view(4, 32).to(amp_device)


@pytest.mark.amp(min_speedup={"cuda": 1.0}, max_time=10)
def test_causal_lm(model, optimizer, tokens):
    return model(input_ids=tokens, labels=tokens).loss
