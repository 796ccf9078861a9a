"""The equations of latent and of grouped-query attention, head by head, as the papers write them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ablate.components.mla.attention import attention
from ablate.components.mla.spec import GroupedQueryAttention, LatentAttention
from ablate.model.block import Rotation


def latent_attention(
    node: LatentAttention, weights: Mapping[str, Tensor], h_TD: Tensor, rotation: Rotation, eps: float
) -> Tensor:
    """arXiv:2412.19437, eqs. 1-11, for one sequence, head by head. `weights`: those of the module by its names."""

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight

    def rotate(x_TR: Tensor) -> Tensor:
        return rotation.rotate(x_TR[None, :, None])[0, :, 0]

    n, p, v = node.qk_nope_head_dim, node.qk_rope_head_dim, node.v_head_dim
    down = h_TD @ weights["kv_down.weight"].T
    c_kv = norm(down[:, : node.kv_lora_rank], weights["kv_norm.weight"])  # eq. 1
    k_rope = rotate(down[:, node.kv_lora_rank :])  # eq. 3
    if node.q_lora_rank:
        c_q = norm(h_TD @ weights["q_down.weight"].T, weights["q_norm.weight"])  # eq. 6
        q = c_q @ weights["q_up.weight"].T
    else:
        q = h_TD @ weights["q.weight"].T
    outputs = []
    for head in range(node.n_heads):
        q_head = q[:, head * (n + p) : (head + 1) * (n + p)]
        kv_head = c_kv @ weights["kv_up.weight"][head * (n + v) : (head + 1) * (n + v)].T
        query = torch.cat([q_head[:, :n], rotate(q_head[:, n:])], -1)  # eqs. 7-9
        key = torch.cat([kv_head[:, :n], k_rope], -1)  # eqs. 2, 4
        value = kv_head[:, n:]  # eq. 5
        outputs.append(attention(query[None], key[None], value[None], is_causal=True)[0])  # eq. 10
    return torch.cat(outputs, -1) @ weights["output.weight"].T  # eq. 11


def grouped_query_attention(
    node: GroupedQueryAttention, weights: Mapping[str, Tensor], h_TD: Tensor, rotation: Rotation, eps: float
) -> Tensor:
    """arXiv:2305.13245 with rotary queries and keys, for one sequence, head by head; it has no norm, so no `eps`."""
    d, outputs = node.head_dim, []

    def head_of(name: str, head: int) -> Tensor:
        return h_TD @ weights[f"{name}.weight"][head * d : (head + 1) * d].T

    def rotate(x_TK: Tensor) -> Tensor:
        return rotation.rotate(x_TK[None, :, None])[0, :, 0]

    for head in range(node.n_heads):
        group = head * node.n_kv_heads // node.n_heads
        query, key, value = rotate(head_of("q", head)), rotate(head_of("k", group)), head_of("v", group)
        outputs.append(attention(query[None], key[None], value[None], is_causal=True)[0])
    return torch.cat(outputs, -1) @ weights["output.weight"].T


REFERENCES = {"mla": latent_attention, "gqa": grouped_query_attention}
