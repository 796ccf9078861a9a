"""What the name of a column says: a seed, a state, a step, a label, a result; which direction of a metric is better.

Every list is of whole words. A name is cut at everything that is no letter and no digit, and where a capital begins.
"""

from __future__ import annotations

import re


def _listed(text: str) -> frozenset[str]:
    return frozenset(text.split())


LOWER = _listed(
    "loss nll ppl perplexity bpb bpc bits error errors err cost time latency duration runtime memory mem flops wer cer "
    "mse rmse mae fid kl regret seconds sec secs ms minutes hours bytes gib mib"
)
HIGHER = _listed(
    "accuracy acc throughput score reward return mfu speed speedup auc auroc auprc f1 bleu rouge meteor map ndcg mrr "
    "iou dice psnr ssim recall precision r2 tps qps em winrate"
)
COUNTS = _listed("flops bytes bits gib mib")  # a rate of these is a speed
RESULTS = LOWER | HIGHER | _listed("params parameters grad norm")
SEEDS = _listed("run rep reps replicate replica repeat repetition trial fold rng")
NUMBERS = _listed("number num no nr idx index i")
STATES = _listed("state status")
FINISHED = _listed("finished finish complete completed success succeeded done ok")
UNFINISHED = _listed(
    "crashed crash failed fail failure killed running pruned preempted preempting pending waiting cancelled canceled "
    "timeout error aborted stopped scheduled"
)
STEPS = _listed("step epoch iteration iter")
LABELS = _listed(
    "name group variant arm tags tag notes note label description experiment id run user host hostname created sweep "
    "version date timestamp comment"
)
SIZES = _listed("n count runs seeds n_runs n_seeds num_runs num_seeds nseeds nruns")
MEANS = _listed("mean avg average")
SPREADS = {"sd": False, "std": False, "stdev": False, "stddev": False, "se": True, "sem": True, "stderr": True}
CLOCKS = _listed("runtime duration timestamp relative number wandb")  # kept beside every run; seldom the question
SETTINGS = _listed(
    "lr learning rate wd decay dropout temperature warmup beta beta1 beta2 momentum eps epsilon alpha gamma lambda "
    "weight clip width depth dim size batch layers heads budget"
)
DECLARED = ("params_", "params.", "config.", "config/", "hparams/", "hparams.")  # what a tracker was told beforehand
BASELINES = ("none", "baseline", "base", "default", "off", "no", "control", "reference", "vanilla", "original")


def words(name: str) -> list[str]:
    """val_loss, valLoss, val/loss -> ["val", "loss"]."""
    return re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def declared(name: str) -> bool:
    """True for a column of settings, by the prefix that a tracker gives them."""
    return name.startswith(DECLARED)


def lower_is_better(metric: str) -> bool | None:
    """Whether lower is better, from whole words of the metric's name; None where they do not say, or disagree."""
    parts = words(metric)
    rate = re.search(r"(?:/|per[ _])(?:s|sec|secs|second|seconds)$", metric.lower())
    if rate:
        parts = [part for part in words(metric[: rate.start()]) if part not in COUNTS]
    elif parts and parts[-1] == "s":
        parts = [*parts[:-1], "seconds"]
    lower, higher = bool(LOWER & set(parts)), bool(HIGHER & set(parts)) or rate is not None
    return None if lower == higher else lower


def is_seed(name: str) -> bool:
    """True for seed, random_seed, trainSeed, seed_everything, run, rep, fold_idx ...; not for run_time or run_id."""
    parts = set(words(name))
    return "seed" in name.lower() or bool(SEEDS & parts and parts <= SEEDS | NUMBERS)


def is_setting(name: str) -> bool:
    """True for what a run is told: by its prefix, or by a word such as lr or batch."""
    return declared(name) or bool(SETTINGS & set(words(name)))


def is_result(name: str) -> bool:
    """True for what a run gives, or what follows from its components, as opposed to what it was told."""
    return not declared(name) and bool(RESULTS & set(words(name)))


def is_label(name: str) -> bool:
    """True for what names a run or an arm."""
    return bool(LABELS & set(words(name)))


def is_spread(name: str) -> bool:
    """True for the spread or the count that stands beside a mean."""
    return is_size(name) or bool(set(SPREADS) & set(words(name)))


def is_size(name: str) -> bool:
    """True for the number of runs behind a mean: n, n_seeds, loss_count."""
    return name.lower() in SIZES or (words(name) or [""])[-1] in ("n", "count")


def is_clock(name: str) -> bool:
    """True for what every program keeps beside a run."""
    return bool(CLOCKS & set(words(name)))


def is_step(name: str) -> bool:
    """True for step, epoch, trainer/global_step; not for tokens_per_step or step_time_s."""
    parts = words(name)
    return bool(parts) and parts[-1] in STEPS and "per" not in parts
