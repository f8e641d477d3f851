"""Watch a step while it runs."""
