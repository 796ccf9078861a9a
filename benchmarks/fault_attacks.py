"""Attacks by files: what would run something when read, names that lead elsewhere, and a look at the source."""

from __future__ import annotations

import ast
import gzip
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fault_ground import Try
from forked import spawn

import ablate
from ablate.files import MANIFEST, commit_folder, read_sealed, sealed
from ablate.model.weights import TENSORS
from ablate.runs.executors import task
from ablate.training.checkpoint import STATE

Payload = Callable[[str], bytes]  # the path of the canary -> a file that makes it when something in it is run


class _Touch:
    """What pickle makes a call of."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (os.system, (f"touch '{self.canary}'",))


class _Executed(_Touch):
    def __reduce__(self) -> Any:
        return (exec, (f"open({self.canary!r}, 'w').close()",))


def _pickled(protocol: int, kind: type = _Touch) -> Payload:
    return lambda canary: pickle.dumps({"state_dict": kind(canary)}, protocol)


def _torch_file(kind: type = _Touch, *, zipped: bool = True) -> Payload:
    def make(canary: str) -> bytes:
        file = io.BytesIO()
        torch.save({"state_dict": kind(canary)}, file, _use_new_zipfile_serialization=zipped)
        return file.getvalue()

    return make


def _in_zip(inner: Payload, *names: str) -> Payload:
    def make(canary: str) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name in names:
                archive.writestr(name, inner(canary))
        return file.getvalue()

    return make


def _object_array(canary: str) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([_Touch(canary)], dtype=object), allow_pickle=True)
    return file.getvalue()


def _object_arrays(canary: str) -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.array([_Touch(canary)], dtype=object))
    return file.getvalue()


def _with_tensor_header(inner: Payload) -> Payload:
    """A safetensors file whose one tensor's bytes are the payload."""

    def make(canary: str) -> bytes:
        data = inner(canary)
        header = json.dumps({"__metadata__": {"format": "pt"}, "w": {"dtype": "U8", "shape": [len(data)],
                                                                     "data_offsets": [0, len(data)]}})  # fmt: skip
        return struct.pack("<Q", len(header)) + header.encode() + data

    return make


def _text(form: str) -> Payload:
    return lambda canary: form.replace("CANARY", canary).encode()


PAYLOADS: tuple[tuple[str, Payload], ...] = (
    *((f"pickle, protocol {n}", _pickled(n)) for n in (0, 1, 2, 3, 4, 5)),
    ("pickle that calls exec", _pickled(5, _Executed)),
    ("torch.save, zip", _torch_file()),
    ("torch.save that calls exec", _torch_file(_Executed)),
    ("torch.save, old form", _torch_file(zipped=False)),
    ("pickle in a zip", _in_zip(_pickled(2), "archive/data.pkl", "data.pkl")),
    ("torch.save in a zip", _in_zip(_torch_file(), "model.pt")),
    ("a zip in a zip in a zip", _in_zip(_in_zip(_torch_file(), "archive/data.pkl"), "archive/data.pkl", "version")),
    ("a zip with names that lead out", _in_zip(_pickled(2), "../../canary.pkl", "/tmp/canary.pkl")),
    ("pickle, gzip", lambda canary: gzip.compress(pickle.dumps(_Touch(canary)))),
    ("numpy objects", _object_array),
    ("numpy objects, several", _object_arrays),
    ("safetensors around a pickle", _with_tensor_header(_pickled(4))),
    ("safetensors around a torch file", _with_tensor_header(_torch_file())),
    ("YAML object", _text('!!python/object/apply:os.system ["touch CANARY"]\n')),
    ("YAML new", _text('question: !!python/object/new:os.system ["touch CANARY"]\n')),
    ("YAML in a table", _text("loss,mtp\n!!python/object/apply:os.system [touch CANARY],on\n1,off\n")),
    ("jsonpickle", _text('{"py/reduce": [{"py/function": "os.system"}, {"py/tuple": ["touch CANARY"]}]}')),
    ("Python", _text('__import__("os").system("touch CANARY")\n')),
    ("a spreadsheet's formula", _text('loss,mtp\n"=cmd|\'/c touch CANARY\'!A1",on\n"=SYSTEM(""touch CANARY"")",off\n')),
)
TABLES = (".csv", ".json", ".jsonl", ".parquet", ".db", ".pkl", ".xlsx", ".npy", ".csv.gz")


