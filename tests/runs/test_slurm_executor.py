"""Slurm: cluster files and job scripts for whatever names there are, and, where Slurm is installed, a real one."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ablate.components.variants import Variant, on_ranks
from ablate.data.corpus import Corpus
from ablate.files import sealed
from ablate.presets import preset
from ablate.runs.attempts import newest
from ablate.runs.conduct import execute_all
from ablate.runs.executors import slurm, submission
from ablate.runs.executors.cluster_file import FORMS, Cluster, read_cluster
from ablate.runs.executors.local import LocalExecutor
from ablate.runs.executors.slurm import SlurmExecutor, script
from ablate.runs.executors.submission import Submission, Task, queued, write_submission
from ablate.runs.job import Job
from ablate.runs.progress import standing
from ablate.runs.store import Store
from ablate.spec.decoding import decode, run_id
from ablate.spec.machine import Machine, this_machine
from ablate.spec.ranks import Ranks

pytest.importorskip("submitit")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NASTY = [
    "$(touch canary)",
    "`touch canary`",
    "; touch canary",
    "\n#SBATCH --wrap='touch canary'\n",
    "'",
    '"',
    "a b",
    "%j",
]
NASTY += [
    "\\",
    "é",
    "\u2028",
    "..",
    "-x",
    "a\0b",
    "$IFS",
    "|touch canary",
    "&& touch canary",
    "\rtouch canary",
    "x" * 70,
]


@pytest.fixture
def job(make_job: Callable[..., Job]) -> Job:
    return make_job()


def test_a_script_is_the_template_the_fields_and_one_path(job: Job, tmp_path: Path) -> None:
    cluster = Cluster(partition="main", time="4:00:00", modules=("cuda/12.8",), setup=("ulimit -n 4096",), qos="low")
    text = script(cluster, tmp_path / "dsv3-a.json", [job, job], n_parallel=1)
    assert "#SBATCH --array=0-1%1" in text
    for flag in ("partition=main", "time=4:00:00", "qos=low", "signal=USR1@120", "requeue", "nodes=1"):
        assert f"#SBATCH --{flag}" in text
    started = next(line for line in text.splitlines() if line.startswith("srun "))
    assert started.endswith(f"-u -m {slurm.TASK} {tmp_path / 'dsv3-a.json'}")
    assert text.index("module load cuda/12.8") < text.index("ulimit") < text.index("srun ")
    assert text.endswith("\n".join(slurm.AFTER))
    assert "--time" not in script(Cluster(), tmp_path / "a.json", [job]), "submitit's default is five minutes"
    boxed = script(Cluster(container=("apptainer", "exec", "my image.sif")), tmp_path / "a.json", [job])
    assert "apptainer exec 'my image.sif'" in boxed


def test_every_field_of_a_cluster_file_is_in_the_script(make_job: Callable[..., Job], tmp_path: Path) -> None:
    job = make_job(ranks=Ranks(pipeline=2, data=8))
    cluster = Cluster(
        partition="gpu,big",
        account="lab",
        qos="low",
        constraint="h200&ib",
        time="1-00:00:00",
        memory="64G",
        gpus_per_node=8,
        cpus_per_task=12,
        modules=("cuda/12.8",),
        setup=("source ~/env",),
        container=("apptainer", "exec", "--nv", "image.sif"),
        python="/opt/python",
        signal_s=90,
    )
    text = script(cluster, tmp_path / "a.json", [job] * 3)
    for flag in (
        *("partition=gpu,big", "account=lab", "qos=low", "constraint='h200&ib'", "time=1-00:00:00", "mem=64G"),
        *("gpus-per-node=8", "cpus-per-task=12", "nodes=2", "ntasks-per-node=1", "signal=USR1@90", "array=0-2%3"),
    ):
        assert f"#SBATCH --{flag}\n" in text
    started = next(line for line in text.splitlines() if line.startswith("srun "))
    assert "--cpus-per-task=12 " in started
    assert "apptainer exec --nv image.sif /opt/python -u -m" in started
    assert "module load cuda/12.8\nsource ~/env\n" in text


def test_no_name_runs_anything(job: Job, tmp_path: Path) -> None:
    """Fuzzed fields and paths are refused, or quoted so that bash reads the script and starts only its task."""
    draw, n_written = random.Random(7), 0
    (tmp_path / "bin").mkdir()
    srun = tmp_path / "bin" / "srun"
    srun.write_text("#!/bin/sh\nexit 0\n")
    srun.chmod(0o755)
    environment = {"PATH": f"{srun.parent}:/usr/bin:/bin", "SLURM_ARRAY_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "0"}
    for i in range(120):
        value = draw.choice(NASTY) + draw.choice(["", "a", draw.choice(NASTY)])
        name = draw.choice([*FORMS, "container", "path"])
        fields: dict[str, Any] = {name: (value,) if name in ("modules", "container") else value}
        place = tmp_path / (value.replace("/", "_") if name == "path" else "x") / "dsv3-a.json"
        try:
            text = script(Cluster(**({} if name == "path" else fields)), place, [job])
        except ValueError:
            continue
        n_written += 1
        if i % 4 == 0:
            subprocess.run(["bash"], input=text, text=True, cwd=tmp_path, env=environment, check=False)
    assert n_written > 10
    assert not list(tmp_path.rglob("canary"))


def test_a_cluster_file_is_read_strictly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "clusters").mkdir()
    file = tmp_path / "clusters" / "mine.toml"
    file.write_text('partition = "gpu"\ngpus_per_node = 8\ngpu = "NVIDIA H200"\ncapability = "9.0"\n')
    cluster = read_cluster("mine")
    assert cluster.machine(Machine(kind="cpu", torch_version=(2, 13))).architecture == "sm_90"
    assert (cluster.nodes(1), cluster.nodes(8), cluster.nodes(16)) == (1, 1, 2)
    with pytest.raises(ValueError, match="12 ranks do not fill machines of 8"):
        cluster.nodes(12)
    for text, said in (
        ('partitoin = "gpu"', "did you mean 'partition'"),
        ('time = "soon"', "time is 'soon'; it takes minutes"),
        ("signal_s = 0", "must be between 1 and"),
        ('gpu = "NVIDIA H200"', "belong together"),
        ('setup = ["export WANDB_API_KEY=0123456789"]', "looks like a secret, not shown here"),
        ('container = ["docker", "run", "-e", "WANDB_API_KEY=0123456789"]', "container sets what looks like a secret"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=said) as refused:
            read_cluster("mine")
        assert "0123456789" not in str(refused.value)
    assert decode(Cluster, {"setup": ["export WANDB_API_KEY=$(cat ~/.key)"]}, "").setup
    with pytest.raises(ValueError, match="did you mean 'mine'"):
        read_cluster("mien")
    with pytest.raises(ValueError, match="--cluster is"):
        read_cluster("../mine")


def test_the_queue_is_matched_with_the_submissions_of_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    write_submission(store, Submission(name="dsv3-aa", key="k-0", cluster="c", runs=("r0", "r1", "r2")))
    lines = [
        "dsv3-aa|0|7|RUNNING",
        "dsv3-aa|1|7|PENDING",
        "dsv3-bb|0|8|RUNNING",
        "dsv3-aa|2|7|NODE_FAIL",
        "x|N/A|9|RUNNING",
    ]
    monkeypatch.setattr(submission, "ask", lambda command: "\n".join(lines))
    tasks = queued(store)
    assert tasks == [
        Task("r0", "k-0", "7_0", "RUNNING"),
        Task("r1", "k-0", "7_1", "PENDING"),
        Task("r2", "k-0", "7_2", "NODE_FAIL"),
    ]
    assert [(t.runs, t.active) for t in tasks] == [(True, True), (False, True), (False, False)]
    monkeypatch.setattr(submission, "ask", lambda command: None)
    assert queued(store) is None


@pytest.mark.parametrize("name", ["../../x", "/x", "..", ".", "", "a/b", "x" * 65, "a\0b"])
def test_names_that_lead_elsewhere_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "dsv3-aa.json"
    path.write_text(sealed({"name": "dsv3-aa", "key": "k-0", "cluster": "c", "runs": [name]}))
    with pytest.raises(ValueError, match="a name in the submission is"):
        submission.read_submission(path)


@pytest.mark.parametrize("state", ["RUNNING", "PENDING", "REQUEUED", "COMPLETED", "CANCELLED", ""])
def test_what_is_in_the_queue_is_adopted_and_what_has_left_it_is_not(
    state: str, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Task(job.run_id, "earlier-0", "7_0", state)
    monkeypatch.setattr(slurm, "queued", lambda store: [there, Task("another", "k", "8_0", "RUNNING")])
    executor = SlurmExecutor(Store(tmp_path), Cluster(), "c")
    adopted = {job.run_id: "earlier-0"} if there.active else {}
    assert there.active == (state in ("RUNNING", "PENDING", "REQUEUED"))
    assert executor.adopt([job]) == adopted
    seen = executor.poll(0.0)
    assert seen.gone == {}
    assert set(seen.running) == ({job.run_id} if state == "RUNNING" else set())


def test_nothing_is_submitted_while_the_queue_is_not_known(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "queued", lambda store: None)
    with pytest.raises(ValueError, match="Slurm does not answer"):
        SlurmExecutor(Store(tmp_path), Cluster(), "c").adopt([job])


@pytest.fixture(scope="module")
def loopback() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import loopback as module

        if reason := module.missing():
            pytest.skip(f"no Slurm on loopback: {reason}")
        base = Path(f"/var/tmp/dsv3-test-slurm-{os.getpid()}")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        with module.Loopback(base=base, nodes=2, cpus=1) as slurm_here:
            yield slurm_here


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_slurm_ends_a_disturbed_study_with_the_same_bits(
    loopback: ModuleType, make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal before the time limit and a cancelled job; what is queued is not submitted twice."""
    jobs = [make_job(n_steps=300, seed=seed) for seed in range(2)]
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    for store in (here, there):
        store.create()
    execute_all(jobs, here, LocalExecutor(here, 1), listener=lambda event: None)
    executor = SlurmExecutor(there, Cluster(partition="main", time="60", cpus_per_task=1, poll_s=0.5), "loopback")
    executor.submit(jobs, "first-0")
    wait_for(lambda: len(list(there.folder.glob("runs/*/attempts/*/program.json"))) == 2)
    (one, other) = (task.job for task in queued(there) or [])
    subprocess.run(["scancel", "--signal=USR1", one], check=True)
    subprocess.run(["scancel", other], check=True)
    wait_for(lambda: {t.state for t in queued(there) or []} & {"CANCELLED"} and requeued(one))
    outcome = execute_all(jobs, there, SlurmExecutor(there, executor.cluster, "loopback"), listener=lambda event: None)
    assert set(outcome.status.values()) == {"finished"}
    assert len(list((there.folder / "slurm").glob("*.json"))) == 2, "what was queued already was submitted again"
    hashes = [{r.run_id: (r.final_parameters_hash, r.curve) for r in store} for store in (here, there)]
    assert hashes[0] == hashes[1]
    assert all(len(record.attempts) == 2 for record in there)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_on_two_nodes_goes_on_after_a_signal_with_the_same_bits(
    loopback: ModuleType, make_job: Callable[..., Job], corpus: Corpus, tmp_path: Path
) -> None:
    """A rank on each node, through torchrun; both write one checkpoint, and the job goes back into the queue once."""
    job = two_ranks(corpus)
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    for store in (here, there):
        store.create()
    execute_all([job], here, LocalExecutor(here, 1), listener=lambda event: None)
    cluster = Cluster(
        partition="main",
        time="60",
        cpus_per_task=1,
        ranks_per_node=1,
        poll_s=0.5,
        setup=("export MASTER_ADDR=127.0.0.1",),
    )
    executor = SlurmExecutor(there, cluster, "loopback")
    executor.submit([job], "first-0")
    (task,) = wait_for(lambda: queued(there))
    wait_for(lambda: trains(there, job))
    nodes = ["scontrol", "-o", "show", "job", task.job]
    assert "NumNodes=2" in subprocess.run(nodes, capture_output=True, text=True, check=True).stdout
    subprocess.run(["scancel", "--signal=USR1", task.job], check=True)
    wait_for(lambda: requeued(task.job))
    assert list(there.folder.glob("runs/*/attempts/*/step-*/tensors-00001.safetensors")), "a file a rank"
    outcome = execute_all([job], there, SlurmExecutor(there, cluster, "loopback"), listener=lambda event: None)
    assert outcome.status == {job.run_id: "finished"}
    one, other = here.read(job.run_id), there.read(job.run_id)
    assert one is not None
    assert other is not None
    assert (one.final_parameters_hash, one.curve) == (other.final_parameters_hash, other.curve)
    assert len(other.attempts) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_before_its_time_limit_a_run_checkpoints_and_queues_again_by_itself(
    loopback: ModuleType, make_job: Callable[..., Job], tmp_path: Path
) -> None:
    """Slurm itself sends the signal, nobody watches, and the job that comes back goes on from the checkpoint."""
    job, store = make_job(n_steps=100_000), Store(tmp_path / "study")
    store.create()
    cluster = Cluster(partition="main", time="2", cpus_per_task=1, poll_s=0.5, signal_s=60)
    SlurmExecutor(store, cluster, "loopback").submit([job], "first-0")
    (task,) = wait_for(lambda: queued(store))
    try:
        wait_for(lambda: requeued(task.job), 400)
        (first, *_) = sorted(store.attempts_folder(job.run_id).iterdir())
        said = standing(first)
        assert said is not None
        assert said.phase == "stopped"
        (step,) = {int(path.name.rpartition("-")[2]) for path in sorted(first.glob("step-*"))[-1:]}
        wait_for(lambda: (now := newest(store.attempts_folder(job.run_id), "")) and now != first and standing(now))
        wait_for(lambda: (now := standing(newest(store.attempts_folder(job.run_id), ""))) and now.step >= step)
    finally:
        subprocess.run(["scancel", task.job], check=True)


def two_ranks(corpus: Corpus) -> Job:
    small = on_ranks(preset("nano"), Ranks(pipeline=2))
    trainer = replace(small.trainer, batch_size=8, micro_batch_size=2, branches=())
    small = replace(small, trainer=trainer)
    variant = Variant.full(small) | {"distill": "raw", "fp8": "bf16"}
    run = variant.resolve(small).for_machine(this_machine()).run(corpus_hash=corpus.hash, seed=0, n_steps=120)
    return Job(run=run, run_id=run_id(run), variant=variant.levels, corpus=corpus)


def trains(store: Store, job: Job) -> bool:
    attempt = newest(store.attempts_folder(job.run_id), "")
    said = standing(attempt) if attempt else None
    return said is not None and said.loss is not None


def requeued(job: str) -> bool:
    command = ["scontrol", "-o", "show", "job", job]
    return "Restarts=1" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def wait_for(holds: Callable[[], Any], seconds: float = 300.0) -> Any:
    until = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < until
        time.sleep(0.3)
    return found
