"""FP8 products against the definition in float64, what is left alone, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from variants import FULL, NANO, loss_of, spec_of, tokens

from ablate.components.fp8 import reference
from ablate.components.fp8.callback import UnderflowMonitor, observe
from ablate.components.fp8.emulation import Recipe
from ablate.components.fp8.module import Fp8GroupedLinear, Fp8Linear, GroupedLinear
from ablate.components.fp8.observation import Observation
from ablate.components.fp8.quantise import E4M3, Blocks, SegmentStrips, Strips, quantise
from ablate.components.fp8.spec import Fp8Linear as Fp8Node
from ablate.components.fp8.spec import Settings, StandardLinear
from ablate.model.transformer import build
from ablate.spec.decoding import decode
from ablate.spec.machine import Machine
from ablate.spec.model import ModelSpec

BLOCKWISE, TENSORWISE = Recipe("blockwise", False), Recipe("tensorwise", False)
POWERS, GRADIENTS = Recipe("blockwise", True), Recipe("gradient-blocks", False)
ROWS, COLUMNS, BLOCKS, WHOLE = Strips(-1), Strips(-2), Blocks(128), Blocks(0)
EXACT = 1e-6  # of the largest number: what float32 sums of a few hundred terms lose


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, each row and column of another magnitude, so that it matters who shares a scale."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return x * torch.randn(shape[-1], generator=generator).exp() * torch.randn(shape[-2], 1, generator=generator).exp()


def assert_equal(found: Tensor, expected: Tensor, tolerance: float = EXACT) -> None:
    assert found.shape == expected.shape
    if expected.numel():
        worst = (found.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
        assert float(worst) <= tolerance


def trained(module: nn.Module, *arguments: Any, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, input gradient, weight gradient."""
    x = x.clone().requires_grad_()
    y = module(x, *arguments)
    y.backward(g)
    assert x.grad is not None
    return y.detach(), x.grad, module.weight.grad  # type: ignore[return-value]


def linear(weight_OI: Tensor, recipe: Recipe = BLOCKWISE) -> Fp8Linear:
    module = Fp8Linear(weight_OI.shape[1], weight_OI.shape[0], recipe=recipe, backend="emulated")
    module.weight.data.copy_(weight_OI)
    return module


def fp8_model(**fields: Any) -> ModelSpec:
    model = spec_of(FULL).model
    return replace(model, linear=replace(model.linear, **fields))


# ---- numbers


def test_casts_are_nearest_even_by_the_table() -> None:
    """Every boundary between two E4M3 numbers, and the floats on both sides of it."""
    table = reference.table().float()
    middle = (table[1:] + table[:-1]) / 2
    x = torch.cat([table, middle, torch.nextafter(middle, table[1:]), torch.nextafter(middle, table[:-1])])
    x = torch.cat([x, -x, torch.tensor([1e-12, 460.0])])
    expected = reference.nearest(x)
    assert torch.equal(x.clamp(-448, 448).to(E4M3).double(), expected)
    # Read back through the bit patterns that the products use: with 448 among them the scale is 1.
    back = quantise(x[None, :-1], WHOLE, power_of_two_scales=False).dequantise()
    assert torch.equal(back[0].double(), expected[:-1])


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (63, 100), (129, 257)])
def test_tiles_are_those_of_the_definition(rows: int, columns: int, power_of_two: bool) -> None:
    x = numbers(rows, columns)
    wide = {"power_of_two_scales": power_of_two}
    every = (
        (ROWS, reference.ends(rows, 1), reference.ends(columns)),
        (COLUMNS, reference.ends(rows), reference.ends(columns, 1)),
        (BLOCKS, reference.ends(rows), reference.ends(columns)),
        (WHOLE, [rows], [columns]),
    )
    for tiling, row_ends, column_ends in every:
        expected = reference.quantised(x, row_ends, column_ends, **wide)
        found = quantise(x, tiling, **wide)
        assert found.values.dtype == E4M3
        # Power-of-two scales dequantise exactly, others round each number to float32 once.
        assert_equal(found.dequantise(), expected, 0 if power_of_two else 2.0**-23)


def test_the_largest_of_a_tile_becomes_448() -> None:
    x = numbers(3, 300)
    found = quantise(x, ROWS, power_of_two_scales=False)
    for tile in found.values.float().split(128, dim=1):
        assert torch.equal(tile.abs().amax(1), torch.full((3,), 448.0))
    rounded = quantise(x, ROWS, power_of_two_scales=True)
    tiles = (rounded.values[:, :256].unflatten(1, (2, 128)), rounded.values[:, 256:].unflatten(1, (1, 44)))
    for scale, tile in zip(rounded.scales, tiles, strict=True):
        assert torch.equal(scale.frexp().mantissa, torch.full_like(scale, 0.5))
        largest = tile.float().abs().amax(-1)
        assert ((largest > 216) & (largest <= 448)).all()


