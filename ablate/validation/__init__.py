"""Simulated studies with known answers: how the intervals of the attribution are checked."""
