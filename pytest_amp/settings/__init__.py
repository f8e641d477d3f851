"""Define the settings, parse their values, and resolve which one is in force."""