@pytest.mark.parametrize("power_of_two", [False, True])
def test_zeros_stay_zero_and_tiny_numbers_finite(power_of_two: bool) -> None:
    x = torch.zeros(4, 256)
    x[0, 0], x[1, 0], x[2, 0] = 1e-44, 1e-38, 2e38
    for tiling in (ROWS, COLUMNS, BLOCKS, WHOLE):
        found = quantise(x, tiling, power_of_two_scales=power_of_two)
        back = found.dequantise()
        assert torch.isfinite(found.values.float()).all()
        assert torch.isfinite(back).all()
        assert (back[x == 0] == 0).all()
        assert float(back[2, 0]) == pytest.approx(2e38, rel=0.07)


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_divergence_is_not_clamped_away(bad: float, power_of_two: bool) -> None:
    recipe = Recipe("blockwise", power_of_two)
    x, w, g = numbers(5, 130), numbers(7, 130), numbers(5, 7)
    for spoilt in range(3):
        operands = [x.clone(), w.clone(), g.clone()]
        operands[spoilt][2, 3] = bad
        y, x_gradient, w_gradient = trained(linear(operands[1], recipe), x=operands[0], g=operands[2])
        results = {0: (y, w_gradient), 1: (y, x_gradient), 2: (x_gradient, w_gradient)}[spoilt]
        assert not any(bool(torch.isfinite(r).all()) for r in results)


# ---- products


@pytest.mark.parametrize("recipe", [BLOCKWISE, POWERS, TENSORWISE, GRADIENTS], ids=str)
@pytest.mark.parametrize(("n", "i", "o"), [(1, 63, 100), (63, 1, 1), (129, 100, 257), (257, 129, 63), (128, 128, 128)])
def test_the_three_products_are_those_of_the_definition(n: int, i: int, o: int, recipe: Recipe) -> None:
    x, w, g = numbers(n, i, seed=1), numbers(o, i, seed=2), numbers(n, o, seed=3)
    define = reference.tensorwise_products if recipe.name == "tensorwise" else reference.products
    blocks = {"gradient_blocks": True} if recipe is GRADIENTS else {}
    expected = define(x, w, g, power_of_two_scales=recipe.power_of_two_scales, **blocks)
    exact = (x.double() @ w.double().T, g.double() @ w.double(), g.double().T @ x.double())
    for found, wanted, unquantised in zip(trained(linear(w, recipe), x=x, g=g), expected, exact, strict=True):
        assert_equal(found, wanted)
        error = float((found - unquantised).norm() / unquantised.norm())
        low, high = (1e-3, 0.1) if min(n, i, o) > 1 else (0, 0.3)
        assert low < error < high, "a switch that does nothing, or one that breaks"


def test_emulation_is_fp8_multiplication_with_float32_sums() -> None:
    """Products of two E4M3 numbers are exact in float32, and scales factor out of a block's sum."""
    table = reference.table()
    assert torch.equal((table[:, None].float() * table.float()).double(), table[:, None] * table)
    x, w = numbers(9, 257, seed=1), numbers(130, 257, seed=2)
    y = torch.zeros(9, 130)
    for k in range(0, 257, 128):
        for o in range(0, 130, 128):
            a, b = x[:, k : k + 128], w[o : o + 128, k : k + 128]
            s, t = a.abs().amax(1, keepdim=True) / 448, b.abs().max() / 448
            y[:, o : o + 128] += ((a / s).to(E4M3).float() @ (b / t).to(E4M3).float().T) * s * t
    assert_equal(linear(w)(x).detach(), y.double())


