"""The stages of `benchmarks/gpu.sh`: each fits one call on a borrowed machine, and nothing that fails stops the rest.

    python benchmarks/gpu_stages.py STAGE [--smoke] [--preset NAME]

    correctness            every kernel but attention's against float64, by pytest, a case at a time
    attention-correctness  the same of attention, whose kernels take longest to compile
    fp8-attention          operations of FP8 and attention against their libraries, once their numbers are right
    moe-loss-norm          operations of experts, of the head with its loss, and of norms
    step                   training steps of a preset, every component on and off
    tune                   candidates of every kernel; a table of this device's own
    all                    all of these but tune, one after another

Results go to OUT (default reports/<device>): <stage>.md and a line of JSON a case, <group>.json and .md, measured.json,
and <stage>.log with everything that was printed. Each is written as its case ends; what time cuts off is listed.
Exit code 1 if anything failed. --smoke: every path that a processor can go, at the smallest shapes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STAGE_S = 480  # of a stage, with which it fits a call of ten minutes that also starts the machine's Python and compiles
MOST_FILES = 8
N_WORKERS = 12  # processes of pytest, and as many compilers at a time
CASE_S = 150  # of one test: a kernel that waits for itself would wait for ever
SLACK_S = 20  # between the moment when nothing new is begun and the end
MOST_LOST = 6  # times that a group is gone on with after it lost the device
NEEDS = ("torch", "triton", "pydantic", "typer")

# Of tests/kernels: what runs on no device, and attention's.
WITHOUT_DEVICE = ("ahead_of_time", "compiled", "configurations", "interpreter", "operands")
ATTENTION = ("mla_attention", "mla_assembly", "mla_decode")
SMOKE_TESTS = {"correctness": ("rms_norm",), "attention-correctness": ("mla_assembly",)}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one call does: tests of some files, or groups of `bench`, each with its seconds."""

    tests: tuple[str, ...] = ()
    groups: tuple[tuple[str, int], ...] = ()
    compile_s: int = 0  # of compiling beforehand what will be timed, all groups side by side
    tune: bool = False

    @property
    def limit_s(self) -> int:
        """The most that it takes."""
        return self.compile_s + sum(seconds for _, seconds in self.groups) + (STAGE_S - SLACK_S if self.tests else 0)

    def files(self, name: str) -> list[str]:
        """What it leaves in OUT."""
        found = [f"{name}.log", *(f"{group}.{kind}" for group, _ in self.groups for kind in ("json", "md"))]
        return (
            found + (["measured.json"] if self.tune else []) + ([f"{name}.md", f"{name}.jsonl"] if self.tests else [])
        )


def kernel_tests() -> tuple[str, ...]:
    """Names of the files of tests/kernels whose tests run on the device, attention's left out."""
    names = (path.stem.removeprefix("test_") for path in sorted((ROOT / "tests" / "kernels").glob("test_*.py")))
    return tuple(name for name in names if name not in (*WITHOUT_DEVICE, *ATTENTION))


STAGES = {
    "correctness": Stage(tests=kernel_tests()),
    "attention-correctness": Stage(tests=ATTENTION),
    "fp8-attention": Stage(groups=(("fp8", 170), ("attention", 190)), compile_s=90),
    "moe-loss-norm": Stage(groups=(("moe", 190), ("loss", 90), ("norm", 90)), compile_s=90),
    "step": Stage(groups=(("step", 450),)),
    "tune": Stage(groups=((os.environ.get("TUNE_GROUP", "kernels"), 460),), tune=True),
}
ALL = [name for name in STAGES if name != "tune"]


