"""The command line: `pytest-amp` and its subcommands."""
