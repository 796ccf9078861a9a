"""Training on a cluster that is not at hand: exact counts, stated rates, the schedules' own tables. No torch."""
