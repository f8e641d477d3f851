"""What each recipe comes to on this machine, for one training step of a transformer.

Each is measured as a test would, against float32. Where float8 is emulated, it is not timed.
"""

import argparse

import torch
import torch.nn.functional as F
from steps import training_step
from torch import nn

from pytest_amp import AmpError, measure, units
from pytest_amp.lab.machine.device import choose
from pytest_amp.recipes import NAMES

MORE = ("bf16+compile", "bf16+channels_last", "fp8+compile")


def transformer(arm):
    """Four layers, 128 wide, batches of 8 x 64."""
    layer = nn.TransformerEncoderLayer(128, 4, 256, 0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).to(arm.device)
    arm.prepare(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x = torch.randn(8, 64, 128, device=arm.device)
    return training_step(arm, optimizer, lambda: F.mse_loss(model(x).float(), x))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-time", type=float, default=10.0)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    device = choose(arguments.device)
    print(f"{device.name()}, torch {torch.__version__}, against fp32")
    print(f"{'recipe':<20}{'step':>10}{'speedup':>22}{'memory':>12}{'loss diff':>12}  findings")
    for name in (*NAMES, *MORE):
        try:
            report = measure(
                transformer, candidate=name, device=arguments.device, max_time=arguments.max_time
            )
        except AmpError as error:
            print(f"{name:<20}{error}")
            continue
        codes = ", ".join(finding.code for finding in report.findings) or "none"
        print(
            f"{name:<20}{units.duration(report.candidate.step_time_s):>10}"
            f"{report.speedup or units.NOTHING!s:>22}{units.share(report.memory_reduction):>12}"
            f"{units.share(report.loss_diff):>12}  {codes}"
        )
        for note in report.notes:
            print(f"    {note}")


if __name__ == "__main__":
    main()
