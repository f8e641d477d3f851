"""Load pytester, with which the tests in tests/ and examples/ run pytest."""

pytest_plugins = ["pytester"]
