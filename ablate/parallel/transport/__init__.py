"""Rows between expert ranks: channels, and the ranks at their ends."""
