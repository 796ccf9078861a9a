"""What each component is worth: games under prerequisites, designs, estimates, verdicts. No torch."""