def executed(this: Try) -> None:
    """One payload in every place where a file is read, its manifest in order: nothing is run, and each is told."""
    _, payload = PAYLOADS[this.index % len(PAYLOADS)]
    canary = this.place / "canary"
    data, this.cases = payload(str(canary)), 0
    for place in (_as_table, _as_inputs, _as_weights, _as_checkpoint, _as_documents, _as_corpus):
        this.cases += place(this, data)
        shutil.rmtree(this.out, ignore_errors=True)
    if canary.exists():
        this.fail("wrong", "the canary is there: something was run")
    if Path("/tmp/canary.pkl").exists():
        this.fail("wrong", "an archive was unpacked to where its names lead")


def _as_table(this: Try, data: bytes) -> int:
    for suffix in TABLES:
        path = this.place / f"table{suffix}"
        path.write_bytes(data)
        this.call("attribute", str(path))
    return len(TABLES)


def _as_inputs(this: Try, data: bytes) -> int:
    study, preset, text = this.place / "study.toml", this.place / "preset.toml", this.place / "text.jsonl"
    for path in (study, preset, text):
        path.write_bytes(data)
    this.call("sweep", str(study), "--dry-run", "--out", str(this.out))
    this.call("account", "--preset", str(preset))
    this.call("data", "inspect", str(text))
    return 3


def _resealed(folder: Path, name: str, data: bytes) -> None:
    """A committed folder with another content of one file, and a manifest that says so."""
    manifest = {key: value for key, value in (read_sealed(folder / MANIFEST) or {}).items() if key != "files"}
    aside = folder.with_name(f"aside-{folder.name}")
    os.rename(folder, aside)
    fresh = folder.with_name(f"fresh-{folder.name}")
    fresh.mkdir()
    for path in aside.iterdir():
        if path.name not in (MANIFEST, name):
            shutil.copy(path, fresh)
    (fresh / name).write_bytes(data)
    commit_folder(fresh, folder, manifest)
    shutil.rmtree(aside)


def _as_weights(this: Try, data: bytes) -> int:
    shutil.copytree(this.ground.whole, this.out)
    run = min((this.out / "runs").iterdir())
    _resealed(run / "weights", TENSORS, data)
    done = this.call("export", str(run), "--out", str(this.place / "export"))
    if done.code != 2:
        this.fail("unclear", f"exit code {done.code} for weights that are none\n{done.text}")
    return 1


def _as_checkpoint(this: Try, data: bytes) -> int:
    """Gone on from, or not: the study ends as the undisturbed one."""
    shutil.copytree(this.ground.stopped, this.out)
    name = this.draw.choice([TENSORS, STATE])
    folders = sorted(this.out.glob("runs/*/attempts/*/step-*"))
    for folder in folders:
        _resealed(folder, name, data)
    this.finish()
    return len(folders)


def _as_documents(this: Try, data: bytes) -> int:
    names = ("plan.json", "tokenizer.json", "records")
    for name in names:
        shutil.rmtree(this.out, ignore_errors=True)
        shutil.copytree(this.ground.whole, this.out)
        path = min((this.out / name).iterdir()) if name == "records" else this.out / name
        path.unlink()
        path.write_bytes(data)
        if name == "tokenizer.json":
            this.call("export", str(min((this.out / "runs").iterdir())), "--out", str(this.place / "export2"))
        else:
            this.expect(this.call("report", str(this.out)), path)
    return len(names)


def _as_corpus(this: Try, data: bytes) -> int:
    """In a cache, in place of the array of token lengths, with a manifest that fits."""
    cache = this.place / "cache"
    shutil.copytree(this.ground.cache, cache)
    folder = next(path.parent for path in cache.rglob(MANIFEST) if (path.parent / "train.bin").exists())
    _resealed(folder, "token_bytes.npy", data)
    this.call("data", "inspect", str(this.ground.text), cache=cache)
    command = this.begin("corpus.log", cache=cache)
    done = this.end(command)
    if done.code == 0:
        this.fail("wrong", f"a corpus whose token lengths are none was trained on\n{done.text}")
    shutil.rmtree(cache)
    return 2


