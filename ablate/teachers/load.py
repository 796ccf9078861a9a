"""A trained model from the folder of its weights."""

from __future__ import annotations

from pathlib import Path

from ablate.components.codec import decode_run
from ablate.model.transformer import Transformer
from ablate.model.weights import load_state, read_weights


def load_model(folder: str | Path) -> Transformer:
    """The model in evaluation mode, without gradients, on backends that run anywhere.

    ValueError if the folder holds no weights, or not those of its specification.
    """
    weights = read_weights(folder)
    model = Transformer(decode_run(weights.manifest.run).model.portable())
    try:
        model.load_state_dict(load_state(weights))
    except RuntimeError as error:
        raise ValueError(f"the weights in {folder} do not fit the model that the run describes ({error})") from None
    return model.requires_grad_(False).eval()
