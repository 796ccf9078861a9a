"""C for the processor gives what torch gives: E4M3 in every element, norm, activation and head to rounding."""

import pytest
import torch
from numerics import each_pair
from torch.nn import functional as F

from ablate.components.fp8.compiled import CompiledQuantised, round_trip
from ablate.components.fp8.quantise import Blocks, SegmentStrips, Strips, quantise
from ablate.components.variants import Variant
from ablate.kernels import fused, native
from ablate.model.loss import training_loss
from ablate.model.transformer import Transformer, initialise
from ablate.presets import preset
from ablate.spec.machine import Machine, c_compiler, this_machine

if not c_compiler():
    pytest.skip("no C compiler on this machine: the backend compiled is refused here", allow_module_level=True)

SHAPES = ((1, 1), (3, 128), (130, 257), (300, 200))
TILINGS = (Strips(-1), Strips(-2), Blocks(128), Blocks(0))


def numbers(shape, spread, seed=0):
    """Magnitudes over many powers of ten, zeros of both signs among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * torch.exp(
        (spread * torch.randn(shape, generator=generator)).clamp(-80, 80)
    )
    x.view(-1)[::7], x.view(-1)[3::11] = 0.0, -0.0
    return x


def assert_same(found, wanted):
    finite = wanted.isfinite()
    assert torch.equal(found.isfinite(), finite)
    assert torch.equal(found[finite].view(torch.int32), wanted[finite].view(torch.int32))


@each_pair({"shape": SHAPES, "tiling": TILINGS, "spread": [0.0, 3.0, 30.0], "power_of_two": [False, True]})
def test_e4m3_is_that_of_torch_in_every_bit(shape, tiling, spread, power_of_two):
    x = numbers(shape, spread)
    wanted = quantise(x, tiling, power_of_two_scales=power_of_two).dequantise()
    assert_same(CompiledQuantised.of(x, tiling, power_of_two_scales=power_of_two).dequantise(), wanted)
    assert_same(round_trip(x, tiling, power_of_two_scales=power_of_two), wanted)


def test_every_e4m3_number_and_every_midpoint_rounds_as_in_torch():
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    x = torch.cat([codes, (codes[1:] + codes[:-1]) / 2, torch.nextafter((codes[1:] + codes[:-1]) / 2, codes[1:])])
    x = torch.cat([x, -x, torch.tensor([448.0])])[None]
    found = CompiledQuantised.of(x, Blocks(0), power_of_two_scales=False)
    wanted = quantise(x, Blocks(0), power_of_two_scales=False)
    assert torch.equal(found.values.view(torch.uint8), wanted.values.view(torch.uint8))
    assert_same(found.dequantise(), wanted.dequantise())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("tiling", TILINGS, ids=str)
def test_what_is_not_finite_spoils_its_tile_and_no_other(tiling, bad):
    x = numbers((260, 260), 1.0)
    x[5, 7] = bad
    wanted = quantise(x, tiling, power_of_two_scales=False).dequantise()
    assert_same(CompiledQuantised.of(x, tiling, power_of_two_scales=False).dequantise(), wanted)
    assert_same(round_trip(x, tiling, power_of_two_scales=False), wanted)
    assert not wanted.isfinite().all()


@pytest.mark.parametrize("square", [False, True])
def test_tiles_of_experts_do_not_straddle_them(square):
    sizes = (3, 0, 200, 1)
    x, tiling = numbers((204, 700), 3.0), SegmentStrips(sizes, torch.device("cpu"), square=square)
    wanted = quantise(x, tiling, power_of_two_scales=False).dequantise()
    assert_same(CompiledQuantised.of(x, tiling, power_of_two_scales=False).dequantise(), wanted)
    assert_same(round_trip(x, tiling, power_of_two_scales=False), wanted)


def test_matrices_of_experts_have_their_own_blocks():
    x = numbers((3, 130, 140), 3.0)
    wanted = quantise(x, Blocks(128), power_of_two_scales=True).dequantise()
    assert_same(round_trip(x, Blocks(128), power_of_two_scales=True), wanted)
    assert_same(round_trip(x.mT, Blocks(128), power_of_two_scales=True), wanted.mT)


def compare(function, reference, *inputs, tolerance=2e-6):
    """Value and gradients against the same in float64."""
    narrow = [x.clone().requires_grad_() for x in inputs]
    wide = [x.double().requires_grad_() for x in inputs]
    found, wanted = function(*narrow), reference(*wide)
    weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    (found * weight).sum().backward()
    (wanted * weight.double()).sum().backward()
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)
    for a, b in zip(narrow, wide, strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=5 * tolerance, atol=5 * tolerance)


@pytest.mark.parametrize("dim", [15, 64, 130])
def test_rms_norm(dim):
    x, w = torch.randn(7, 5, dim), torch.randn(dim)
    compare(lambda x, w: fused.rms_norm(x, w, 1e-6), lambda x, w: F.rms_norm(x, (dim,), w, 1e-6), x, w)


@pytest.mark.parametrize("hidden", [1, 17, 96])
def test_swiglu(hidden):
    x = torch.randn(9, 2 * hidden) * 6
    x[0, 0], x[1, 0] = 90.0, -95.0

    def plain(x):
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up

    compare(fused.swiglu, plain, x)


@pytest.mark.parametrize("classes", [2, 50, 300])
def test_linear_cross_entropy(classes):
    hidden, weight = torch.randn(40, 24) * 2, torch.randn(classes, 24)
    target = torch.randint(0, classes, (40,))
    target[::5] = -100

    def plain(h, w):
        return F.cross_entropy(h @ w.T, target)

    compare(lambda h, w: fused.linear_cross_entropy(h, w, target), plain, hidden, weight)


def test_a_loss_of_logits_that_are_not_finite_is_not_finite():
    hidden, weight = torch.ones(2, 3), torch.ones(4, 3)
    for bad in (float("nan"), float("inf")):
        weight[1, 1] = bad
        assert not fused.linear_cross_entropy(hidden, weight, torch.tensor([0, 1])).isfinite()


def test_a_target_that_the_head_has_not_is_refused_before_it_is_read():
    with pytest.raises(ValueError, match="a target is 4; the head has 4 classes"):
        fused.linear_cross_entropy(torch.ones(2, 3), torch.ones(4, 3), torch.tensor([0, 4]))


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match="takes float32 on a processor"):
        fused.swiglu(torch.ones(2, 4, dtype=torch.float64))


@pytest.mark.parametrize("fp8", ["on", "bf16"])
def test_a_whole_model_has_the_loss_and_gradients_of_the_libraries(fp8):
    base, machine = preset("nano"), this_machine()
    spec = (Variant.full(base) | {"fp8": fp8}).resolve(base).model
    others = {"feed_forward": "library", "first_feed_forward": "library", "norm": "library", "head": "library",
              "linear": "emulated"}  # fmt: skip
    window = torch.randint(0, spec.vocab_size, (2, 33), generator=torch.Generator().manual_seed(3))
    losses, gradients = [], []
    for asked in ({}, others):
        chosen = spec.with_backends(asked).for_machine(machine, "float32")
        assert ("compiled" in chosen.backends.values()) == (not asked)
        model = Transformer(chosen)
        initialise(model, chosen.init, 0)
        text = Variant.none().resolve(base).data.text
        total = training_loss(model, text, {"window_BT1": window}, decaying=False).total
        total.backward()
        losses.append(total.detach())
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)
    for name, gradient in gradients[0].items():
        # In E4M3 a last bit of the norm may move a number across a rounding boundary.
        assert (gradient - gradients[1][name]).norm() <= (0.05 if fp8 == "on" else 1e-4) * gradients[1][name].norm()


def test_without_a_compiler_it_is_refused_in_words_and_auto_takes_torch():
    base = preset("nano")
    spec = Variant.full(base).resolve(base).model
    bare = Machine(kind="cpu")
    assert "compiled" not in spec.for_machine(bare, "float32").backends.values()
    with pytest.raises(ValueError, match="it needs a C compiler"):
        spec.with_backends({"linear": "compiled"}).for_machine(bare, "float32")
    with pytest.raises(ValueError, match="float32 and not bfloat16"):
        spec.with_backends({"norm": "compiled"}).for_machine(Machine(kind="cpu", compiles_c=True), "bfloat16")


def test_a_file_that_does_not_compile_is_told_with_the_compilers_words(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "wrong.c"
    source.write_text("int f( {")
    with pytest.raises(RuntimeError, match=r"wrong\.c cannot be compiled .*error"):
        native.load(source, ())
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_a_library_is_built_once_and_anew_when_its_source_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "one.c"
    source.write_text("void f(int *x) { *x = 1; }")
    first = native._built(source)
    assert native._built(source) == first
    source.write_text("void f(int *x) { *x = 2; }")
    assert native._built(source) != first
    assert len(list((tmp_path / "cache").rglob("*.so"))) == 2


def test_a_damaged_library_is_built_again_and_never_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "one.c"
    source.write_text("void f(int *x) { *x = 1; }")
    built = native._built(source)
    whole = built.read_bytes()
    for damaged in (b"", whole[:100], whole[:-1] + b"\x00\x01"):
        built.write_bytes(damaged)
        assert native._built(source) == built
        assert built.read_bytes() == whole