NAMES = ("../../../outside/x", "/outside/x", "..", ".", "a/b", "../records/x", "\0x", "x" * 300, "~/x", "..\\..\\x")


def led_elsewhere(this: Try) -> None:
    """A name in a study's own files, sealed as they should be, that leads out: nothing is written there."""
    ways = (_in_plan, _in_submission, _in_options)
    way, name = ways[this.index % len(ways)], NAMES[this.index // len(ways) % len(NAMES)]
    outside = this.place / "outside"
    outside.mkdir()
    (outside / "x").mkdir()
    name = name.replace("/outside", str(outside)) if name.startswith("/") else name
    shutil.copytree(this.ground.whole, this.out)
    before = set(_below(this.place))
    way(this, name)
    made = set(_below(this.place)) - before
    # What the way itself has put there, and what a command says.
    allowed = (this.out / "slurm", this.out / "report", this.place / "call.log", this.place / "task.log")
    for path in sorted(made):
        if not str(path).startswith(tuple(map(str, allowed))):
            this.fail("wrong", f"the name {name!r} led to {path}")


def _below(place: Path) -> Iterator[Path]:
    yield from place.rglob("*")


def _in_plan(this: Try, name: str) -> None:
    path = this.out / "plan.json"
    plan = {key: value for key, value in json.loads(path.read_text()).items() if key != "sha256"}
    plan["variants"][0]["run_ids"][0] = name
    path.unlink()
    path.write_text(sealed(plan))
    for command in (["report", str(this.out)], ["sweep", "status", str(this.out)], ["sweep", "cancel", str(this.out)]):
        this.expect(this.call(*command), "name")


def _in_submission(this: Try, name: str) -> None:
    """What a task of a cluster's array reads first."""
    (this.out / "slurm").mkdir()
    path = this.out / "slurm" / "dsv3-0123456789ab.json"
    path.write_text(sealed({"name": path.stem, "key": "k-0", "cluster": "c", "runs": [name]}))
    log = this.place / "task.log"

    def act() -> int:
        os.environ |= {"SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_NUM_NODES": "1"}
        try:
            return task.main([str(path)])
        except ValueError as error:
            print(f"error: {error}", flush=True)
            return 2

    this.expect(this.end(spawn(act, log=log, cache=this.ground.cache)), "name")


def _in_options(this: Try, name: str) -> None:
    study = this.place.parent / f"{this.place.name}.toml"
    shutil.copy(this.ground.whole / "study.toml", study)
    place = ["--out", str(this.out), "--executor", "slurm", "--cluster", name.replace("\0", "")]
    this.expect(this.call("sweep", str(study), *place))
    study.unlink()


FORBIDDEN = {"os.system", "os.popen", "eval", "exec", "pickle.load", "pickle.loads", "marshal.load", "marshal.loads",
             "yaml.load", "yaml.unsafe_load", "yaml.full_load", "dill.load", "joblib.load", "shelve.open",
             "tarfile.open", "shutil.unpack_archive", "pandas.read_pickle", "pd.read_pickle"}  # fmt: skip


def forbidden_calls(this: Try) -> None:
    """The program's source has no call that runs what it reads, and starts no shell."""
    files = sorted(Path(ablate.__file__).parent.rglob("*.py"))
    this.cases = len(files)
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (wrong := _forbidden(node)):
                this.fail("wrong", f"{path.name}:{node.lineno}: {wrong}")


def _forbidden(call: ast.Call) -> str:
    name, given = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
    if name in FORBIDDEN:
        return name
    if given.get("shell", "False") != "False":
        return f"{name} with a shell"
    if name == "torch.load" and given.get("weights_only") != "True":
        return "torch.load without weights_only=True"
    if name.endswith("np.load") and given.get("allow_pickle", "False") != "False":
        return "np.load with objects"
    return ""


KINDS: dict[str, Callable[[Try], None]] = {
    "S1 files that would run something when read": executed,
    "S5 names that lead out of the folder": led_elsewhere,
    "S6 calls that run what they read, in the source": forbidden_calls,
}
