"""The laboratory: everything that touches torch, a device or a clock."""

import os

# Kineto prints a line to stderr at each start and stop of a profiler, unless it is told not to.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
