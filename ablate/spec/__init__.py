"""The values that describe a model, its data and a run: plain, frozen, without torch."""
