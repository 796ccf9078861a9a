"""What is sent between expert ranks for a token, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

INDEX_BYTES = WEIGHT_BYTES = 4  # of a chosen expert's number, and of its weight, that travel with a row


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """Copies of one token that leave for another rank in one direction, in one layer.

    `between_nodes` and `inside_nodes` are expectations: experts are chosen uniformly inside uniformly chosen groups,
    and every rank has equally many tokens. `most_between_nodes` and `most` (all that leave) are never exceeded.
    """

    between_nodes: float
    inside_nodes: float
    most_between_nodes: int
    most: int
    choices: int  # that travel with a copy

    def bytes_per_token(self, *, out: int, back: int) -> dict[str, float]:
        """Bytes for a token and layer in training. out: of a row to its experts, back: of a row from them.

        Forward a row goes out with its choices and their weights and comes back; backward the gradient of what came
        back goes out, and the row's and the weights' come back.
        """
        forward = out + self.choices * (INDEX_BYTES + WEIGHT_BYTES) + back
        backward = out + self.choices * WEIGHT_BYTES + back
        return {
            "copies_between_nodes": self.between_nodes,
            "copies_inside_nodes": self.inside_nodes,
            "most_copies_between_nodes": self.most_between_nodes,
            "forward_bytes_between_nodes": self.between_nodes * forward,
            "forward_bytes_inside_nodes": self.inside_nodes * forward,
            "most_forward_bytes_between_nodes": self.most_between_nodes * forward,
            "training_bytes_between_nodes": self.between_nodes * (forward + backward),
            "training_bytes_inside_nodes": self.inside_nodes * (forward + backward),
        }
