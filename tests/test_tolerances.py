"""The tolerances of this suite pass what rounding does and nothing more."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tolerances import assert_all_equal_up_to_rounding, assert_equal_up_to_rounding, rounding_error

TYPES = [torch.float64, torch.float32]
LOWER = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("terms", [3, 150, 5000])
def test_any_order_of_summation_passes(dtype: torch.dtype, terms: int) -> None:
    x = torch.randn(terms, 40, dtype=dtype)
    one_by_one = torch.zeros(40, dtype=dtype)
    for row in x:
        one_by_one += row
    for other in (x.sum(0), x.flip(0).sum(0), x[torch.randperm(terms)].cumsum(0)[-1], x.double().sum(0).to(dtype)):
        assert_equal_up_to_rounding(other, one_by_one, summands=terms)
        assert (other - one_by_one).abs().max() <= rounding_error(dtype, terms, float(x.abs().sum(0).max()))


def test_a_fault_does_not() -> None:
    x = torch.randn(230, 40, dtype=torch.float64)
    # A term is lost or counts twice, a factor is off, or a precision is lower.
    wrong = [x[:-1].sum(0), torch.cat([x, x[:1]]).sum(0), x.sum(0) * (1 + 1e-3), *(x.to(t).sum(0) for t in LOWER)]
    for dtype in TYPES:
        for fault in wrong if dtype == torch.float64 else wrong[:-1]:
            with pytest.raises(AssertionError):
                assert_equal_up_to_rounding(fault.to(dtype), x.to(dtype).sum(0), summands=230)


def test_arrays_half_precision_and_magnitudes_are_judged_too() -> None:
    exact = np.array([1 / 3, 100.0])
    assert_equal_up_to_rounding(exact.astype(np.float16), exact, summands=1)
    assert_equal_up_to_rounding(exact + 0.01, exact, summands=1, dtype=torch.float16)
    for values, options in ((exact + 0.2, {"dtype": torch.float16}), (exact + 0.01, {}), (exact, {"magnitude": 0.0})):
        wanted = exact if "magnitude" not in options else exact + 1e-9
        with pytest.raises(AssertionError):
            assert_equal_up_to_rounding(values, wanted, summands=1, **options)  # type: ignore[arg-type]


def test_what_cancels_is_judged_by_what_it_was_summed_of() -> None:
    vanishing, large = torch.tensor([1e-6, -2e-7]), torch.tensor([10.0, 3.0])
    assert_all_equal_up_to_rounding([(vanishing, torch.zeros(2)), (large, large)], summands=10)
    for pairs in ([(vanishing, torch.zeros(2))], [(vanishing * 1000, torch.zeros(2)), (large, large)]):
        with pytest.raises(AssertionError):
            assert_all_equal_up_to_rounding(pairs, summands=10)


@pytest.mark.parametrize("bad", [np.array([1.0, np.nan]), np.array([1.0]), np.array([1.0, np.inf])])
def test_nan_infinity_and_another_shape_are_faults(bad: np.ndarray) -> None:
    with pytest.raises(AssertionError):
        assert_equal_up_to_rounding(bad, np.array([1.0, 1.0]), summands=10)