class Runner:
    """Runs commands of one stage, with everything that they print in its log, and collects what went wrong."""

    def __init__(self, name: str, out: Path, *, smoke: bool, preset: str) -> None:
        self.name, self.stage, self.out, self.smoke, self.preset = name, STAGES[name], out, smoke, preset
        self.faults: list[str] = []
        self.log = out / f"{name}.log"
        self.log.write_text("", encoding="utf-8")

    def run(self) -> list[str]:
        """Do the stage; what went wrong, in sentences."""
        if self.stage.tests:
            self._test()
        if self.stage.compile_s and not self.smoke:
            self._compile()
        for group, seconds in self.stage.groups:
            self._bench("norm" if self.smoke and self.stage.tune else group, seconds)
        return self.faults

    def _call(self, command: list[str], limit_s: float, **environment: str) -> int:
        """The exit code of a command; 124 where its time was over. It is interrupted first, and killed 10 s later."""
        with self.log.open("a", encoding="utf-8") as log:
            print(f"$ {' '.join(command)}", file=log, flush=True)
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **environment}
            )
            try:
                return process.wait(max(1.0, limit_s))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            return 124

    def _test(self) -> None:
        names = SMOKE_TESTS[self.name] if self.smoke else self.stage.tests
        cases = self.out / f"{self.name}.jsonl"
        cases.write_text("", encoding="utf-8")
        # The project's own configuration is left out, as it wants plugins that may not be installed.
        command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", ".", "-p", "benchmarks.case_log"]
        command += ["-p", "no:cacheprovider", "-q", "-m", "not slow", "-W", "error", "--tb", "short"]
        command += ["-W", "ignore::pytest.PytestUnknownMarkWarning", *_plugins(self.smoke)]
        code = self._call(
            [*command, *(f"tests/kernels/test_{name}.py" for name in names)], STAGE_S - SLACK_S, CASES=str(cases)
        )
        found = [json.loads(line) for line in cases.read_text(encoding="utf-8").splitlines()]
        (self.out / f"{self.name}.md").write_text(cases_as_markdown(self.name, found, code), encoding="utf-8")
        counted = Counter(case["outcome"] for case in found)
        print(
            f"{self.name}: {', '.join(f'{n} {outcome}' for outcome, n in sorted(counted.items())) or 'no case ended'}"
        )
        for case in found:
            if case["outcome"] == "failed":
                self.faults.append(f"{case['case']}: {case['why']}")
        if code and not self.faults:
            self.faults.append(f"pytest ended with {code} (124: its time was over); {self.log} has what it said")

    def _compile(self) -> None:
        """Compiles what will be timed; the figures are thrown away."""
        commands = [
            [sys.executable, "cli.py", "bench", group, "--smoke", "--limit", str(self.stage.compile_s - SLACK_S)]
            for group, _ in self.stage.groups
        ]
        running = [
            subprocess.Popen(c, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for c in commands
        ]
        ends = time.monotonic() + self.stage.compile_s
        for process in running:
            try:
                process.wait(max(0.1, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _bench(self, group: str, limit_s: int) -> None:
        """A group of `bench`; after it lost the device it goes on in a new process, without what it was lost to."""
        ends, n_lost = time.monotonic() + limit_s, 0
        path = self.out / f"{group}.json"
        path.unlink(missing_ok=True)
        while True:
            left = ends - time.monotonic()
            command = [sys.executable, "cli.py", "bench", group, "--out", str(self.out), "--resume"]
            command += ["--limit", str(max(1, round(left - SLACK_S))), *(["--smoke"] if self.smoke else [])]
            command += ["--tune"] if self.stage.tune else []
            command += ["--preset", self.preset] if self.preset and group == "step" else []
            code = self._call(command, left)
            document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            lost = len(document.get("lost", []))
            if not (n_lost < lost <= MOST_LOST) or time.monotonic() > ends - 2 * SLACK_S:
                break
            n_lost = lost
        self.faults += [f"{group}: {fault}" for fault in document.get("faults", [])]
        if code and not document.get("faults"):
            said = f"bench {group} ended with {code} (124: its time was over)"
            self.faults.append(f"{said}; {self.log} has what it said, and OUT what was measured")
        measured = sum("seconds" in row for row in _rows(document))
        skipped = len(document.get("skipped", []))
        print(f"{group}: {measured} measured, {skipped} left out for want of time, in {document.get('seconds', 0)} s")


def _rows(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for operation in document.get("operations", []):
        yield from operation["backends"]
    yield from document.get("steps", [])


def _plugins(smoke: bool) -> list[str]:
    """Options for plugins that are installed: workers, and an end for a case that does not."""
    from importlib.util import find_spec

    workers = ["-n", "1" if smoke else str(N_WORKERS), "--max-worker-restart", "64", "--dist", "worksteal"]
    patience = ["--timeout", str(CASE_S), "--timeout-method", "thread"]
    return [*(workers if find_spec("xdist") else []), *(patience if find_spec("pytest_timeout") else [])]


def cases_as_markdown(name: str, cases: list[dict[str, Any]], code: int) -> str:
    """A table of files, then every case that did not pass, with the reason."""
    lines = [f"# {name}: kernels against float64", "", f"pytest ended with {code}.", ""]
    lines += ["| file | passed | failed | skipped | seconds |", "|---|---|---|---|---|"]
    for file in sorted({case["case"].partition("::")[0] for case in cases}):
        own = [case for case in cases if case["case"].startswith(file)]
        n = Counter(case["outcome"] for case in own)
        seconds = sum(case["seconds"] for case in own)
        lines.append(f"| {file} | {n['passed']} | {n['failed']} | {n['skipped']} | {seconds:.0f} |")
    others = [f"- {c['outcome']}: {c['case']}: {c['why']}" for c in cases if c["outcome"] != "passed"]
    return "\n".join([*lines, *(["", "## Not passed", "", *others] if others else [])]) + "\n"


def missing(smoke: bool) -> str:
    """Why nothing can be run here, in one sentence; "" if it can."""
    from importlib.util import find_spec

    absent = [name for name in NEEDS if find_spec(name) is None]
    if absent:
        return f"{sys.executable} has no {', '.join(absent)}; fetch what can be with: benchmarks/gpu.sh wheels"
    if smoke:
        return ""
    import torch

    if not torch.cuda.is_available():
        return f"{sys.executable} sees no CUDA device; run this on a machine with a GPU, or with --smoke"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "all"])
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--preset", default="", help="Sizes of the stage step.")
    arguments = parser.parse_args()
    if arguments.smoke:
        os.environ |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    if obstacle := missing(arguments.smoke):
        print(f"error: {obstacle}", file=sys.stderr)
        return 2
    from ablate.spec.machine import this_machine

    out = Path(os.environ.get("OUT") or ROOT / "reports" / this_machine().slug).absolute()
    out.mkdir(parents=True, exist_ok=True)
    faults = []
    for name in ALL if arguments.stage == "all" else [arguments.stage]:
        start = time.monotonic()
        print(f"== {name}", flush=True)
        faults += Runner(name, out, smoke=arguments.smoke, preset=arguments.preset).run()
        print(f"   {time.monotonic() - start:.0f} s", flush=True)
    for fault in faults:
        print(f"fault: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