@pytest.mark.parametrize("sizes", [[5, 0, 130, 257], [0, 0, 0, 200], [300, 0, 0, 0], [1, 1, 1, 1], [128, 128, 129, 0]])
@pytest.mark.parametrize("recipe", [BLOCKWISE, POWERS, GRADIENTS], ids=str)
def test_grouped_products_are_each_experts_own(sizes: list[int], recipe: Recipe) -> None:
    n, i, o = sum(sizes), 33, 130
    x, w, g = numbers(n, i, seed=1), numbers(len(sizes), o, i, seed=2), numbers(n, o, seed=3)
    offsets = torch.tensor(sizes).cumsum(0).to(torch.int32)
    module = Fp8GroupedLinear(len(sizes), i, o, recipe=recipe, backend="emulated")
    module.weight.data.copy_(w)
    y, x_gradient, w_gradient = trained(module, offsets, x=x, g=g)
    for e, (x_e, g_e) in enumerate(zip(x.split(sizes), g.split(sizes), strict=True)):
        scales = {"power_of_two_scales": recipe.power_of_two_scales, "gradient_blocks": recipe is GRADIENTS}
        expected = reference.products(x_e, w[e], g_e, **scales)
        found = (y.split(sizes)[e], x_gradient.split(sizes)[e], w_gradient[e])
        for a, b in zip(found, expected, strict=True):
            assert_equal(a, b)


def test_tiles_along_tokens_do_not_straddle_experts() -> None:
    """A large number in one expert's rows leaves the other's rounding alone."""
    x = numbers(200, 8)
    tiling = SegmentStrips([100, 100], x.device)
    before = quantise(x, tiling, power_of_two_scales=False).dequantise()
    x[150] *= 1000
    after = quantise(x, tiling, power_of_two_scales=False).dequantise()
    assert torch.equal(before[:100], after[:100])
    assert not torch.equal(before[100:150], after[100:150])


def test_tensorwise_grouped_has_a_scale_for_each_matrix_and_one_for_all_rows() -> None:
    x, w, g = numbers(20, 6, seed=1), numbers(2, 5, 6, seed=2), numbers(20, 5, seed=3)
    module = Fp8GroupedLinear(2, 6, 5, recipe=TENSORWISE, backend="emulated")
    module.weight.data.copy_(w)
    found = trained(module, torch.tensor([12, 20], dtype=torch.int32), x=x, g=g)
    qx, qg = (reference.quantised(t, [20], [t.shape[1]]) for t in (x, g))
    qw = [reference.quantised(matrix, [5], [6]) for matrix in w]
    assert_equal(found[0], torch.cat([qx[:12] @ qw[0].T, qx[12:] @ qw[1].T]))
    assert_equal(found[1], torch.cat([qg[:12] @ qw[0], qg[12:] @ qw[1]]))
    assert_equal(found[2], torch.stack([qg[:12].T @ qx[:12], qg[12:].T @ qx[12:]]))


def test_fine_tiles_lose_less_than_one_scale_a_tensor() -> None:
    x, w, g = numbers(256, 256, seed=1), numbers(256, 256, seed=2), numbers(256, 256, seed=3)
    errors = {}
    for recipe in (BLOCKWISE, TENSORWISE):
        y = trained(linear(w, recipe), x=x, g=g)[0]
        errors[recipe.name] = float((y - x.double() @ w.double().T).norm())
    assert errors["blockwise"] < errors["tensorwise"]


@pytest.mark.parametrize("recipe", [BLOCKWISE, TENSORWISE], ids=["blockwise", "tensorwise"])
def test_a_pass_without_gradients_is_the_same_and_layouts_do_not_matter(recipe: Recipe) -> None:
    w, x = numbers(10, 6), numbers(2 * 7, 6).view(2, 7, 6)
    module = linear(w, recipe)
    with torch.no_grad():
        plain = module(x)
    assert plain.shape == (2, 7, 10)
    assert torch.equal(module(x), plain)
    assert_equal(module(x.transpose(0, 1)).detach(), plain.transpose(0, 1).double())
    expanded = torch.ones(()).expand(2, 7, 10)
    x = x.requires_grad_()
    module(x).backward(expanded)
    assert x.grad is not None
    first, weight_gradient = x.grad.clone(), module.weight.grad
    x.grad = module.weight.grad = None
    module(x).backward(torch.ones(2, 7, 10))
    assert torch.equal(first, x.grad)  # type: ignore[arg-type]
    assert torch.equal(weight_gradient, module.weight.grad)  # type: ignore[arg-type]


def test_a_pass_without_gradients_quantises_nothing_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    tilings: list[Any] = []

    def counted(x: Tensor, tiling: Any, **options: bool) -> Any:
        tilings.append(tiling)
        return quantise(x, tiling, **options)

    monkeypatch.setattr("ablate.components.fp8.quantise.quantise", counted)
    with torch.no_grad():
        linear(numbers(10, 6))(numbers(7, 6))
    assert tilings == [BLOCKS, ROWS]
    linear(numbers(10, 6))(numbers(7, 6))
    assert tilings[2:] == [BLOCKS, COLUMNS, ROWS]


