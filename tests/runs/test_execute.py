"""Runs repeat bit for bit, also when they are killed and resumed; divergence is a result."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ablate.components.codec import decode_run
from ablate.files import damage, replace_file, to_json
from ablate.model.loss import training_loss
from ablate.model.weights import load_state, read_weights
from ablate.runs.adoption import adopt
from ablate.runs.attempts import ended, held
from ablate.runs.environment import program
from ablate.runs.execute import Session, execute
from ablate.runs.executors.signals import stopping
from ablate.runs.job import SMALL_PARAMETERS, Job, threads
from ablate.runs.record import RunRecord, pairing_fault
from ablate.runs.store import Store
from ablate.spec.decoding import run_id
from ablate.spec.run import Control
from ablate.training import callbacks
from ablate.training.callbacks import Interrupted
from ablate.training.checkpoint import PROGRAM, drop_checkpoints, newest_valid
from ablate.training.module import TrainingModule, burn
from ablate.training.schedule import learning_rate_factor

MakeJob = Callable[..., Job]


def ignore(step: int, loss: float | None, tokens_per_s: float) -> None:
    pass


def store_in(folder: Path) -> Store:
    store = Store(folder)
    store.create()
    return store


def finish(job: Job, folder: Path) -> RunRecord:
    return execute(job, store_in(folder), ignore)


@pytest.fixture(scope="module")
def full(make_job: MakeJob, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """Of the preset as it is, with everything on."""
    return finish(make_job(), tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def never_stopped(make_job: MakeJob, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """Of the same in two micro-batches a step."""
    return finish(make_job(micro_batch_size=2), tmp_path_factory.mktemp("never-stopped"))


def test_a_run_leaves_a_whole_record(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job()
    record = finish(job, tmp_path)
    assert record.status == "finished"
    assert decode_run(record.spec) == job.run
    assert record.run_id == run_id(job.run)
    assert [point["step"] for point in record.curve] == [3, 6, 9, 12]
    assert record.curve[-1]["n_tokens"] == job.run.n_tokens == record.n_tokens
    for name in ("nats_per_token", "bits_per_byte", "draft_acceptance", "max_violation", "tokens_per_s"):
        assert name in record.metrics
    assert record.judged["held_out"]["windows"] == job.run.trainer.n_held_out_windows == 40
    assert 10 < record.judged["held_out"]["documents"] <= job.corpus.held_out_documents
    assert record.evidence == {"loss": "measured", "speed": "emulated", "memory": "emulated"}
    assert record.environment["packages"]["torch"] == torch.__version__
    assert execute(job, Store(tmp_path), ignore) == record
    assert len(list(Store(tmp_path).records.iterdir())) == len(record.attempts) == 1


def test_equal_seeds_give_equal_bits_and_others_do_not(full: RunRecord, make_job: MakeJob, tmp_path: Path) -> None:
    first, again, other = full, finish(make_job(seed=0), tmp_path / "b"), finish(make_job(seed=1), tmp_path / "c")
    assert first.final_parameters_hash == again.final_parameters_hash
    assert first.curve == again.curve
    assert first.final_parameters_hash != other.final_parameters_hash
    assert first.order_hash != other.order_hash
    assert set(first.initial_parameters.values()).isdisjoint(
        value for name, value in other.initial_parameters.items() if "norm" not in name
    )


@pytest.mark.parametrize("n_found", [1, 3])
def test_a_run_has_the_threads_of_its_model_whatever_it_finds(make_job: MakeJob, tmp_path: Path, n_found: int) -> None:
    job, before = make_job(n_steps=4), torch.get_num_threads()
    try:
        torch.set_num_threads(n_found)
        record = finish(job, tmp_path)
    finally:
        torch.set_num_threads(before)
    assert record.environment["n_threads"] == job.n_threads == 1
    assert threads(SMALL_PARAMETERS - 1) == 1 < threads(SMALL_PARAMETERS) == threads(10**12)


def test_variants_of_a_seed_share_tokens_and_initial_values(full: RunRecord, make_job: MakeJob, tmp_path: Path) -> None:
    without_mtp = finish(make_job("mtp"), tmp_path)
    assert pairing_fault(full, without_mtp) == ""
    shared = full.initial_parameters.keys() & without_mtp.initial_parameters.keys()
    assert len(shared) == len(without_mtp.initial_parameters)
    assert full.final_parameters_hash != without_mtp.final_parameters_hash


@pytest.mark.parametrize(("stop_at", "number"), [(1, signal.SIGTERM), (5, signal.SIGUSR1), (11, signal.SIGTERM)])
def test_a_run_stopped_at_a_step_ends_with_the_same_bits(
    never_stopped: RunRecord,
    make_job: MakeJob,
    tmp_path: Path,
    stop_at: int,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job, whole, store = make_job(micro_batch_size=2), never_stopped, store_in(tmp_path)
    train = TrainingModule.training_step

    def interrupted(self: TrainingModule, batch: Any, batch_idx: int) -> Any:
        if self.global_step == stop_at - 1:
            os.kill(os.getpid(), number)
        return train(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", interrupted)
    with stopping() as stop, pytest.raises(Interrupted):
        execute(job, store, ignore, lambda: stop.requested)
    monkeypatch.undo()
    saved = newest_valid(store.attempts_folder(run_id(job.run)), program())
    assert saved is not None
    assert saved.name.endswith(f"{stop_at:012d}")
    resumed = execute(job, store, ignore)
    assert resumed.final_parameters_hash == whole.final_parameters_hash
    assert resumed.curve == whole.curve
    assert len(resumed.attempts) == 2


def test_a_checkpoint_is_gone_on_from_though_its_owner_removes_it(make_job: MakeJob, tmp_path: Path) -> None:
    """Two commands at once: one goes on from the other's checkpoint, which then moves on, or commits and cleans up."""
    job, store = make_job(n_steps=6, branches=()), store_in(tmp_path)
    attempts = store.attempts_folder(job.run_id)
    owner = store.new_attempt(job.run_id)
    with held(owner), pytest.raises(Interrupted):
        fit(job, owner, stop=lambda: True)
    (checkpoint,) = owner.glob("step-*")
    mine = store.new_attempt(job.run_id)
    resume = adopt(attempts, mine, program())
    assert resume == mine / checkpoint.name
    shutil.rmtree(checkpoint)
    fit(job, mine, resume=resume)
    assert newest_valid(attempts, program()) == resume


