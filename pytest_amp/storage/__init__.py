"""The record: results kept in pytest-benchmark's storage, read back, and held against new ones."""
