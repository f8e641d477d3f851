"""Keep results in pytest-benchmark's storage, read them back, and find what to compare with."""
