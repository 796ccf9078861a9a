"""Which variants run on which seeds, and what that will tell."""
