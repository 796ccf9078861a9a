"""Memory of training one model on one device, in closed form: what its modules keep by their backends. No torch.

What each part keeps for its backward pass is what the modules of this program and torch's CUDA operators save: a norm
its input in float32 and what products read of its output, a product its input, attention queries, keys, values and
outputs. Letters as in CONTRIBUTING.md; figures are bytes a token unless they say otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ablate.components.fp8.spec import TILE_CHANNELS, Fp8Linear
from ablate.components.mla.spec import GroupedQueryAttention, LatentAttention
from ablate.components.moe.spec import RoutedExperts, SwiGLU
from ablate.components.mtp.spec import MultiToken
from ablate.spec.backends import EMULATED
from ablate.spec.cost import DTYPE_BYTES, FP32_BYTES
from ablate.spec.model import ModelSpec
from ablate.spec.nodes import MODEL_SLOTS
from ablate.spec.run import TrainerSpec

INT64_BYTES = 8
FP8_BYTES = 1 + FP32_BYTES / TILE_CHANNELS  # a number with its share of a scale
LOGITS_AT_ONCE = 2**30  # bytes of logits that the kernel of head and loss makes at a time
RESERVE = 0.08  # of a device: its context, the allocator's fragments, workspaces of libraries


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingMemory:
    """Bytes at the peak of an optimizer step, which is where the backward pass begins.

    states: float32 weights, gradients and moments; copies: of the weights, in the dtype of products; activations: kept
    from forward to backward pass by all blocks; logits: of the heads, with what their losses keep.
    recomputed: the activations where every block keeps its input alone and is computed again, one at a time; recompute:
    whether the trainer has it so.
    """

    states: float
    copies: float
    activations: float
    logits: float
    recomputed: float
    recompute: bool

    @property
    def peak(self) -> float:
        """As the trainer has it."""
        return self.total_recomputed if self.recompute else self.total

    @property
    def total(self) -> float:
        """Without recomputation."""
        return self.states + self.copies + self.activations + self.logits

    @property
    def total_recomputed(self) -> float:
        """With every block recomputed."""
        return self.states + self.copies + self.recomputed + self.logits

    def fits(self, device_bytes: float) -> bool:
        """Whether a device of so many bytes holds it, with a reserve for what is not counted."""
        return self.peak <= (1 - RESERVE) * device_bytes


@dataclass(frozen=True, slots=True)
class Keeps:
    """What the backends of a model keep of a number: `e` of an activation, `read` of a product's input."""

    model: ModelSpec
    e: float
    read: float
    fp8: bool

    def norm(self, width: int) -> float:
        """Its input, and its output as products read it."""
        return (FP32_BYTES + self.read) * width

    def attention(self) -> float:
        node: Any = self.model.attention
        found = self.norm(self.model.dim)
        if isinstance(node, GroupedQueryAttention):
            heads = (2 * node.n_heads + 2 * node.n_kv_heads) * node.head_dim
            return found + self.e * heads + FP32_BYTES * node.n_heads + self._output(node.n_heads * node.head_dim)
        assert isinstance(node, LatentAttention), node
        h, k, p, v = node.n_heads, node.qk_nope_head_dim, node.qk_rope_head_dim, node.v_head_dim
        found += self.norm(node.q_lora_rank) if node.q_lora_rank else 0.0
        found += self.norm(node.kv_lora_rank)
        keys_and_values = {
            "triton": self.e * (h * (k + v) + p),  # as the projection wrote them, and one rotated key for all heads
            "cudnn": self.e * h * (k + p + v),  # assembled, without what they were assembled of
        }.get(node.backend, self.e * h * (k + p + k + v))  # joined keys, and the projection of which values are a view
        queries = self.e * h * (k + p + (p if node.backend == "triton" else 0))
        return found + queries + keys_and_values + self.e * h * v + FP32_BYTES * h + self._output(h * v)

    def _output(self, width: int) -> float:
        """What the output map keeps beside the attention's result: in FP8 a quantised copy, else nothing more."""
        return self.read * width if self.fp8 else 0.0

    def feed_forward(self, node: Any) -> float:
        if isinstance(node, RoutedExperts):
            return self._routed(node)
        assert isinstance(node, SwiGLU), node
        return self.norm(self.model.dim) + self.swiglu(node.hidden_dim)

    def swiglu(self, hidden: int) -> float:
        """gate and up, silu of the gate, and their product; by kernels the first, and a quantised copy of the last."""
        return (2 * self.e + FP8_BYTES) * hidden if self.fp8 else 4 * self.e * hidden

    def _routed(self, node: RoutedExperts) -> float:
        dim, copies, experts = self.model.dim, node.n_activated_experts, node.n_routed_experts
        router = FP32_BYTES * 2 * experts + (FP32_BYTES * dim if self.e < FP32_BYTES else 0.0)
        plan = (INT64_BYTES * 3 + FP32_BYTES + self.e) * copies
        shared = self.swiglu(node.n_shared_experts * node.expert_hidden_dim)
        if self.fp8:  # sorted copies of the rows, quantised; and the experts' outputs, for the choices' weights
            rows = copies * (dim * (FP8_BYTES + self.e) + self.swiglu(node.expert_hidden_dim))
        elif "triton" == node.backend == self.model.backends["linear"]:  # no copy of the rows, nor of the outputs
            rows = copies * 2 * self.e * node.expert_hidden_dim
        else:  # rows as sorted, and the outputs as gathered
            rows = copies * (2 * self.e * dim + self.swiglu(node.expert_hidden_dim))
        return self.norm(dim) + router + plan + shared + rows

    def block(self, layer: int) -> float:
        return self.attention() + self.feed_forward(self.model.layer_feed_forward(layer)[0])

    def joined(self) -> float:
        """What a sequential module of multi-token prediction keeps beside its block: the joined embedding and trunk."""
        return 2 * self.read * self.model.dim

    def end(self) -> float:
        """The last norm before a head: its input, and what the head's product reads."""
        return (FP32_BYTES + self.e) * self.model.dim

    def ends(self) -> float:
        """All that is behind the layers, but the blocks of the objective and the heads."""
        found, objective = self.end(), self.model.objective
        if isinstance(objective, MultiToken):
            found += objective.mtp_depth * self.end()
            if objective.arrangement == "sequential":  # whose norms read the trunk in float32
                wide = FP32_BYTES * self.model.dim if self.e < FP32_BYTES else 0.0
                found += objective.mtp_depth * self.joined() + wide
        return found

    def copies(self, parameters: float, *, head: bool = True) -> float:
        """Of so many parameters of blocks, and the head's; in FP8 of the blocks' the transposed ones alone are kept."""
        of_head = self.model.vocab_size * self.model.dim if head and self.e < FP32_BYTES else 0.0
        if not self.fp8:
            return self.e * (parameters + of_head) if self.e < FP32_BYTES else 0.0
        return self.e * of_head + parameters


