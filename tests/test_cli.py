"""The commands as a user meets them: exit codes, one line for bad input, and a whole study at nano size."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
from typer.testing import CliRunner

from ablate import cli

ROOT = Path(__file__).parents[1]
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return os.environ | {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")), "COLUMNS": "100"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "cli.py"), *arguments]


def call(environment: dict[str, str], *arguments: str, cwd: Path | None = None) -> Done:
    """A command in a process of its own."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, env=environment, cwd=cwd, check=False)


@pytest.fixture
def here(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """A command by its front door in this process, in the test's folder: no process that imports everything again.

    Whatever it raises and does not say in a sentence is raised here.
    """

    def called(*arguments: str) -> Done:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["dsv3-ablate", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return Done(arguments, int(ended.value.code or 0), said.out, said.err)

    monkeypatch.chdir(tmp_path)
    for name in ("XDG_CACHE_HOME", "COLUMNS"):
        monkeypatch.setenv(name, environment[name])
    monkeypatch.setattr("ablate.sweep.run.start_server", lambda: None)  # else it would serve this test's folder to all
    return called


BAD = {
    "misspelt component": (["run", "--disable", "mpt"], "unknown component 'mpt'; did you mean 'mtp'?"),
    "nothing to compare": (["run"], "nothing to compare"),
    "misspelt preset": (["run", "--disable", "mtp", "--preset", "nanno"], "did you mean 'nano'?"),
    "alternative of another": (["run", "--disable", "mla", "--alternative", "mla=dense"], "it has gqa, mha, mqa"),
    "inert alternative": (["run", "--disable", "mtp", "--alternative", "moe=coarse"], "has no effect"),
    "malformed alternative": (["run", "--disable", "mla", "--alternative", "mha"], "COMPONENT=NAME"),
    "both directions": (["run", "--disable", "mla", "--enable", "moe"], "give one of them"),
    "unmet prerequisite": (["account", "--preset", "nano", "--enable", "aux-free"], "aux-free is on while moe is off"),
    "budget of no step": (
        ["run", "--disable", "mtp", "--preset", "nano", "--match", "tokens", "--budget", "10", "--data", "TEXT"],
        "it must be at least one step",
    ),
    "budget that is no number": (["run", "--disable", "mtp", "--budget", "much"], "--budget is 'much'"),
    "no seconds": (["run", "--disable", "mtp", "--preset", "nano", "--match", "seconds", "--data", "TEXT"], "--budget"),
    "absent corpus": (["run", "--disable", "mtp", "--preset", "nano", "--data", "/nowhere"], "/nowhere"),
    "binary corpus": (["run", "--disable", "mtp", "--preset", "nano", "--data", "BINARY"], "binary"),
    "empty corpus": (["run", "--disable", "mtp", "--preset", "nano", "--data", "EMPTY"], "EMPTY"),
    "unwritable folder": (
        ["run", "--disable", "mtp", "--preset", "nano", "--data", "TEXT", "--out", "/dev/null/x"],
        "choose another folder with --out",
    ),
    "empty corpus's name": (["run", "--disable", "mtp", "--data", ""], "the value of --data is empty"),
    "empty folder's name": (["sweep", "ABSENT.toml", "--out="], "the value of --out is empty"),
    "empty study's name": (["sweep", ""], "an argument is empty"),
    "absent study": (["sweep", "absent.toml"], "cannot read the study absent.toml"),
    "no results": (["report", "EMPTY"], "EMPTY"),
    "no such run": (["export", "EMPTY"], "is no finished run"),
    "no such place": (["export", "nowhere"], "nowhere is no finished run"),
    "timeline of one rank": (["run", "--disable", "mtp", "--preset", "nano", "--timeline", "3"], "give --ranks too"),
    "timeline of no step": (
        ["run", "--disable", "mtp", "--preset", "nano", "--data", "TEXT", "--ranks", "data=2", "--timeline", "-1"],
        "--timeline is -1; it takes 1 to",
    ),
    "too large": (["run", "--disable", "mtp", "--preset", "v3-671b", "--data", "TEXT"], "choose a smaller --preset"),
    "impossible width": (["account", "--model", "NEGATIVE"], "dim is -8; it must be at least 1"),
    "model with a misspelt field": (["account", "--model", "MODEL"], "did you mean 'kv_lora_rank'?"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("places")
    (folder / "text.txt").write_text("\n\n".join(f"line {i} of {i * i} and {i % 7} others" for i in range(3000)))
    (folder / "binary.txt").write_bytes(bytes(range(256)) * 9)
    (folder / "empty").mkdir()
    (folder / "model.toml").write_text(
        "dim = 8\nn_layers = 1\nvocab_size = 10\nsequence_length = 4\n"
        'feed_forward = { kind = "swiglu", hidden_dim = 8 }\n'
        'attention = { kind = "mla", n_heads = 1, q_lora_rank = 0, kv_lora_rnk = 4, qk_nope_head_dim = 4, '
        "qk_rope_head_dim = 2, v_head_dim = 4 }\n"
    )
    misspelt = (folder / "model.toml").read_text()
    (folder / "negative.toml").write_text(misspelt.replace("rnk", "rank").replace("dim = 8", "dim = -8", 1))
    return {
        "NEGATIVE": str(folder / "negative.toml"),
        "TEXT": str(folder / "text.txt"),
        "BINARY": str(folder / "binary.txt"),
        "EMPTY": str(folder / "empty"),
        "MODEL": str(folder / "model.toml"),
    }


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(
    case: str, here: Callable[..., Done], places: dict[str, str], tmp_path: Path
) -> None:
    check_refusal(case, here(*words(case, places)), places, tmp_path)


# Before anything is parsed, while it is, when the text is read, and after the server of runs was started.
@pytest.mark.parametrize("case", ["empty study's name", "misspelt component", "binary corpus", "timeline of no step"])
def test_bad_input_is_one_clear_line_of_a_process(
    case: str, environment: dict[str, str], places: dict[str, str], tmp_path: Path
) -> None:
    check_refusal(case, call(environment, *words(case, places), cwd=tmp_path), places, tmp_path)


def words(case: str, places: dict[str, str]) -> list[str]:
    return [places.get(argument, argument) for argument in BAD[case][0]]


def check_refusal(case: str, done: Done, places: dict[str, str], tmp_path: Path) -> None:
    message = BAD[case][1]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1
    assert places.get(message, message) in errors[0]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "results").exists()


def test_account_gives_the_published_figures(environment: dict[str, str], here: Callable[..., Done]) -> None:
    v3 = json.loads(call(environment, "account", "--preset", "v3-671b", "--disable", "mtp", "--json").stdout)
    assert round(v3["total_parameters"] / 1e9, 1) == 671.0
    assert round(v3["activated_parameters"] / 1e9, 1) == 37.6
    assert v3["kv_cache_bytes_per_token"] == 70_272
    assert v3["training_flops_per_token"] == pytest.approx(249.8e9, rel=0.003)
    assert v3["sequence_length"] == 4096
    llama = json.loads(here("account", "--preset", "llama3-405b", "--json").stdout)
    assert llama["kv_cache_bytes_per_token"] == 516_096
    assert round(llama["total_parameters"] / 1e9, 1) == 405.9
    lite = json.loads(here("account", "--preset", "v2-lite-16b", "--json").stdout)
    assert round(lite["total_parameters"] / 1e9, 1) == 15.7
    assert lite["kv_cache_elements_per_token"] == 15_552


@pytest.fixture(scope="module")
def study(environment: dict[str, str], places: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole study, run by a process of its own, one run at a time."""
    folder = tmp_path_factory.mktemp("whole")
    done = call(environment, *asked(places), "--out", "study", "--jobs", "1", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["complete"] is True
    return folder / "study"


def asked(places: dict[str, str]) -> list[str]:
    return ["run", "--disable", "mtp", "--preset", "nano", "--data", places["TEXT"]]


def test_a_study_from_the_plan_to_the_report(
    study: Path, here: Callable[..., Done], places: dict[str, str], tmp_path: Path
) -> None:
    arguments = [*asked(places), "--out", "study"]
    planned = here(*arguments, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "4 runs" in planned.stderr
    assert not (tmp_path / "study").exists()
    shutil.copytree(study, tmp_path / "study")
    report = (tmp_path / "study" / "report.html").read_bytes()
    records = {p.name: p.read_bytes() for p in (tmp_path / "study" / "records").iterdir()}
    assert len(records) == 4

    again = here(*arguments)
    assert again.returncode == 0, again.stderr
    assert {p.name: p.read_bytes() for p in (tmp_path / "study" / "records").iterdir()} == records
    assert (tmp_path / "study" / "report.html").read_bytes() == report

    swept = here("sweep", "study/study.toml", "--out", "study")
    assert swept.returncode == 0, swept.stderr
    other = here(*arguments[:2], "mla", *arguments[3:])
    assert other.returncode == 2
    assert "holds another study" in other.stderr


def test_a_study_killed_at_any_moment_ends_with_the_same_bits(
    study: Path, environment: dict[str, str], places: dict[str, str], tmp_path: Path
) -> None:
    arguments = [*asked(places), "--seeds", "1", "--out", "killed"]
    for attempt in range(2):
        process = subprocess.Popen(
            command(*arguments, "--jobs", "2"),
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while (
            process.poll() is None and time.monotonic() < deadline and not any(_attempts(tmp_path / "killed", attempt))
        ):
            time.sleep(0.02)
        time.sleep(0.3 * attempt)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    done = call(environment, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found, whole = _hashes(tmp_path / "killed"), _hashes(study)
    assert len(found) == 2
    assert found == {name: whole[name] for name in found}, "the first seed of the whole study"


def _attempts(folder: Path, number: int) -> list[Path]:
    return list(folder.glob(f"runs/*/attempts/{number:04d}-*"))


def _hashes(folder: Path) -> dict[str, str]:
    return {p.name: json.loads(p.read_text())["final_parameters_hash"] for p in (folder / "records").iterdir()}


def test_a_study_that_was_stopped_in_any_way_goes_on_from_its_checkpoints(
    environment: dict[str, str], places: dict[str, str], tmp_path: Path
) -> None:
    arguments = [*asked(places), "--seeds", "1", "--match", "tokens", "--budget", "400k"]
    arguments += ["--out", "study", "--jobs", "2"]

    def start() -> subprocess.Popen[str]:
        known = len(list((tmp_path / "study").glob("runs/*/attempts/*/program.json")))
        process = subprocess.Popen(
            [sys.executable, "-m", "ablate", *arguments],
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        while len(list((tmp_path / "study").glob("runs/*/attempts/*/program.json"))) < known + 2:
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(1)
        return process

    politely = start()
    os.kill(politely.pid, signal.SIGUSR1)
    _, errors = politely.communicate(timeout=120)
    assert politely.returncode == 130, errors
    assert "the same command goes on from there" in errors
    kept = sorted((tmp_path / "study" / "runs").glob("*/attempts/*/step-*"))
    assert len(kept) == 2

    hanging = start()
    (one, _) = processes.workers(hanging.pid)
    os.kill(one, signal.SIGSTOP)
    os.killpg(hanging.pid, signal.SIGINT)
    time.sleep(1)
    assert hanging.poll() is None
    os.killpg(hanging.pid, signal.SIGINT)
    _, errors = hanging.communicate(timeout=30)
    assert hanging.returncode == 130, errors
    assert "Traceback" not in errors
    until = time.monotonic() + 10
    while processes.session(hanging.pid) and time.monotonic() < until:
        time.sleep(0.05)  # the server that forked the workers ends by itself, a moment later
    assert not processes.session(hanging.pid)
    assert all(path.is_dir() for path in kept)
    assert not list((tmp_path / "study" / "records").iterdir())


def test_identical_commands_at_once_all_end_well(
    environment: dict[str, str], places: dict[str, str], tmp_path: Path
) -> None:
    arguments = [*asked(places), "--seeds", "1", "--out", "study", "--jobs", "2"]
    commands = [
        subprocess.Popen(command(*arguments), cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=240)[1] for process in commands]
    assert [process.returncode for process in commands] == [0, 0], errors
    assert not any("failed" in text or "killed" in text for text in errors), errors
    study = tmp_path / "study"
    assert len(list((study / "records").iterdir())) == 2
    assert not list(study.glob("runs/*/attempts/*/failure.json"))
    assert not list(study.glob("runs/*/attempts/*/step-*"))
    assert not list(study.rglob(".*"))


def test_ctrl_c_anywhere_in_a_command_ends_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ablate.report.build", interrupted)
    done = CliRunner().invoke(cli.app, ["report", "somewhere"])
    assert done.exit_code == 130
    assert done.stderr.startswith("interrupted; what was finished is kept")
