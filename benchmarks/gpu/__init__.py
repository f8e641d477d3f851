"""What only a GPU can tell of pytest-amp, proved or refuted in about five minutes.

    python -m benchmarks.gpu [--device cuda|cpu] [--only NAMES] [--budget 290] [--out DIR]

Each check suspects something, measures it, and prints one line of JSON: its name, ``proved`` where
the fault is there, ``refuted`` where it is not, ``measured`` where there is only a figure, and what
it saw. The lines go to DIR/gpu_check.jsonl too. Run it in the root of the checkout; nothing has to
be installed but torch, pytest and pytest-benchmark. On a CPU, the checks that need CUDA are
skipped. benchmarks/results/gpu.txt has what a GPU said.
"""
