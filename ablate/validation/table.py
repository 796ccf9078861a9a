"""The coverage table: every check that is run before a release, with its share of the simulated studies.

No check is tuned: designs and estimators are those that studies and tables of runs go through.
"""

from collections.abc import Callable

import numpy as np

from ablate.validation import designs, gains, rules
from ablate.validation.check import Check
from ablate.validation.recovery import check_recovery

FULL_SIMULATIONS = 20_000

# Checks that call the estimators once or more for every study take a share of the studies.
CHECKS: dict[Callable[[np.random.Generator, int], list[Check]], float] = {
    designs.check_lattice: 1.0,
    designs.check_optimal: 1.0,
    designs.check_blocks: 1.0,
    designs.check_placebo: 1.0,
    gains.check_compute_gain: 1.0,
    gains.check_learning_rate: 0.25,
    rules.check_peeking: 0.25,
    rules.check_equivalence: 1.0,
    designs.check_planner: 1.0,
    check_recovery: 0.05,
    gains.check_scale: 0.15,
}
