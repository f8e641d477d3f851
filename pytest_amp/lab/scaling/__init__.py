"""Gradient scaling and optimizers: what a step does after its backward pass."""
