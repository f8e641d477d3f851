"""Fine-tune a small causal language model on English text, under both arms, and compare the ends.

The model is made from a config, and the text comes with Python: nothing is downloaded.
"""

from pydoc_data.topics import topics

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from pytest_amp import Training

EPOCHS, ACCUMULATION, LENGTH = 3, 2, 64


def windows(device):
    text = "\n".join(topics[name] for name in sorted(topics))[: 40 * LENGTH * 8]
    tokens = torch.tensor([min(ord(letter), 127) for letter in text], device=device)
    return list(tokens.view(-1, 8, LENGTH))  # batches of eight


@pytest.mark.amp(max_time=3, max_loss_diff=0.05, max_val_loss_diff=0.05)
def test_fine_tuning(amp_benchmark, amp_device):
    def setup(arm):
        config = GPT2Config(vocab_size=128, n_positions=LENGTH, n_embd=64, n_layer=2, n_head=4,
                            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                            bos_token_id=0, eos_token_id=0)  # fmt: skip
        model = GPT2LMHeadModel(config).to(amp_device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        *train, first, second = windows(amp_device)
        seen = 0

        def loss_of(batch):
            with arm.autocast():
                return model(input_ids=batch, labels=batch).loss

        def step(batch):
            nonlocal seen
            seen += 1
            loss = loss_of(batch)
            arm.scaler.scale(loss / ACCUMULATION).backward()
            if seen % ACCUMULATION == 0:
                arm.scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                arm.scaler.step(optimizer)
                arm.scaler.update()
                optimizer.zero_grad(set_to_none=True)
            return loss

        @torch.no_grad()
        def evaluate():
            return {"loss": (loss_of(first) + loss_of(second)) / 2}

        return Training(step, train, evaluate, EPOCHS)

    report = amp_benchmark.train(setup)
    assert report.frame["val/loss"].iloc[-1] < report.frame["val/loss"].iloc[0]
