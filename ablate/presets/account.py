"""What a model costs, from a preset or a file of the user's own: closed forms, no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ablate.components.codec import decode_model, decode_spec
from ablate.components.component import ON
from ablate.components.registry import COMPONENTS, component
from ablate.components.variants import Variant, fitting_micro_batch, on_ranks
from ablate.documents import read_toml
from ablate.presets import preset, preset_file, rank_memory
from ablate.presets.architecture import Architecture, decode_architecture
from ablate.presets.training_memory import by_backends
from ablate.quantities import memory, number, plural, whole
from ablate.spec.cost import DTYPE_BYTES
from ablate.spec.model import ModelSpec
from ablate.spec.ranks import Ranks
from ablate.spec.run import Preset, Spec, TrainerSpec

PUBLISHED = Path(__file__).with_name("published")
# What a user's model file may leave out.
MODEL_DEFAULTS: dict[str, Any] = {
    "n_first_layers": 0,
    "balance": None,
    "objective": {"kind": "next-token"},
    "linear": {"kind": "standard"},
    "rope_theta": 10000.0,
    "norm": {"kind": "rms", "eps": 1e-6},
    "head": {"kind": "linear-head"},
    "init": {"scheme": "normal", "scale": 0.006},
}


def account_preset(
    name: str,
    disable: Sequence[str],
    enable: Sequence[str],
    alternatives: Mapping[str, str],
    sequence_length: int | None,
    ranks: Ranks | None = None,
    **trainer_fields: Any,
) -> dict[str, Any]:
    """Figures of the full variant without what is disabled; with `enable`, of the baseline with that.

    `trainer_fields`: other values of fields of the trainer.
    """
    base: Preset = preset_file(Path(name)) if name.endswith(".toml") else preset(name)
    if ranks:
        base = on_ranks(base, ranks)
        size = fitting_micro_batch(base.trainer.batch_size, base.trainer.micro_batch_size, ranks)
        base = replace(base, trainer=replace(base.trainer, micro_batch_size=size))
    if trainer_fields:
        base = replace(base, trainer=decode_spec(TrainerSpec, asdict(base.trainer) | trainer_fields, "trainer"))
    base.trainer.check_states()
    if disable and enable:
        raise ValueError("both --disable and --enable were given; disable starts from everything on, enable from none")
    for given in (*disable, *enable, *alternatives):
        component(given)
    if enable:
        variant = Variant.none() | alternatives | dict.fromkeys(enable, ON)
    else:
        variant = Variant.full(base).without(disable, alternatives)
        for given in alternatives:
            if given not in disable:
                raise ValueError(f"--alternative {given}={alternatives[given]} has no effect: add --disable {given}")
    spec = variant.resolve(base)
    length = _length(sequence_length, base.trainer.sequence_length)
    figures = {"preset": base.name, "variant": variant.levels} | spec.model.cost(length).summary()
    trainer = replace(spec.trainer, sequence_length=length)
    figures["micro_batch_size"] = trainer.micro_batch_size
    if trainer.ranks.world == 1:
        figures["training_memory"] = by_backends(spec.model, trainer)
    else:
        figures["rank_memory"] = rank_memory.by_backends(spec.model, trainer)
        figures["ranks"] = str(trainer.ranks)
    return figures | ({"transports": _transports(spec)} if spec.trainer.transport else {})


def _transports(spec: Spec) -> dict[str, dict[str, float]]:
    """Bytes a token of every way to experts on other ranks, over all layers that route."""
    model, trainer = spec.model, spec.trainer
    further = getattr(model.objective, "mtp_depth", 0)
    n_layers = model.n_layers - model.n_first_layers + further
    out, back = model.linear.wire_bytes(model.dim, trainer.dtype), model.dim * DTYPE_BYTES[trainer.dtype]
    found: dict[str, dict[str, float]] = {}
    for chosen in (c for c in COMPONENTS if "transport" in c.owns):
        for level in (ON, *(a.name for a in chosen.alternatives)):
            node = chosen.apply(level, spec).trainer.transport
            assert node is not None
            layer = node.traffic(model.feed_forward, trainer.ranks).bytes_per_token(out=out, back=back)
            found[node.kind] = layer | {
                "model_training_bytes_between_nodes": n_layers * layer["training_bytes_between_nodes"],
                "model_training_bytes_inside_nodes": n_layers * layer["training_bytes_inside_nodes"],
            }
    return found


def account_model(path: Path, sequence_length: int | None) -> dict[str, Any]:
    """Figures of a model file, as of `model_file`."""
    model, length = model_file(path, sequence_length)
    return {"model": str(_published(path))} | model.cost(length).summary()


def _published(path: Path) -> Path:
    return PUBLISHED / f"{path}.toml" if (PUBLISHED / f"{path}.toml").is_file() else path


def model_file(path: Path, sequence_length: int | None) -> tuple[ModelSpec | Architecture, int]:
    """A model file with its sequence_length, or the given one: the fields of ModelSpec and a table for each slot, or
    those of Architecture with groups of layers. A published architecture goes by its name."""
    names = sorted(file.stem for file in PUBLISHED.iterdir())
    path = _published(path)
    data = read_toml(
        path, "the model", f"give a TOML file with the fields of a model, or a published one: {', '.join(names)}"
    )
    own_length = data.pop("sequence_length", None)
    if own_length is None and sequence_length is None:
        raise ValueError(f"{path}: sequence_length is missing; write it there or give --sequence-length")
    length = _length(sequence_length, own_length)
    if "layers" in data:
        return decode_architecture(data), length
    data = MODEL_DEFAULTS | data
    if "first_feed_forward" not in data:
        if data["n_first_layers"]:
            raise ValueError(f"{path}: first_feed_forward is missing, and n_first_layers is {data['n_first_layers']}")
        data["first_feed_forward"] = {"kind": "swiglu", "hidden_dim": 1}
    if isinstance(data.get("feed_forward"), Mapping) and data["feed_forward"].get("kind") == "moe":
        data["balance"] = data["balance"] or {"kind": "none"}
    return decode_model(data, ""), length


def _length(given: int | None, default: Any) -> int:
    length = default if given is None else given
    if not isinstance(length, int) or length < 1:
        raise ValueError(f"sequence_length is {length!r}; it must be a whole number of at least 1")
    return length


def render(figures: Mapping[str, Any]) -> str:
    """The figures as lines for people."""
    n = {name: whole(value) for name, value in figures.items() if isinstance(value, int | float)}
    lines = [
        f"parameters        {n['total_parameters']} in all, {n['activated_parameters']} activated a token",
        f"                  {n['activated_without_embedding']} of these without the embedding, as DeepSeek counts",
        f"                  {n['trained_parameters']} trained, with what is discarded afterwards",
        f"training FLOPs    {n['training_flops_per_token']} a token, causal, sequences of {n['sequence_length']}",
        f"forward FLOPs     {n['forward_flops_per_token']} a token, as deployed",
        f"KV cache          {n['kv_cache_bytes_per_token']} bytes a token in BF16",
        f"weights           {memory(figures['weight_bytes'])} in BF16",
        f"optimizer         {memory(figures['optimizer_bytes'])}: float32 master weights and two moments",
    ]
    for kind, of in figures.get("transports", {}).items():
        lines.append(
            f"{kind:<17} {number(of['copies_between_nodes'])} copies a token between nodes (at most "
            f"{whole(of['most_copies_between_nodes'])}), {number(of['copies_inside_nodes'])} inside, a layer; training "
            f"{memory(of['model_training_bytes_between_nodes'])} and "
            f"{memory(of['model_training_bytes_inside_nodes'])} a token"
        )
    for backend, of in figures.get("training_memory", {}).items():
        lines.append(
            f"training on one GPU by {'libraries' if backend == 'library' else 'kernels'}: {memory(of['peak'])} at "
            f"{plural(figures['micro_batch_size'], 'sequence')} at a time: states {memory(of['states'])}, copies of "
            f"weights {memory(of['copies'])}, activations "
            f"{memory(of['recomputed' if of['recompute'] else 'activations'])}, logits {memory(of['logits'])}; "
            + (
                f"with no block recomputed {memory(of['total'])}"
                if of["recompute"]
                else f"with every block recomputed (trainer.recompute) {memory(of['total_recomputed'])}"
            )
        )
    for backend, places in figures.get("rank_memory", {}).items():
        name, fullest = "libraries" if backend == "library" else "kernels", max(places, key=lambda of: of["total"])
        lines.append(
            f"training on {figures['ranks']} by {name}: at most {memory(fullest['total'])} a rank at "
            f"{plural(figures['micro_batch_size'], 'sequence')} a micro-batch: states {memory(fullest['states'])}, "
            f"copies of weights {memory(fullest['copies'])}, activations {memory(fullest['activations'])} and logits "
            f"{memory(fullest['logits'])} of {plural(fullest['live_chunks'], 'live chunk')}"
        )
    if "variant" in figures:
        levels = ", ".join(f"{name} {level}" for name, level in figures["variant"].items())
        lines.insert(0, f"{figures['preset']}: {levels}")
    return "\n".join(lines)
