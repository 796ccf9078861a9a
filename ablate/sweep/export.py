"""What a finished run left for other programs: its weights as a folder, its timeline as a trace."""

from __future__ import annotations

import json
from pathlib import Path

from ablate.components.codec import decode_run
from ablate.files import replace_file
from ablate.runs.store import Store
from ablate.runs.timelines import read_timeline
from ablate.schedules.timeline import chrome_trace
from ablate.spec.decoding import run_id
from ablate.sweep.folder import check_writable


def find_run(path: Path) -> tuple[Store, str]:
    """The study and the id of a run that is named by its folder, its record, or its study and id (DIR/ID)."""
    for folder, name in (
        (path.parent.parent, path.name),  # results/x/runs/ID
        (path.parent.parent, path.stem),  # results/x/records/ID.json
        (path.parent, path.name),  # results/x/ID
    ):
        store = Store(folder)
        if (store.records / f"{name}.json").exists():
            return store, name
    raise ValueError(f"{path} is no finished run; name a run's folder, as in results/STUDY/runs/ID")


def export_run(path: Path, out: Path | None) -> tuple[Path, list[str]]:
    """Export to `out` (default: `hf` in the run's folder). Returns the folder and what could not be taken along."""
    store, name = find_run(path)
    weights = store.run_folder(name) / "weights"
    if not weights.exists():
        raise ValueError(f"run {name} kept no weights (a diverged run has none)")
    target = out or store.run_folder(name) / "hf"
    check_writable(target)
    from ablate.export import export_hf
    from ablate.model.weights import load_state, read_weights

    found = read_weights(weights)
    run = decode_run(found.manifest.run)
    if run_id(run) != name:
        raise ValueError(
            f"{weights} holds the weights of another run ({run_id(run)}); take away the folder {name} and its record, "
            "and the study's command makes the run anew"
        )
    other = store.tokenizer_of(run.corpus_hash)
    tokenizer = other if other.exists() else store.tokenizer_file
    notes = export_hf(run.model, load_state(found), tokenizer, target, run.trainer.sequence_length)
    return target, notes


def export_trace(path: Path, out: Path | None) -> Path:
    """Write what a run's ranks did, for Perfetto or chrome://tracing, to `out` (default: trace.json in its folder)."""
    store, name = find_run(path)
    timeline = store.timeline_file(name)
    if not timeline.exists():
        raise ValueError(f"run {name} has no timeline; runs on ranks have one where the study is given --timeline")
    if out is not None and out.is_dir():
        raise ValueError(f"{out} is a folder; a trace is one file: give its name with --out")
    target = out or store.run_folder(name) / "trace.json"
    check_writable(target.parent)
    replace_file(target, json.dumps(chrome_trace(read_timeline(timeline))) + "\n", "the trace")
    return target
