"""``python -m pytest_amp.cli``, where the script is not on the path."""

import sys

from pytest_amp.cli.main import main

sys.exit(main())
