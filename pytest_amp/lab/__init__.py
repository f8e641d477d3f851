"""Everything that touches torch, a device or a clock."""

import os

# By default Kineto prints a line to stderr whenever a profiler starts or stops.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
