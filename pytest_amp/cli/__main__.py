"""Run ``python -m pytest_amp.cli``, for when the script is not on the path."""

import sys

from pytest_amp.cli.main import main

sys.exit(main())
