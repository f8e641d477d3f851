"""The rules: each looks for one mistake in the case and says what it found."""
