"""Shared by tests/ and examples/: the fixture with which pytest-amp's own tests run pytest."""

pytest_plugins = ["pytester"]
