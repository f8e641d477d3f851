"""What a test measured, as values that reports, records and rules share."""
