"""Pure functions from what was observed to what is concluded, without torch, pytest or a clock."""