def test_weights_are_quantised_anew_after_a_step() -> None:
    module, x = linear(numbers(10, 6)), numbers(7, 6)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
    before = module(x)
    before.sum().backward()
    optimizer.step()
    after = module(x)
    assert not torch.equal(before, after)
    assert torch.equal(after, linear(module.weight.detach())(x))


@pytest.mark.parametrize("backward_inside", [False, True])
def test_under_autocast_inputs_and_outputs_are_bfloat16_and_products_exact(backward_inside: bool) -> None:
    x, w, g = numbers(40, 20, seed=1), numbers(30, 20, seed=2), numbers(40, 30, seed=3).bfloat16()
    module, given = linear(w), x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = module(given)
        if backward_inside:
            y.backward(g)
    if not backward_inside:
        y.backward(g)
    assert y.dtype == torch.bfloat16
    assert given.grad is not None
    assert (given.grad.dtype, module.weight.grad.dtype) == (torch.float32, torch.float32)  # type: ignore[union-attr]
    expected = reference.products(x.bfloat16(), w, g)
    assert_equal(y.detach(), expected[0], 2.0**-8)
    assert_equal(given.grad, expected[1], 2.0**-8)
    assert_equal(module.weight.grad, expected[2])  # type: ignore[arg-type]


def test_only_a_byte_an_element_is_kept_for_the_backward_pass() -> None:
    x, kept = numbers(256, 64).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        linear(numbers(32, 64))(x)
    assert sum(t.numel() * t.element_size() for t in kept) <= 256 * 64 + 32 * 64 + 4 * (2 * 64 + 1)


# ---- the model


