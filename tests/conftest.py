"""For the tests that run pytest inside pytest."""

from __future__ import annotations

# A run inside this process forgets the modules that it imported, and torch can't be imported
# twice: whatever an inner run may import of it is imported here first.
import numpy  # noqa: F401
import torch._dynamo
import torch._inductor.compile_fx  # noqa: F401

import pytest_amp.experiment
import pytest_amp.live  # noqa: F401
