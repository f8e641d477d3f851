"""The linter's rules, each with its code, its check and its text."""
