"""Which change mattered: each change by every kind of evidence there is, side by side and never added up."""
