"""The machine that an arm runs on: its device, its global state and its lock."""
