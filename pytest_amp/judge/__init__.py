"""Pure functions from what was observed to what is concluded: no torch, no pytest, no clock."""
