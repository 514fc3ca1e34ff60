"""The difference between two methods: a paired test over the seeds that both have, and a bootstrapped interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Outcome = tuple[np.ndarray, np.ndarray]  # true and predicted classes of the test nodes
Outcomes = Mapping[int, Outcome]  # by seed
DRAWS, LEVEL = 2000, 0.95  # of the bootstrap
MIN_SEEDS = 3
SIGNIFICANT = 0.05
TOO_FEW = "too few seeds"
CONSTANT = "same on every seed"
_ROUNDING = 1e-4  # by which a recorded score may differ from the accuracy of the recorded predictions
_NO_SPREAD = 1e-12  # differences of scores that are closer than this are equal


@dataclass(frozen=True)
class Difference:
    """Difference between a row and the row named ``reference``."""

    reference: str
    mean: float | None  # of (row - reference) over common seeds, a share 0-1; None without a common seed
    seeds: int  # number of common seeds
    p: float | None  # Holm-corrected after `holm`; None if no test was possible
    why_no_p: str = ""
    interval: tuple[float, float] | None = None  # 95 % interval of the mean; None if it was not bootstrapped

    @property
    def reason(self) -> str:
        if self.p is None:
            return self.why_no_p
        return "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}" if self.p < 0.1 else f"p = {self.p:.2f}"

    @property
    def is_significant(self) -> bool:
        return self.p is not None and self.p < SIGNIFICANT

    def columns(self, name: str) -> dict[str, Any]:
        low, high = self.interval or (None, None)
        numbers = {name: self.mean, f"{name}_low": low, f"{name}_high": high, f"{name}_n": self.seeds}
        return {**numbers, f"{name}_p": self.p, f"{name}_reason": self.why_no_p}


def paired_difference(
    scores: Mapping[int, float],
    reference: Mapping[int, float],
    name: str,
    outcomes: Outcomes | None = None,
    reference_outcomes: Outcomes | None = None,
) -> Difference:
    """Compare scores by seed with those of the reference called ``name``; the p-value is not corrected.

    Seeds whose score is missing (NaN) are not common. If all differences are zero, p is 1; if they are all equal
    otherwise, the t statistic is undefined and p is None.
    `bootstrapped` draws nodes if the outcomes of every common seed are known and their accuracy is the score, else
    the seeds' differences.
    """
    by_seed = {seed: scores[seed] - reference[seed] for seed in sorted(scores.keys() & reference.keys())}
    by_seed = {seed: difference for seed, difference in by_seed.items() if not math.isnan(difference)}
    common, differences = list(by_seed), list(by_seed.values())
    ours, theirs = outcomes or {}, reference_outcomes or {}
    node_differences = [
        _node_differences(ours.get(seed), theirs.get(seed), mean)
        for seed, mean in zip(common, differences, strict=True)
    ]
    recorded, interval = [array for array in node_differences if array is not None], None
    if common and len(recorded) == len(common):
        interval = bootstrapped(recorded, all(np.array_equal(ours[seed][0], ours[common[0]][0]) for seed in common))
    elif len(common) >= MIN_SEEDS:
        interval = bootstrapped([np.array([difference]) for difference in differences])
    mean = statistics.fmean(differences) if differences else None
    if mean is None or len(common) < MIN_SEEDS:
        return Difference(name, mean, len(common), None, TOO_FEW, interval)
    if max(differences) - min(differences) >= _NO_SPREAD:
        from scipy.stats import ttest_1samp

        return Difference(name, mean, len(common), float(ttest_1samp(differences, 0).pvalue), "", interval)
    if abs(mean) >= _NO_SPREAD:
        return Difference(name, mean, len(common), None, CONSTANT, interval)
    return Difference(name, 0.0, len(common), 1.0, "", interval)


def _node_differences(ours: Outcome | None, theirs: Outcome | None, mean: float) -> np.ndarray | None:
    """int8 (n,), per node: ours correct (0/1) minus theirs correct; None if unknown or if the mean is not ``mean``."""
    if ours is None or theirs is None or not np.array_equal(ours[0], theirs[0]):
        return None
    a, b = ((true == predicted).astype(np.int8) for true, predicted in (ours, theirs))
    return a - b if abs((a - b).mean() - mean) < _ROUNDING else None


def bootstrapped(differences: Sequence[np.ndarray], shared: bool = True) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean over seeds and nodes, both drawn with replacement (Efron 1979).

    Args:
        differences: per seed, those of its nodes, (n,); every seed has the same weight.
        shared: all seeds have the same nodes, so one draw of nodes serves all; else nodes are drawn per seed.
    """
    rng = np.random.default_rng(0)
    groups = [np.stack(differences)] if shared else [seed_differences[None] for seed_differences in differences]
    means = []
    for group in groups:
        # Nodes with equal differences on every seed are interchangeable; the number drawn of each kind is multinomial.
        kinds, counts = np.unique(group, axis=1, return_counts=True)
        drawn = rng.multinomial(group.shape[1], counts / group.shape[1], size=DRAWS)
        means.append(drawn @ kinds.T / group.shape[1])
    seed_means = np.concatenate(means, axis=1)
    seed_draws = rng.integers(seed_means.shape[1], size=seed_means.shape)
    drawn = np.take_along_axis(seed_means, seed_draws, axis=1).mean(axis=1)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return low, high


def holm(differences: Sequence[Difference | None]) -> list[Difference | None]:
    """Correct p-values for multiple testing (Holm 1979); differences without a p-value stay as they are."""
    tested = sorted(
        (difference.p, index)
        for index, difference in enumerate(differences)
        if difference is not None and difference.p is not None
    )
    result, floor = list(differences), 0.0
    for rank, (p, index) in enumerate(tested):
        floor = max(floor, min(1.0, p * (len(tested) - rank)))
        result[index] = replace(result[index], p=floor)  # type: ignore[type-var]
    return result
