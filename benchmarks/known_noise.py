"""Takes the noise of pairs of runs out of published studies, for presets that plan seeds from it (`--precision`).

    python benchmarks/known_noise.py [reports/STUDY ...]

Writes ablate/presets/noise.json from the records of the studies given, by default of all in reports/ that compare pairs
and whose runs were made as their preset is now. To be run again after a report of one of them was published.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from ablate.attribution.study.compare import compare
from ablate.attribution.study.gains import component_gains
from ablate.files import to_json
from ablate.presets.noise import FILE, KnownNoise, circumstances
from ablate.runs.plan import read_plan
from ablate.runs.store import Store
from ablate.runs.study import read_study

ROOT = Path(__file__).parents[1]


def main() -> None:
    folders = [Path(name) for name in sys.argv[1:]] or sorted(p.parent for p in ROOT.glob("reports/*/plan.json"))
    found = [asdict(noise) for folder in folders for noise in noises(folder)]
    FILE.write_text(to_json(found), encoding="utf-8")
    print(f"{FILE}: noise of {len(found)} comparisons")


def noises(folder: Path) -> list[KnownNoise]:
    """The noise of each comparison of a study; none where the preset has changed since its runs were made."""
    store = Store(folder)
    plan, base = read_plan(store.plan_file), read_study(store.study_file).load_preset()
    records = list(store)
    here = circumstances(base)
    if plan.factors:  # its pairs differ in levels that no components name
        return []
    if any(record.spec["trainer"].get(key, here[key]) != here[key] for record in records for key in here):
        return []
    result = compare(plan, records, store.failures())
    gains = {gain.comparison.variant: gain.tokens for gain in component_gains(result)[0]}
    found = []
    for c in result.comparisons:
        if c.loss.sd is None or c.loss.df is None or not c.pairing_ok or result.noise is None:
            continue
        gain = gains.get(c.variant)
        error = gain.standard_error if gain else None
        found.append(
            KnownNoise(
                preset=plan.preset,
                components=tuple(change.component for change in c.changes),
                match=plan.match,
                budget=plan.budget,
                circumstances=here,
                origin=f"reports/{folder.name}",
                seeds=tuple(c.differences),
                pair_sd_nats=c.loss.sd,
                pair_sd_log_cost=None if error is None or gain is None else error * gain.n**0.5,
                pair_df=c.loss.df,
                run_sd_nats=result.noise.sd,
                run_df=result.noise.df,
            )
        )
    return found


if __name__ == "__main__":
    main()