def keeps_of(model: ModelSpec, trainer: TrainerSpec) -> Keeps | None:
    """What a model keeps in a trainer's dtype; None where a node of another package is in a slot."""
    own = (LatentAttention, GroupedQueryAttention, RoutedExperts, SwiGLU)
    if not all(isinstance(node, own) for node in (model.attention, model.feed_forward, model.first_feed_forward)):
        return None
    e = float(DTYPE_BYTES[trainer.dtype])
    fp8 = isinstance(model.linear, Fp8Linear) and model.linear.backend not in EMULATED
    return Keeps(model, e, FP8_BYTES if fp8 else e, fp8)


def training_memory(model: ModelSpec, trainer: TrainerSpec) -> TrainingMemory | None:
    """Of a model on the backends that it names (auto: libraries), at the trainer's micro-batch and dtype.

    None where a node of another package is in a slot, of which nobody knows what it keeps.
    """
    keeps = keeps_of(model, trainer)
    if keeps is None:
        return None
    tokens, cost = trainer.micro_batch_size * trainer.sequence_length, model.cost(trainer.sequence_length)
    layers = [keeps.block(layer) for layer in range(model.n_layers)]
    n_heads, ends, objective = 1, keeps.ends(), model.objective
    if isinstance(objective, MultiToken):
        n_heads += objective.mtp_depth
        layers += [keeps.block(model.n_layers)] * objective.mtp_depth
    return TrainingMemory(
        states=(2 * FP32_BYTES + trainer.optimizer.state_bytes_per_parameter) * float(cost.trained_parameters),
        copies=keeps.copies(cost.trained_parameters - 2 * model.vocab_size * model.dim),
        activations=tokens * (sum(layers) + ends),
        logits=logits_bytes(model, tokens, n_heads, keeps.e),
        recomputed=tokens * (len(layers) * FP32_BYTES * model.dim + max(layers) + ends),
        recompute=trainer.recompute == "full",
    )


def logits_bytes(model: ModelSpec, tokens: int, n_heads: int, e: float) -> float:
    """By libraries every head's in float32 until its backward pass, beside the last one's on their way."""
    if model.backends["head"] == "triton":  # gradients instead: of the hidden states, and of the head in float32
        kept = tokens * model.dim * e + FP32_BYTES * model.vocab_size * model.dim
        return n_heads * kept + min(float(LOGITS_AT_ONCE), e * tokens * model.vocab_size)
    return tokens * model.vocab_size * (FP32_BYTES * (n_heads + 1) + (e if e < FP32_BYTES else 0.0))


def by_backends(model: ModelSpec, trainer: TrainerSpec) -> dict[str, dict[str, float]]:
    """Bytes of training on one GPU, by libraries and by this program's kernels: the parts, and the totals.

    `peak` is the total of the two that the trainer's `recompute` asks for.

    Empty for a model of which it is not known, or whose trainer is for a processor (float32).
    """
    found: dict[str, dict[str, float]] = {}
    for name in ("library", "triton") if trainer.dtype == "bfloat16" else ():
        memory = training_memory(model.with_backends(dict.fromkeys(MODEL_SLOTS, name)), trainer)
        if memory is not None:
            totals = {"total": memory.total, "total_recomputed": memory.total_recomputed, "peak": memory.peak}
            found[name] = {f.name: getattr(memory, f.name) for f in fields(memory)} | totals
    return found
