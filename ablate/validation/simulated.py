"""A simulated trainer with known effects: what the statistics are proven on before they see a real run.

A truth is one number per feasible variant (a game), a loss curve, a learning-rate optimum per variant, FLOPs and rates.
Training a variant with a seed gives decayed losses that depend on variant and seed only, as a real trainer's would: the
same seed shifts every variant alike (seed_sd) and tilts each component's effect (slope_sd), which is what pairing by
seed can and cannot remove.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ablate.attribution.gain.compute_gain import DecayedCurve
from ablate.attribution.gain.learning_rate import levels
from ablate.attribution.lattice import Lattice

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
TruthKind = Literal["two-way", "three-way", "saturating"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """Standard deviations, in nats unless said otherwise."""

    seed_sd: float = 0.0  # common to every variant of a seed
    slope_sd: float = 0.0  # tau: each component's effect varies by this from seed to seed
    run_sd: float = 0.005  # of a run's trunk, common to its branches
    branch_sd: float = 0.0  # of each decayed branch
    rate_sd: float = 0.0  # of ln(FLOP/s) from one process start to the next


@dataclass(frozen=True, kw_only=True, slots=True)
class LossCurve:
    """loss = irreducible + reducible * (tokens * exp(gain) / reference_tokens) ** -exponent, nats per token."""

    # Chinchilla as refitted by Besiroglu et al. (arXiv:2404.10102), at 100 M parameters and 20 tokens for each.
    irreducible: float = 2.613
    reducible: float = 0.826
    exponent: float = 0.3658
    reference_tokens: float = 2e9

    def loss(self, log_tokens: FloatArray | float, gain: FloatArray | float = 0.0) -> FloatArray:
        """Decayed loss; `gain` is the log of the factor by which a variant needs fewer tokens."""
        x = np.asarray(log_tokens) + gain - np.log(self.reference_tokens)
        return np.asarray(self.irreducible + self.reducible * np.exp(-self.exponent * x))

    def slope(self, log_tokens: float, gain: float = 0.0) -> float:
        """Nats per e-fold of tokens."""
        return float(self.exponent * (self.loss(log_tokens, gain) - self.irreducible))


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedTrainer:
    """Truth for every feasible variant, in the order of `Lattice.cells`, and a trainer that shows it through noise."""

    lattice: Lattice
    gain: FloatArray  # (variants,) true ln(token gain) over the baseline
    flops_per_token: FloatArray  # (variants,)
    flops_per_s: FloatArray  # (variants,)
    log2_best_lr: FloatArray  # (variants,) octaves from the shared centre
    lr_curvature: FloatArray  # (variants,) nats per octave^2
    curve: LossCurve
    noise: Noise
    entropy: int  # of every random number this trainer draws

    def train(
        self, variant: int, *, seed: int, tokens: tuple[float, ...], log2_lr: float | None = None
    ) -> DecayedCurve:
        """One run: a trunk and one decayed branch at each token count. log2_lr None is the variant's true optimum."""
        of_seed = np.random.default_rng((self.entropy, seed))
        shared = of_seed.normal(0.0, self.noise.seed_sd)
        tilts = of_seed.normal(0.0, self.noise.slope_sd, len(self.lattice.components))
        tilt = float(levels(self.lattice, [self.lattice.cells[variant]])[0] @ tilts)
        # Keyed by the learning rate too: running the same seed at another rate is another run, not the same noise.
        rate_key = 0 if log2_lr is None else 1 + round((log2_lr + 64.0) * 1e6)
        of_run = np.random.default_rng((self.entropy, seed, variant + 1, rate_key))
        noise = shared + tilt + of_run.normal(0.0, self.noise.run_sd)
        branches = of_run.normal(0.0, self.noise.branch_sd, len(tokens))
        miss = 0.0 if log2_lr is None else log2_lr - self.log2_best_lr[variant]
        excess = self.lr_curvature[variant] * miss**2
        loss = self.curve.loss(np.log(np.array(tokens)), self.gain[variant]) + excess + noise + branches
        return DecayedCurve(seed=seed, tokens=tokens, loss=tuple(float(v) for v in loss))

    def rates(self, variant: int, *, restarts: int) -> FloatArray:
        """ln(FLOP/s) of each process restart, (restarts,)."""
        rng = np.random.default_rng((self.entropy, variant + 1, 2**31))
        return np.log(self.flops_per_s[variant]) + rng.normal(0.0, self.noise.rate_sd, restarts)

    def true_channels(self) -> FloatArray:
        """True log-cost gain of every variant over the baseline in every channel, (variants, 3)."""
        flops, rate = np.log(self.flops_per_token), np.log(self.flops_per_s)
        return np.column_stack([self.gain, flops[0] - flops, rate - rate[0]])


