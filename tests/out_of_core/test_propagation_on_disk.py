"""Hops on disk: those in memory, bit for bit, whatever the budget, and whenever the process is killed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from glem_graphgym import disk
from glem_graphgym.disk import DiskFullError
from glem_graphgym.files import read_json
from glem_graphgym.models.hops import draw_folds, fold_label_hops, propagate
from glem_graphgym.models.propagation import Adjacency
from glem_graphgym.out_of_core import propagation as out_of_core
from glem_graphgym.out_of_core.feature_rows import FeatureRows
from glem_graphgym.out_of_core.propagation import DiskPropagation, MappedHops, plan_columns
from glem_graphgym.out_of_core.stored_operator import StoredOperator, store_operator
from tests.out_of_core.conftest import Dying

NODES, WIDTH, HOPS = 50, 11, 3
RNG = np.random.default_rng(0)
X = (RNG.normal(size=(NODES, WIDTH)) * 3).astype(np.float32)
BUDGETS = {1: 10**9, 3: 50 * 8 * 4 * 2, 11: 50 * 8 * 3}  # column blocks -> bytes


class Rows(FeatureRows):
    """A source that counts how much of it is read."""

    read_rows = 0

    def read(self, first: int, end: int) -> np.ndarray:
        self.read_rows += end - first
        return super().read(first, end)


@pytest.fixture(scope="module")
def adjacency() -> Adjacency:
    drawn = torch.randint(0, NODES - 3, (2, 120), generator=torch.Generator().manual_seed(0))
    return Adjacency.from_edge_index(torch.cat([drawn, drawn.flip(0)], dim=1), NODES)


@pytest.fixture(scope="module")
def operator(adjacency: Adjacency, tmp_path_factory: pytest.TempPathFactory) -> StoredOperator:
    folder = tmp_path_factory.mktemp("operator")
    store_operator(folder, adjacency.rowptr.long().numpy(), adjacency.col.numpy())
    return StoredOperator(folder, 200)


def made(
    folder: Path,
    operators: Sequence[tuple[StoredOperator, np.ndarray | None]],
    source: Any = None,
    hops: int = HOPS,
    dtype: torch.dtype = torch.float16,
    budget: int = BUDGETS[1],
    **options: Any,
) -> np.ndarray:
    folder.mkdir(exist_ok=True)
    DiskPropagation(folder, operators, source or Rows([X]), hops, dtype=dtype, budget=budget, **options).run()
    assert [file.name for file in folder.iterdir()] == ["hops.npy"]
    return np.load(folder / "hops.npy")


def in_memory(adjacency: Adjacency) -> np.ndarray:
    return propagate(adjacency.gcn(), torch.from_numpy(X), HOPS).half().numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("blocks", BUDGETS)
def test_hops_are_those_in_memory(
    tmp_path: Path, adjacency: Adjacency, operator: StoredOperator, blocks: int, dtype: torch.dtype
) -> None:
    columns, _ = plan_columns(NODES, WIDTH, BUDGETS[blocks])
    assert -(-WIDTH // columns) == blocks
    source = Rows([X])
    found = made(tmp_path / "a", [(operator, None)], source, dtype=dtype, budget=BUDGETS[blocks])
    wanted = propagate(adjacency.gcn(), torch.from_numpy(X), HOPS, dtype)
    assert torch.equal(MappedHops(found).read(np.arange(NODES)), wanted)
    assert source.read_rows == NODES  # once, however many blocks


def test_what_float16_cannot_hold_is_cut_off(tmp_path: Path, operator: StoredOperator) -> None:
    found = made(tmp_path / "a", [(operator, None)], Rows([X * 1e6]), hops=1)
    assert np.isfinite(found).all() and np.abs(found).max() == np.finfo(np.float16).max
    wanted = made(tmp_path / "b", [(operator, None)], Rows([X * 1e6]), hops=1, dtype=torch.bfloat16)
    assert MappedHops(wanted).read(np.arange(NODES)).abs().max() > 1e6


@pytest.mark.parametrize("hops", [0, 1])
def test_few_hops(tmp_path: Path, adjacency: Adjacency, operator: StoredOperator, hops: int) -> None:
    found = made(tmp_path / "a", [(operator, None)], hops=hops, budget=BUDGETS[3])
    np.testing.assert_array_equal(found, in_memory(adjacency)[: hops + 1])


@pytest.mark.parametrize("blocks", BUDGETS)
def test_nodes_that_see_through_different_operators(tmp_path: Path, operator: StoredOperator, blocks: int) -> None:
    seen = np.random.default_rng(3).random(NODES) < 0.5
    stored = np.random.default_rng(4).random(NODES) < 0.7
    (tmp_path / "op").mkdir()
    rowptr, col = np.zeros(NODES + 1, dtype=np.int64), np.empty(0, dtype=np.int32)
    store_operator(tmp_path / "op", rowptr, col)
    nothing = StoredOperator(tmp_path / "op")  # the identity
    found = made(tmp_path / "a", [(operator, ~seen), (nothing, seen)], stored=stored, budget=BUDGETS[blocks])
    whole = made(tmp_path / "b", [(operator, None)])
    whole[:, seen] = X[seen].astype(np.float16)
    np.testing.assert_array_equal(found, whole[:, stored])


def labels_and_folds() -> tuple[Tensor, Tensor]:
    labels = torch.rand(NODES, WIDTH, generator=torch.Generator().manual_seed(1))
    given = torch.rand(NODES, generator=torch.Generator().manual_seed(2)) < 0.6
    return labels, draw_folds(given, 3, torch.Generator().manual_seed(3))


@pytest.mark.parametrize("blocks", BUDGETS)
def test_label_hops_are_those_in_memory(
    tmp_path: Path, adjacency: Adjacency, operator: StoredOperator, blocks: int
) -> None:
    labels, folds = labels_and_folds()
    wanted = [fold_label_hops(adjacency.gcn(), labels, folds, hops).half().numpy() for hops in (HOPS - 1, HOPS)]
    options: dict[str, Any] = {"folds": folds.to(torch.int8).numpy(), "budget": BUDGETS[blocks]}
    found = made(tmp_path / "a", [(operator, None)], Rows([labels.numpy()]), first_hop=HOPS - 1, **options)
    np.testing.assert_array_equal(found, np.concatenate(wanted))


# ---- killed and resumed -------------------------------------------------------------------------------------------


def features_of(operator: StoredOperator) -> dict[str, Any]:
    return {"operators": [(operator, None)], "source": Rows([X]), "dtype": torch.float16}


def labels_of(operator: StoredOperator) -> dict[str, Any]:
    labels, folds = labels_and_folds()
    options = {"folds": folds.to(torch.int8).numpy(), "first_hop": HOPS, "dtype": torch.bfloat16}
    return {"operators": [(operator, None)], "source": Rows([labels.numpy()]), **options}


@pytest.mark.parametrize("what", [features_of, labels_of])
@pytest.mark.parametrize("blocks", BUDGETS)
@pytest.mark.parametrize("save_seconds", [0.0, 1e9])
def test_killed_wherever_it_may_be_it_goes_on_and_ends_with_the_same_bits(
    tmp_path: Path,
    operator: StoredOperator,
    monkeypatch: pytest.MonkeyPatch,
    dying: Dying,
    what: Callable[[StoredOperator], dict[str, Any]],
    blocks: int,
    save_seconds: float,
) -> None:
    """Killed over and over, each time after one more step than before, at products and whenever progress is noted."""
    monkeypatch.setattr(out_of_core, "SAVE_SECONDS", save_seconds)
    options = {**what(operator), "budget": BUDGETS[blocks]}
    wanted = made(tmp_path / "whole", **options)
    folder, ends = tmp_path / "killed", []
    for target, name in ((StoredOperator, "multiply"), (DiskPropagation, "_update_progress")):
        for step in range(1, 4):
            with dying(step, target, name):
                made(folder, **options)
                ends.append(step)
    assert len(ends) < 6
    np.testing.assert_array_equal(made(folder, **options), wanted)


def test_what_is_finished_is_not_done_again(tmp_path: Path, operator: StoredOperator, dying: Dying) -> None:
    options: dict[str, Any] = {**features_of(operator), "budget": BUDGETS[3]}
    with dying(2 * HOPS + 1):
        made(tmp_path, **options)
    assert read_json(tmp_path / "progress.json")["done"] == ["0.0", "0.1"]
    with dying() as products:
        made(tmp_path, **options)
    assert len(products) == HOPS


def test_a_saved_hop_is_not_done_again(
    tmp_path: Path, operator: StoredOperator, monkeypatch: pytest.MonkeyPatch, dying: Dying
) -> None:
    monkeypatch.setattr(out_of_core, "SAVE_SECONDS", 0.0)
    with dying(2):
        made(tmp_path, **features_of(operator))
    assert read_json(tmp_path / "progress.json")["state"]["hop"] == 2
    assert len(list(tmp_path.glob("state-*"))) == 1  # the old one is gone
    with dying() as products:
        made(tmp_path, **features_of(operator))
    assert len(products) == 1


def test_another_budget_starts_anew(
    tmp_path: Path, adjacency: Adjacency, operator: StoredOperator, dying: Dying
) -> None:
    with dying(4):
        made(tmp_path, **features_of(operator), budget=BUDGETS[3])
    found = made(tmp_path, **features_of(operator), budget=BUDGETS[11])
    np.testing.assert_array_equal(found, in_memory(adjacency))


# ---- memory, disk -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [10**6, 3 * 10**6, 10**7])
def test_operand_result_and_blocks_stay_within_the_budget(budget: int) -> None:
    columns, block_bytes = plan_columns(10_000, 300, budget)
    assert 2 * 4 * 10_000 * columns + 2 * block_bytes <= budget
    assert 2 * 4 * 10_000 * (columns + 40) + 2 * block_bytes > 0.6 * budget  # and use it


def test_blocks_are_equally_wide() -> None:
    columns, _ = plan_columns(1000, 100, 1000 * 8 * 90)  # 66 would fit
    assert columns == 50


def test_a_budget_below_one_column_is_refused_with_the_figures() -> None:
    with pytest.raises(ValueError, match=r"1,000,000 nodes need at least 0.0199 GB .* the budget is 0.00931 GB"):
        plan_columns(1_000_000, 5, 10**7)
    assert plan_columns(1_000_000, 5, 21_400_000)[0] == 1


def test_a_full_disk_is_noticed_before_anything_is_written(
    tmp_path: Path, operator: StoredOperator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda path: 1000)
    message = (
        r"propagating hop features \(4 hops of 50 nodes with 11 columns\) takes .* of disk, 1,000 bytes are free; make"
    )
    with pytest.raises(DiskFullError, match=message):
        made(tmp_path, **features_of(operator))
    assert not (tmp_path / "hops.npy").exists()


# ---- reading ------------------------------------------------------------------------------------------------------


def test_batches_come_in_the_order_asked_for() -> None:
    array = RNG.normal(size=(3, 20, 4)).astype(np.float16)
    nodes = RNG.permutation(20)[:9]
    assert torch.equal(MappedHops(array).read(nodes), torch.from_numpy(array[:, nodes]))
    stored = np.sort(RNG.permutation(100)[:20])
    found = MappedHops(array, stored).read(stored[nodes])
    assert torch.equal(found, torch.from_numpy(array[:, nodes]))
    assert MappedHops(array).read(np.empty(0, dtype=np.int64)).shape == (3, 0, 4)


def test_a_node_that_is_not_stored_is_named() -> None:
    hops = MappedHops(np.zeros((2, 3, 4), dtype=np.float16), np.array([1, 5, 9]))
    with pytest.raises(ValueError, match="hops of node 6 and 1 more are not among those stored"):
        hops.read(np.array([5, 6, 100]))
