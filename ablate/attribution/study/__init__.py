"""The results of a study of this program, from its plan and records."""
