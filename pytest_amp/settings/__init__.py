"""The settings: what each one is, where it comes from, and how it is read."""
