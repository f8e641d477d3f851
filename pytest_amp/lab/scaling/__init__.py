"""Gradient scaling and the optimizers: what a step does behind its backward pass."""
