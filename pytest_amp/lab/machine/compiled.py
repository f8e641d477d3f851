"""Let go of what torch.compile keeps for the whole process."""

from __future__ import annotations

import sys
from typing import Any

import torch


def forget_compiled_code() -> None:
    """Reset Dynamo, so that an arm compiles as it would in a process of its own.

    Whatever earlier arms and tests compiled of the same class counts towards Dynamo's recompile
    limit. Beyond the limit the code silently runs eagerly.
    """
    dynamo: Any = sys.modules.get("torch._dynamo")
    if dynamo is not None:
        dynamo.reset()


def graphs_compiled() -> int:
    """Return how many graphs Dynamo has compiled in this process so far."""
    utils: Any = sys.modules.get("torch._dynamo.utils")
    return 0 if utils is None else int(utils.counters["stats"]["unique_graphs"])


def let_go_of_graphs() -> None:
    """Free the CUDA graphs that the active arm's compiled code has recorded."""
    trees: Any = sys.modules.get("torch._inductor.cudagraph_trees")
    if trees is not None and trees.get_obj(trees.local, "tree_manager_containers"):
        # Freeing another arm's graphs first has turned this switch of the process off.
        torch._C._set_cached_tensors_enabled(True)
        trees.reset_cudagraph_trees()
