"""What a command ends with that is neither bad input nor a fault of the program."""


class RunFailed(Exception):
    """A run that cannot even take its first steps, with the reason in one line."""
