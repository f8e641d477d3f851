"""The Hugging Face Trainer's own loop, around a small language model made from a config."""

import pytest
import torch

pytest.importorskip("accelerate", reason="needs pytest-amp[frameworks]")
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from pytest_amp.integrations.transformers import train

TEXT = b"Mixed precision is worth it only as long as it is still safe. " * 20


class Windows(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        tokens = torch.tensor(list(TEXT[index : index + 32]))
        return {"input_ids": tokens, "labels": tokens}


def test_train(amp_benchmark, tmp_path):
    def setup(arm):
        config = GPT2Config(vocab_size=128, n_positions=32, n_embd=32, n_layer=2, n_head=2,
                            bos_token_id=0, eos_token_id=0)  # fmt: skip
        arguments = TrainingArguments(
            str(tmp_path), per_device_train_batch_size=8, learning_rate=1e-3, disable_tqdm=True,
            use_cpu=arm.device.type == "cpu", fp16=arm.mixed_precision == "fp16",
            bf16=arm.mixed_precision == "bf16", report_to=[], save_strategy="no",
            logging_strategy="no",
        )  # fmt: skip
        return arm.loop(train(Trainer(GPT2LMHeadModel(config), arguments, train_dataset=Windows())))

    amp_benchmark(setup)
