"""The values in which a measurement's results are kept, reported and stored."""
