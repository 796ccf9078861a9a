"""Training of one run: the LightningModule, its callbacks, evaluation and checkpoints."""