def random_game(lattice: Lattice, kind: TruthKind, rng: np.random.Generator, *, largest: float = 0.1) -> FloatArray:
    """A random truth, one value per variant, 0 at the baseline.

    Main effects are log-uniform over [largest / 50, largest];
    35 % of pairs interact and, for `three-way`, 20 % of triples, with sizes of 0.3 of the geometric mean of their
    members; `saturating` bends the sum of main effects so that first-in values add up to about 1.2 of the total.
    """
    if kind not in get_args(TruthKind):
        raise ValueError(f"unknown kind of truth {kind!r}; choose one of {', '.join(get_args(TruthKind))}")
    on = levels(lattice)
    n = on.shape[1]
    mains = largest * np.exp(rng.uniform(np.log(1 / 50), 0.0, n))
    additive = on @ mains
    if kind == "saturating":
        ceiling = mains.sum() / 0.6
        return np.asarray(ceiling * (1.0 - np.exp(-additive / ceiling)))
    values = additive
    pairs = [(i, j) for i in range(n) for j in range(i)]
    triples = [(i, j, k) for i, j in pairs for k in range(j)] if kind == "three-way" else []
    for members, share in [(p, 0.35) for p in pairs] + [(t, 0.20) for t in triples]:
        present, draw = rng.random() < share, rng.normal()
        if present:
            size = 0.3 * np.exp(np.log(mains[list(members)]).mean())
            values = values + size * draw * on[:, list(members)].prod(axis=1)
    return np.asarray(values)


def run_noise(
    run_levels: FloatArray, seeds: IntArray, noise: Noise, rng: np.random.Generator, *, simulations: int
) -> FloatArray:
    """Noise of the runs of a design in many simulated studies at once, (simulations, runs).

    run_levels: (runs, components) of each run's variant; seeds: (runs,) which seed each run has, any integers.
    """
    _, index = np.unique(seeds, return_inverse=True)
    n_seeds, n_components = int(index.max()) + 1, run_levels.shape[1]
    total = rng.normal(0.0, noise.run_sd, (simulations, len(run_levels)))
    if noise.seed_sd > 0:
        total += rng.normal(0.0, noise.seed_sd, (simulations, n_seeds))[:, index]
    if noise.slope_sd > 0:
        tilt = rng.normal(0.0, noise.slope_sd, (simulations, n_seeds, n_components))
        total += np.einsum("src,rc->sr", tilt[:, index], run_levels, optimize=True)
    return total


def random_trainer(lattice: Lattice, kind: TruthKind, rng: np.random.Generator, *, noise: Noise) -> SimulatedTrainer:
    """A trainer with a random truth in every channel: token gains, FLOPs per token, rates, learning-rate optima.

    Learning-rate optima shift by 0.5 octave (sd) per component; the curvature is 0.012 nats per octave^2 for all.
    """
    shifts = rng.normal(0.0, 0.5, len(lattice.components))
    return SimulatedTrainer(
        lattice=lattice,
        gain=random_game(lattice, kind, rng, largest=0.25),
        flops_per_token=6e8 * np.exp(-random_game(lattice, "two-way", rng, largest=0.1)),
        flops_per_s=3e14 * np.exp(random_game(lattice, "saturating", rng, largest=0.4)),
        log2_best_lr=np.asarray(levels(lattice) @ shifts),
        lr_curvature=np.full(len(lattice.cells), 0.012),
        curve=LossCurve(),
        noise=noise,
        entropy=int(rng.integers(2**31)),
    )
