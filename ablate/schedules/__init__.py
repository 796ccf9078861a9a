"""Pipeline schedules as values: who does what in which order. Planned, printed, priced and executed from one table."""
