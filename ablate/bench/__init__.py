"""How fast operations and training steps are on this machine, beside what libraries make of the same work."""
