"""Finished values in, text out."""
