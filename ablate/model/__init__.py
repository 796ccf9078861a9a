"""The transformer of the slots, its initial weights and its training loss."""
