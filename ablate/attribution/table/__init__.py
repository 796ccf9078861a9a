"""The attribution of a table of results from anywhere."""
