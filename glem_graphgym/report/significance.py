"""Significance of the difference between two methods: a paired test over the seeds that both have."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

MIN_SEEDS = 3
SIGNIFICANT = 0.05
TOO_FEW = "too few seeds"
CONSTANT = "same on every seed"
_NO_SPREAD = 1e-12  # differences of shares that are equal but for rounding


@dataclass(frozen=True)
class Difference:
    """Difference between a row and the one named ``reference``."""

    reference: str
    mean: float | None  # of (row - reference) over common seeds, a share; None without a common seed
    seeds: int  # that both have
    p: float | None  # Holm-corrected where `holm` was applied; None where no test could be made
    why_no_p: str = ""

    @property
    def reason(self) -> str:
        if self.p is None:
            return self.why_no_p
        return "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}" if self.p < 0.1 else f"p = {self.p:.2f}"

    @property
    def is_significant(self) -> bool:
        return self.p is not None and self.p < SIGNIFICANT

    def columns(self, name: str) -> dict[str, Any]:
        return {name: self.mean, f"{name}_n": self.seeds, f"{name}_p": self.p, f"{name}_reason": self.why_no_p}


def paired_difference(scores: Mapping[int, float], reference: Mapping[int, float], name: str) -> Difference:
    """Difference of scores by seed to those of the reference called ``name``, with an uncorrected p-value.

    Differences that are all zero give 1; those that are all the same otherwise leave the t statistic undefined.
    """
    common = sorted(scores.keys() & reference.keys())
    ours, theirs = [scores[seed] for seed in common], [reference[seed] for seed in common]
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean, count = statistics.fmean(differences) if differences else None, len(differences)
    if mean is None or count < MIN_SEEDS:
        return Difference(name, mean, count, None, TOO_FEW)
    if max(differences) - min(differences) < _NO_SPREAD:
        same = abs(mean) < _NO_SPREAD
        return Difference(name, 0.0, count, 1.0) if same else Difference(name, mean, count, None, CONSTANT)
    from scipy.stats import ttest_rel

    return Difference(name, mean, count, float(ttest_rel(ours, theirs).pvalue))


def holm(differences: Sequence[Difference | None]) -> list[Difference | None]:
    """Correct the p-values for their number (Holm 1979); differences without a p-value stay as they are."""
    tested = sorted((one.p, place) for place, one in enumerate(differences) if one is not None and one.p is not None)
    result, floor = list(differences), 0.0
    for rank, (p, place) in enumerate(tested):
        floor = max(floor, min(1.0, p * (len(tested) - rank)))
        result[place] = replace(result[place], p=floor)  # type: ignore[type-var]
    return result
