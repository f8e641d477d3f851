"""Makes Python believe that some packages are not installed; on PYTHONPATH, it is run at start-up.

Their names are in PYTEST_AMP_BLOCKED, separated by commas.
"""

import os
import sys

BLOCKED = tuple(filter(None, os.environ.get("PYTEST_AMP_BLOCKED", "").split(",")))


class Blocking:
    """Stands for all finders, and finds everything but what is blocked."""

    def __init__(self, finders):
        self.finders = finders

    def find_spec(self, name, path=None, target=None):
        if any(name == each or name.startswith(f"{each}.") for each in BLOCKED):
            return None
        found = (finder.find_spec(name, path, target) for finder in self.finders)
        return next(filter(None, found), None)

    def find_distributions(self, *context):
        for finder in self.finders:
            for found in getattr(finder, "find_distributions", lambda *_: ())(*context):
                if str(found.metadata["Name"]).lower().replace("-", "_") not in BLOCKED:
                    yield found

    def invalidate_caches(self):
        for finder in self.finders:
            getattr(finder, "invalidate_caches", lambda: None)()


sys.meta_path[:] = [Blocking(list(sys.meta_path))]