def test_every_parameter_of_the_full_model_gets_a_finite_gradient() -> None:
    model = build(fp8_model(), seed=0)
    loss_of(model, tokens(16, 33)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_embedding_head_and_router_are_left_alone() -> None:
    on, off = build(fp8_model(), seed=0), build(spec_of(FULL | {"fp8": "bf16"}).model, seed=0)
    changed = {n for n, m in on.named_modules() if isinstance(m, Fp8Linear | Fp8GroupedLinear)}
    linear_maps = {n for n, m in off.named_modules() if isinstance(m, nn.Linear | GroupedLinear)}
    assert changed == linear_maps - {"head"}
    assert isinstance(on.head, nn.Linear)
    assert isinstance(on.embedding, nn.Embedding)
    assert on.embedding.weight.dtype == torch.float32
    kept = {n for n, p in on.named_parameters() if p.ndim > 1 and n.rpartition(".")[0] not in changed}
    assert kept == {"embedding.weight", "head.weight", *(n for n in dict(on.named_parameters()) if "router" in n)}
    assert {n: p.shape for n, p in on.named_parameters()} == {n: p.shape for n, p in off.named_parameters()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_plugin_refuses_a_missed_map_and_one_too_many(dtype: str) -> None:
    node: Any = fp8_model(backend="emulated").linear
    plugin = node.precision(dtype, "cpu")
    assert plugin.precision == {"float32": "32-true", "bfloat16": "bf16-mixed"}[dtype]
    model = build(fp8_model(backend="emulated"), seed=0)
    plugin.convert_module(model)
    plugin.convert_module(nn.ModuleDict({"student": model, "frozen": nn.Linear(2, 2).requires_grad_(False)}))

    missed = build(fp8_model(backend="emulated"), seed=0)
    missed.layers[1].attention.output = nn.Linear(32, 32, bias=False)
    with pytest.raises(ValueError, match=r"layers\.1\.attention\.output\.weight is not in FP8"):
        plugin.convert_module(missed)

    excess: Any = build(fp8_model(backend="emulated"), seed=0)
    excess.head = Fp8Linear(32, 320, recipe=BLOCKWISE, backend="emulated")
    with pytest.raises(ValueError, match=r"head\.weight is in FP8"):
        plugin.convert_module(excess)

    with pytest.raises(ValueError, match="tensorwise"):
        plugin.convert_module(build(fp8_model(recipe="tensorwise"), seed=0))


def on_machine(node: Fp8Node, machine: Machine) -> str:
    return replace(NANO.model, linear=node).for_machine(machine, "bfloat16").backends["linear"]


def test_a_backend_that_cannot_run_here_is_refused_and_auto_names_one_that_can() -> None:
    here, hopper = Machine(kind="cpu"), Machine(kind="cuda", name="NVIDIA H100", capability=(9, 0))
    ampere = Machine(kind="cuda", name="NVIDIA A100", capability=(8, 0))
    for backend in ("triton", "library"):
        for machine in (here, ampere):
            with pytest.raises(
                ValueError, match=f"linear.backend is '{backend}', and .*here there are: auto, emulated"
            ):
                on_machine(Fp8Node(backend=backend), machine)
        assert on_machine(Fp8Node(backend=backend), hopper) == backend
    chosen = [on_machine(Fp8Node(), machine) for machine in (here, ampere, hopper)]
    assert chosen == ["emulated", "emulated", "library"]
    for recipe in ("tensorwise", "gradient-blocks"):
        with pytest.raises(ValueError, match=f"the recipe {recipe} has no kernel here"):
            on_machine(Fp8Node(recipe=recipe, backend="triton"), hopper)
    for make in (Fp8Node, lambda recipe: Recipe(recipe, False)):
        with pytest.raises(ValueError, match="recipe is 'blockwize'; did you mean 'blockwise'"):
            make(recipe="blockwize")
    with pytest.raises(ValueError, match="backend is auto"):
        Fp8Node().linear(8, 8)
    with pytest.raises(ValueError, match=r"fp8\.backend is 'cuda'"):
        decode(Settings, {"backend": "cuda"}, "fp8")


def test_presets_settings_reach_every_recipe() -> None:
    preset = replace(NANO, settings=NANO.settings | {"fp8": Settings(power_of_two_scales=True)})
    for level, recipe in (("on", "blockwise"), ("tensorwise", "tensorwise"), ("gradient-blocks", "gradient-blocks")):
        assert (FULL | {"fp8": level}).resolve(preset).model.linear == Fp8Node(recipe=recipe, power_of_two_scales=True)
    assert (FULL | {"fp8": "bf16"}).resolve(preset).model.linear == StandardLinear()


def test_speed_of_an_emulation_is_said_to_be_that() -> None:
    assert (Fp8Node(backend="emulated").speed_evidence(), StandardLinear().speed_evidence()) == ("emulated", "measured")


# ---- what is observed


def test_underflow_and_largest_magnitude_of_a_constructed_tensor() -> None:
    x = torch.full((1, 128), 1.0)
    x[0, :32] = 2.0**-20  # 448 / 2^20 lies below half the smallest E4M3 number, 2^-9
    x[0, 16:32] *= -1
    x[0, 32:64] = 0.0
    x[0, 64] = -3.0
    observation = Observation()
    observation.add("activation", x, quantise(x, ROWS, power_of_two_scales=False))
    assert observation.metrics() == {"fp8_activation_underflow_share": 32 / 96, "fp8_activation_amax": 3.0}
    observation.add("activation", x, quantise(x, ROWS, power_of_two_scales=False))
    assert observation.metrics()["fp8_activation_underflow_share"] == 32 / 96, "a recomputed pass changes nothing"


def test_observing_changes_no_number_and_ends() -> None:
    x, g, results = numbers(20, 6), numbers(20, 10), []
    for observation in (None, Observation()):
        module = linear(numbers(10, 6))
        observe(module, observation)
        results.append(trained(module, x=x, g=g))
    assert observation is not None
    assert set(observation.metrics()) == {
        f"fp8_{kind}_{what}" for kind in ("activation", "weight", "gradient") for what in ("underflow_share", "amax")
    }
    assert observation.metrics()["fp8_gradient_amax"] == float(g.abs().max())
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class Regression(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.run = SimpleNamespace(n_steps=96)
        self.output = linear(numbers(3, 6))
        self.observed: list[bool] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.observed.append(self.output.observation is not None)
        return self.output(batch).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers")
def test_the_callback_samples_a_few_steps_of_a_lightning_run(tmp_path: Any) -> None:
    module, monitor = Regression(), UnderflowMonitor()
    assert monitor.metrics() == {}
    trainer = Trainer(
        accelerator="cpu",
        max_steps=96,
        accumulate_grad_batches=2,
        plugins=[Fp8Node(backend="emulated").precision("float32", "cpu")],
        callbacks=[monitor],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, DataLoader(numbers(4 * 192, 6), batch_size=4))
    # Every third step of 96, the first of its two micro-batches.
    assert [i for i, seen in enumerate(module.observed) if seen] == list(range(0, 192, 6))
    assert module.output.observation is None
    assert monitor.metrics()["fp8_weight_amax"] > 0
    resumed = UnderflowMonitor()
    resumed.load_state_dict(monitor.state_dict())
    assert resumed.metrics() == monitor.metrics()
