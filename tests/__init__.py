"""pytest-amp's own tests. Shared helpers are imported as tests.<room>.<module>."""
