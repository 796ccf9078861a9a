"""What is known beside this program's own runs: published figures, simulation, totals of whole models."""
