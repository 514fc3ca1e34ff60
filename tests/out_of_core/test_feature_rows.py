"""Features made by rows: what the arrays in memory hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from glem_graphgym.out_of_core import feature_rows
from glem_graphgym.out_of_core.feature_rows import FeatureRows, column_statistics

N = 70
RNG = np.random.default_rng(0)
TEXT = RNG.normal(3, 2, size=(N, 5)).astype(np.float16)
MORE = RNG.normal(-1, 0.1, size=(N, 2))
ROWS = np.sort(RNG.permutation(N)[:40])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_rows, "BYTES_AT_ONCE", 200)


def test_parts_stand_side_by_side_and_are_read_by_rows() -> None:
    x = FeatureRows([TEXT, MORE])
    wanted = np.concatenate([TEXT.astype(np.float32), MORE.astype(np.float32)], axis=1)
    assert x.shape == (N, 7) and len(x) == N
    np.testing.assert_array_equal(np.asarray(x), wanted)
    np.testing.assert_array_equal(x.read(10, 13), wanted[10:13])
    assert np.asarray(x, dtype=np.float64).dtype == np.float64


@pytest.mark.parametrize("rows", [None, ROWS])
def test_input_norm_by_blocks_is_that_of_the_whole(rows: np.ndarray | None) -> None:
    constant = np.full((N, 1), 7, dtype=np.float16)
    x = FeatureRows([TEXT, constant, MORE], standardise=True, rows=rows)
    whole = np.concatenate([TEXT, constant, MORE], axis=1).astype(np.float64)
    seen = whole if rows is None else whole[rows]
    deviation = seen.std(0)
    deviation[5] = 1.0
    np.testing.assert_allclose(np.asarray(x), (whole - seen.mean(0)) / deviation, atol=2e-6)


def test_statistics_do_not_cancel() -> None:
    """A column far from zero with little spread: the sum of squares minus the square of the sum would be noise."""
    far = (1e6 + RNG.normal(size=(N, 1))).astype(np.float64)
    mean, deviation = column_statistics([far.astype(np.float32)], None)
    wanted = far.astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(mean, wanted.mean(0), rtol=1e-7)
    np.testing.assert_allclose(deviation, wanted.std(0), rtol=1e-6)


def test_the_key_names_the_content_and_not_where_it_lies(tmp_path: Path) -> None:
    np.save(tmp_path / "text.npy", TEXT)
    mapped = np.load(tmp_path / "text.npy", mmap_mode="r")
    key = FeatureRows([mapped, MORE]).key()
    assert key == FeatureRows([TEXT.copy(), MORE], rows=ROWS).key()  # rows without input norm change nothing
    changed = TEXT.copy()
    changed[-1, -1] += 1
    others = [
        FeatureRows([changed, MORE]).key(),
        FeatureRows([MORE, TEXT]).key(),
        FeatureRows([TEXT]).key(),
        FeatureRows([TEXT, MORE], standardise=True).key(),
        FeatureRows([TEXT, MORE], standardise=True, rows=ROWS).key(),
    ]
    assert len({key, *others}) == 6
