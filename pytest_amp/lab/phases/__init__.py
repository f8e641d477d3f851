"""The experiment's phases, each a run of one arm or of both."""
