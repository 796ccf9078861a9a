"""Effects in compute: the cost to reach a loss, split in channels."""