def fit(job: Job, attempt: Path, *, resume: Path | None = None, stop: Callable[[], bool] = lambda: False) -> None:
    replace_file(attempt / PROGRAM, to_json(program()))
    Session(job, attempt, ignore, stop).fit(resume)


def test_who_commits_leaves_the_checkpoints_of_those_who_are_still_at_it(make_job: MakeJob, tmp_path: Path) -> None:
    job, store = make_job(n_steps=4), store_in(tmp_path)
    attempts = store.attempts_folder(job.run_id)
    alive, dead = store.new_attempt(job.run_id), store.new_attempt(job.run_id)
    for attempt in (alive, dead):
        with held(attempt):
            (attempt / "step-000000000002").mkdir()
    with held(alive):
        record = execute(job, store, ignore)
        assert [p.parent for p in attempts.glob("*/step-*")] == [alive]
        assert len(record.attempts) == 3
    drop_checkpoints(ended(attempts))
    assert not list(attempts.glob("*/step-*"))


def test_of_two_attempts_the_slower_returns_the_record_of_the_faster(make_job: MakeJob, tmp_path: Path) -> None:
    job, store = make_job(n_steps=4), store_in(tmp_path)
    faster: list[RunRecord] = []

    def tell(step: int, loss: float | None, tokens_per_s: float) -> None:
        if not faster:
            faster.append(execute(job, store, ignore))

    slower = execute(job, store, ignore, lambda: tell(0, None, 0.0) is not None)
    assert slower == faster[0]
    assert [path.stem for path in store.records.iterdir()] == [job.run_id]
    assert damage(store.run_folder(job.run_id) / "weights") is None
    assert not list(store.run_folder(job.run_id).glob("**/step-*"))


