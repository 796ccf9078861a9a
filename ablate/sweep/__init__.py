"""Studies from a file to their records."""
