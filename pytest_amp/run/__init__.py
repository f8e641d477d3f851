"""The laboratory: everything that touches torch, a device or a clock."""
