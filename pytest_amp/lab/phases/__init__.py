"""The experiment's phases, each of which runs one arm or both."""
