"""The machine that an arm runs on: its device, its globals, its lock."""
