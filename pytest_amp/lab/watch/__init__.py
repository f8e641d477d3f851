"""What watches a step while it runs."""
