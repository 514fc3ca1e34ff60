"""Whether two methods differ: a paired test over the seeds that both have."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

MIN_SEEDS = 3
TEST = (
    "two-sided paired t-test on test accuracy over the seeds that both rows have, "
    "p-values Holm-corrected over the rows of the table"
)
TOO_FEW = "too few seeds"
CONSTANT = "the same difference on every seed"
_NO_SPREAD = 1e-12  # differences of shares that are equal but for rounding


@dataclass(frozen=True)
class Difference:
    """How a row differs from a reference.

    Attributes:
        reference: name of the row that it is compared with.
        mean: mean of (row - reference) over common seeds, a share; None without a common seed.
        seeds: how many seeds both have.
        p: p-value, Holm-corrected where `holm` was applied; None where no test could be made.
        reason: why there is no p-value; "" where there is one.
    """

    reference: str
    mean: float | None
    seeds: int
    p: float | None
    reason: str = ""


def paired_difference(scores: Mapping[int, float], reference: Mapping[int, float], name: str) -> Difference:
    """Difference of scores by seed to those of the reference called ``name``, with an uncorrected p-value.

    Fewer than 3 common seeds give no p-value. Differences that are all zero give 1; differences that are all the
    same but not zero leave the t statistic undefined and give no p-value.
    """
    differences = [scores[seed] - reference[seed] for seed in sorted(scores.keys() & reference.keys())]
    if not differences:
        return Difference(name, None, 0, None, TOO_FEW)
    mean, count = statistics.fmean(differences), len(differences)
    if count < MIN_SEEDS:
        return Difference(name, mean, count, None, TOO_FEW)
    if max(differences) - min(differences) < _NO_SPREAD:
        if abs(mean) < _NO_SPREAD:
            return Difference(name, 0.0, count, 1.0)
        return Difference(name, mean, count, None, CONSTANT)
    from scipy.stats import ttest_rel

    common = sorted(scores.keys() & reference.keys())
    p = ttest_rel([scores[seed] for seed in common], [reference[seed] for seed in common]).pvalue
    return Difference(name, mean, count, float(p))


def holm(differences: Sequence[Difference | None]) -> list[Difference | None]:
    """The same with p-values corrected for their number (Holm 1979); those without a p-value stay as they are."""
    tested = sorted(
        ((one.p, place) for place, one in enumerate(differences) if one is not None and one.p is not None),
    )
    result, floor = list(differences), 0.0
    for rank, (p, place) in enumerate(tested):
        floor = max(floor, min(1.0, p * (len(tested) - rank)))
        one = result[place]
        assert one is not None
        result[place] = replace(one, p=floor)
    return result