def test_training_seconds_are_those_of_all_attempts(make_job: MakeJob, tmp_path: Path) -> None:
    job, store, calls = make_job(n_steps=8), store_in(tmp_path), itertools.count()
    with pytest.raises(Interrupted):
        execute(job, store, ignore, lambda: next(calls) == 5)
    record = execute(job, store, ignore)
    assert record.metrics["training_s"] > 4 * record.metrics["step_s"]


def test_a_run_speaks_in_training_and_in_evaluation(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "TELL_EVERY_S", 0.0)
    said: list[tuple[int, float | None]] = []
    job = make_job(n_steps=4, n_evaluations=2, n_held_out_windows=16)
    execute(job, store_in(tmp_path), lambda step, loss, speed: said.append((step, loss)))
    assert said[0] == (0, None)
    assert [step for step, _ in said] == sorted(step for step, _ in said)
    assert len(said) >= 2 * (16 // job.run.trainer.micro_batch_size)
    assert any(loss is not None for _, loss in said)


def test_training_on_unlearnable_rates_is_a_result(make_job: MakeJob, tmp_path: Path) -> None:
    record = finish(make_job(learning_rate=100.0, gradient_clip=0.0, warmup_share=0.0), tmp_path)
    assert record.status == "diverged"
    assert 1 < record.metrics["diverged_step"] <= 12
    assert record.metrics["last_finite_loss"] > 0
    assert "nats_per_token" not in record.metrics
    assert Store(tmp_path).read(record.run_id) == record


def test_a_gradient_clip_of_zero_is_no_clipping(make_job: MakeJob, tmp_path: Path) -> None:
    found = {clip: finish(make_job("fp8", gradient_clip=clip), tmp_path) for clip in (0.0, 1e9, 0.1)}
    weights = {clip: record.final_parameters_hash for clip, record in found.items()}
    assert weights[0.0] == weights[1e9] != weights[0.1]


def test_a_token_may_activate_every_expert(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job("fp8", n_steps=4)
    chosen: Any = job.run.model.feed_forward
    whole = dataclasses.replace(
        chosen, n_activated_experts=chosen.n_routed_experts, n_expert_groups=1, n_limited_groups=1
    )
    run = dataclasses.replace(job.run, model=dataclasses.replace(job.run.model, feed_forward=whole))
    job = dataclasses.replace(job, run=run)
    assert finish(job, tmp_path).metrics["load_entropy"] == pytest.approx(1.0)


def test_accumulation_changes_neither_loads_nor_bias(make_job: MakeJob, tmp_path: Path) -> None:
    biases = []
    for size in (4, 2, 1):
        job = make_job(n_steps=3, micro_batch_size=size)
        finish(job, tmp_path / str(size))
        weights = load_state(read_weights(Store(tmp_path / str(size)).run_folder(run_id(job.run)) / "weights"))
        biases.append({name: value for name, value in weights.items() if "bias_E" in name})
    assert len(biases[0]) == 2
    for name, bias in biases[0].items():
        assert bias.abs().max() > 0
        for other in biases[1:]:
            # One update a step, of the same size whatever the accumulation.
            assert torch.equal(bias.abs().max(), other[name].abs().max())


def test_the_schedule_warms_up_stays_and_decays(make_job: MakeJob) -> None:
    run = make_job(n_steps=100, warmup_share=0.1, decay_share=0.2).run
    factors = [learning_rate_factor(run, step) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert set(factors[10:80]) == {1.0}
    assert factors[80] == pytest.approx(1 - (1 / 21) ** 0.5)
    assert factors[-1] == pytest.approx(1 - (20 / 21) ** 0.5)
    assert all(a > b for a, b in pairwise(factors[79:]))


def test_the_objectives_weight_switches_where_the_decay_begins(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switched = list[bool]()

    def seen(*given: Any, decaying: bool, **named: Any) -> Any:
        switched.append(decaying)
        return training_loss(*given, decaying=decaying, **named)

    monkeypatch.setattr("ablate.training.module.training_loss", seen)
    finish(make_job(n_steps=10, decay_share=0.2, branches=()), tmp_path)
    assert switched == [False] * 8 + [True] * 2


def test_bfloat16_trains_beside_float32_master_weights(make_job: MakeJob, tmp_path: Path) -> None:
    for disabled in ((), ("fp8",)):
        record = finish(make_job(*disabled, n_steps=8, dtype="bfloat16"), tmp_path / f"b{len(disabled)}")
        exact = finish(make_job(*disabled, n_steps=8), tmp_path / f"f{len(disabled)}")
        assert record.status == "finished"
        assert record.final_parameters_hash != exact.final_parameters_hash
        assert record.metrics["nats_per_token"] == pytest.approx(exact.metrics["nats_per_token"], abs=0.2)
        weights = load_state(read_weights(Store(tmp_path / f"b{len(disabled)}").run_folder(record.run_id) / "weights"))
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_a_placebo_changes_no_bit_and_a_spike_what_it_says(make_job: MakeJob, tmp_path: Path) -> None:
    plain = make_job(n_steps=4)
    found = {"plain": finish(plain, tmp_path / "plain")}
    for field, value in (("placebo", True), ("masked_target_share", 0.2), ("extra_flops_share", 0.25)):
        job = make_job(n_steps=4, control=Control(**{field: value}))
        found[field] = finish(job, tmp_path / field)
    hashes = {name: record.final_parameters_hash for name, record in found.items()}
    assert hashes["placebo"] == hashes["extra_flops_share"] == hashes["plain"]
    assert hashes["masked_target_share"] != hashes["plain"]
    assert len({record.run_id for record in found.values()}) == 4


def test_masked_targets_are_the_share_and_burned_flops_the_number(make_job: MakeJob) -> None:
    module = TrainingModule(make_job(control=Control(masked_target_share=0.2)).run)
    targets = torch.ones(64, 100, dtype=torch.long)
    masked = module._learned(targets, 0)
    assert (masked == -100).float().mean() == pytest.approx(0.2, abs=0.02)
    assert torch.equal(masked, module._learned(targets, 0))
    assert burn(10 * 2 * 256**3, torch.device("cpu")) == 10


class WithoutTerm:
    """A node with one of its methods replaced, so that a term of the loss is left out."""

    def __init__(self, node: Any, **methods: Any) -> None:
        self.node, self.methods = node, methods

    def __getattr__(self, name: str) -> Any:
        return self.methods[name] if name in self.methods else getattr(self.node, name)


@pytest.mark.parametrize(
    ("slot", "touched", "methods"),
    [
        ("text", "head.weight", {"loss": lambda main, logits, batch: 0 * main}),
        ("objective", "objective.layers.0.projection.weight", {"loss_weight": lambda progress: 0.0}),
        ("balance", "layers.1.feed_forward.router.weight", {"loss": lambda routing, earlier: 0.0}),
    ],
)
def test_every_part_of_the_loss_is_in_it(make_job: MakeJob, slot: str, touched: str, methods: Any) -> None:
    """Main, multi-token and balance terms: without one the loss is smaller and what it touches has another gradient."""
    run = make_job().run
    window = torch.randint(0, 320, (4, 33), generator=torch.Generator().manual_seed(7))

    def step(changed: bool) -> tuple[float, Any]:
        module: Any = TrainingModule(run)
        module.configure_model()
        if changed and slot == "text":
            module.run = fields_of(run, decay_start=run.decay_start, text=WithoutTerm(run.text, **methods))
        elif changed:
            module.model.spec = fields_of(run.model, **{slot: WithoutTerm(getattr(run.model, slot), **methods)})
        loss = module.training_step({"window_BT1": window}, 0)
        loss.backward()
        return float(loss.detach()), dict(module.model.named_parameters())[touched].grad

    (whole, gradient), (less, left) = step(changed=False), step(changed=True)
    assert less < whole
    assert gradient.abs().max() > 0
    assert left is None or not torch.equal(left, gradient)


def fields_of(value: Any, **changes: Any) -> SimpleNamespace:
    return SimpleNamespace(**({f.name: getattr(value, f.name) for f in dataclasses.fields(value)} | changes))
