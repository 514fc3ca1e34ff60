from __future__ import annotations

import csv
import io
import math
import re
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats as scipy_stats

from glem_graphgym.files import fingerprint, read_json, write_json
from glem_graphgym.report import results
from glem_graphgym.report.blind import blinding
from glem_graphgym.report.details import details_of
from glem_graphgym.report.experiments import STOCK_CAVEAT, Row, Spread, experiment_folders, percent
from glem_graphgym.report.leaderboard import FACTS, PUBLISHED, PUBLISHED_GRAPHS, Board, published_for, read_boards
from glem_graphgym.report.page import render_page
from glem_graphgym.report.significance import CONSTANT, TOO_FEW, Difference, bootstrapped, holm, paired_difference
from glem_graphgym.report.stats import COSTS, FURTHER, SUMMARY, finish_run
from glem_graphgym.report.tables import difference_text, seeds_text, to_csv, to_latex, to_markdown
from glem_graphgym.report.terminal import print_board
from tests.report.conftest import ARXIV, save_run, save_stock_run


def board_of(*dirs: Path) -> Board:
    (board,) = read_boards(dirs)
    return board


def printed(board: Board) -> str:
    output = io.StringIO()
    print_board(board, Console(file=output, width=250))
    return output.getvalue()


def test_one_experiment_has_a_row_a_method_ranked_by_validation(tmp_path: Path) -> None:
    # On test the order is another one.
    save_run(tmp_path / "glem", 0, [(0.70, 0.95), (0.74, 0.80), (0.73, 0.90), (0.78, 0.70)])
    save_run(tmp_path / "glem", 1, [(0.72, 0.93), (0.75, 0.83), (0.74, 0.88), (0.76, 0.74)])
    board = board_of(tmp_path / "glem")
    assert [(row.rank, row.name) for row in board.rows] == [
        (1, "GLEM (SAGE) · GNN"), (2, "Cascade (SAGE)"), (3, "GLEM (SAGE) · LM"), (4, "LM"),
    ]  # fmt: skip
    best = board.rows[0]
    assert (best.seeds, best.params, best.seconds, best.peak_memory_mb) == ((0, 1), 20300, 220.0, 503.0)
    assert best.valid.mean == pytest.approx(0.77)
    assert best.valid.std == pytest.approx(math.sqrt(2) / 100)  # n - 1
    assert best.test.std == pytest.approx(statistics.stdev([0.70, 0.74]))
    assert (board.dataset, board.fingerprint) == ("debian", "27fc6cf3f908e571")
    assert {row.to_non_glem.reference for row in board.rows if row.to_non_glem} == {"Cascade (SAGE)"}


def test_the_frame_has_a_row_per_seed_and_method(grid: Path, tmp_path: Path) -> None:
    other = save_run(tmp_path / "other", 0, dataset="ogbn-arxiv", em_iterations=1).parent
    frame = results([grid, other])
    assert frame.groupby("experiment").size().to_dict() == {
        "glem-alpha=0.3": 16, "glem-alpha=0.7": 16, "stock": 3, "other": 4,
    }  # fmt: skip
    assert list(frame) == ["experiment", "mode", "dataset", "fingerprint", "metric", "config", "seed", "method",
                           *SUMMARY[1:], *COSTS, *FURTHER]  # fmt: skip
    assert np.allclose(frame.test_accuracy, frame.test)  # of GraphGym's own training too, which has no others here
    assert frame.energy_j.isna().all()
    assert np.allclose(frame.valid_macro_f1, (0.9 * frame.valid).where(frame["mode"] == "glem"), equal_nan=True)
    last = frame[(frame.experiment == "glem-alpha=0.7") & (frame.method == "GLEM-GNN")]
    assert last.seed.tolist() == [0, 1, 2, 3] and last.valid.tolist() == [0.794, 0.788, 0.791, 0.793]
    assert last[["params", "seconds", "peak_memory_mb"]].drop_duplicates().values.tolist() == [[20300, 220, 503]]
    stock = frame[frame.experiment == "stock"]
    assert stock.test.tolist() == [0.6, 0.61, 0.62] and stock.seconds.isna().all()
    # The tables are views of it.
    for board in read_boards([grid, other]):
        for row in board.rows:
            scores = frame[(frame.experiment == row.experiment) & (frame.method == row.method)]
            assert (row.test, row.valid) == (Spread.of(scores.test), Spread.of(scores.valid))
            assert scores[["dataset", "config"]].drop_duplicates().values.tolist() == [[board.dataset, row.config]]


def test_runs_that_another_metric_selected_have_a_table_of_their_own(tmp_path: Path) -> None:
    for metric in ("accuracy", "macro_f1"):
        save_run(tmp_path / metric, 0, metric=metric)
    accuracy, macro = sorted(read_boards([tmp_path]), key=lambda board: board.metric)
    assert [row.valid.mean for row in macro.rows] == pytest.approx([0.9 * row.valid.mean for row in accuracy.rows])
    assert macro.rows[0].config != accuracy.rows[0].config
    assert "ranked by mean validation macro-F1; test macro-F1 plays no part in any choice" in macro.notes
    assert list(macro.headings.values()) == [
        "valid macro-F1 %", "test macro-F1 %", "test accuracy %", "test balanced accuracy %",
    ]  # fmt: skip
    table = list(csv.DictReader(io.StringIO(to_csv([accuracy, macro]))))
    assert [row["metric"] for row in table] == 4 * ["accuracy"] + 4 * ["macro_f1"]
    best, other = table[0], table[4]
    assert float(other["test_accuracy_mean"]) == float(best["test_mean"]) and not other["test_macro_f1_mean"]
    assert float(best["test_macro_f1_mean"]) == float(other["test_mean"]) and not best["test_accuracy_mean"]
    page = render_page([macro])
    for text in ("Test accuracy %", "its test macro-F1, %", "Macro-F1 by EM iteration", "Macro-F1 against compute"):
        assert text in page


def test_test_scores_change_no_rank_and_no_choice(tmp_path: Path) -> None:
    boards = []
    for name, shift in (("a", 0.0), ("b", 0.2)):
        for seed in range(3):
            scores = [(0.70, 0.5 + shift), (0.74, 0.6), (0.73, 0.7 - shift), (0.78, 0.4 + seed / 100 - shift)]
            save_run(tmp_path / name / "glem", seed, scores)
        boards.append(board_of(tmp_path / name))
    assert [row.name for row in boards[0].rows] == [row.name for row in boards[1].rows]
    assert boards[0].rows[0].to_non_glem.reference == boards[1].rows[0].to_non_glem.reference  # type: ignore[union-attr]


def test_a_single_seed_has_no_std_and_says_so(tmp_path: Path) -> None:
    save_run(tmp_path / "glem", 10)
    board = board_of(tmp_path / "glem")
    assert {row.test.std for row in board.rows} == {None}
    assert any("one seed" in note for note in board.notes)
    assert "78.00" in printed(board) and "±" not in printed(board).split("ranked by")[0]


def test_a_grid_names_rows_by_experiment_and_takes_stock_graphgym_in(grid: Path) -> None:
    board = board_of(grid)
    names = [row.name for row in board.rows]
    assert names[:2] == ["GLEM (SAGE, α 0.7) · GNN", "GLEM (SAGE, α 0.3) · GNN"]
    (stock,) = [row for row in board.rows if row.experiment == "stock"]
    assert (stock.name, stock.seeds, stock.params) == ("GraphGym", (0, 1, 2), 4321)
    assert stock.valid.mean == pytest.approx(0.66)  # the best epoch, not the last
    assert (stock.test.mean, stock.seconds, stock.peak_memory_mb) == (pytest.approx(0.61), None, None)
    assert stock.caveat == STOCK_CAVEAT
    assert any(STOCK_CAVEAT in note for note in board.notes)
    assert any("different seeds" in note for note in board.notes)
    save_stock_run(grid.parent / "alone", 0, [0.5, 0.6], 0.55, seconds=12.5, peak_memory_mb=300.0)
    (row,) = board_of(grid.parent / "alone").rows
    assert (row.seconds, row.peak_memory_mb) == (12.5, 300.0)


def test_different_graphs_are_never_ranked_together(tmp_path: Path) -> None:
    for seed in range(2):
        save_run(tmp_path / "a", seed)
        save_run(tmp_path / "b", seed, fingerprint="0123456789abcdef")
        save_run(tmp_path / "c", seed, fingerprint="aa23456789abcdef", **ARXIV)
        save_stock_run(tmp_path / "d", seed, [0.5], 0.5)
    boards = read_boards([tmp_path])
    assert len(boards) == 4
    for board in boards:
        assert len(board.experiments) == 1
        assert "not comparable" in board.notes[0]
    assert [len(board.published) for board in boards] == [0, 0, 19, 0]
    assert any("did not record" in note for note in boards[-1].notes)
    assert render_page(boards).count("<section data-dataset=") == 4


def test_boards_of_one_graph_by_two_metrics_say_so_and_nodes_are_drawn_for_accuracy_alone(tmp_path: Path) -> None:
    for metric in ("accuracy", "macro_f1"):
        save_run(tmp_path / metric, 0, [(0.7, 0.7), (0.7, 0.7)], metric=metric, described=True)
    boards = read_boards([tmp_path])
    graph = "debian, fingerprint 27fc6cf3f908e571, by"
    assert boards[0].notes[0].endswith(f"each has a table of its own ({graph} accuracy; {graph} macro-F1)")
    assert [board.rows[1].to_best.interval for board in boards if board.rows[1].to_best] == [(0.0, 0.0), None]


def test_the_same_result_of_several_train_modes_counts_once(tmp_path: Path) -> None:
    """A cascade and GLEM start from the LM alone: as rows of their own they would raise every p-value by Holm."""
    modes = (("a-glem", "glem", 4), ("b-cascade", "glem_cascade", 2), ("c-lm", "glem_lm", 1))
    for seed in range(4):
        shake = [0.004, -0.002, 0.001, 0.003][seed]
        scores = [(0.70 + shake, 0.69 - shake), (0.74, 0.73 + shake), (0.73, 0.74 + 2 * shake), (0.78, 0.76 + shake)]
        for name, mode, stages in modes:
            save_run(tmp_path / name, seed, scores[:stages], mode=mode)
    board = board_of(tmp_path)
    rows = {row.method: (row.name, row.same_in) for row in board.rows}
    assert rows == {
        "GLEM-GNN": ("GLEM (SAGE) · GNN", ()),
        "Cascade": ("Cascade (SAGE)", ("a-glem",)),
        "GLEM-LM": ("GLEM (SAGE) · LM", ()),
        "LM": ("LM", ("b-cascade", "a-glem")),
    }
    assert len(board.rows) == 4
    alone = board_of(tmp_path / "a-glem")
    together = [row.to_best.p for row in board.rows if row.to_best]
    assert together == [row.to_best.p for row in alone.rows if row.to_best]


def test_results_that_agree_in_one_score_alone_keep_their_rows(tmp_path: Path) -> None:
    """Blind, the test scores that tell them apart are hidden; further validation scores tell them apart as well."""
    for name, macro_f1 in (("a", 0.6), ("b", 0.5)):
        folder = save_run(tmp_path / name, 0, [(0.75, macro_f1)], mode="glem_lm", settings={"lm.lr": name})
        row = read_json(folder / "summary.json")[0]
        write_json(folder / "summary.json", [{**row, "valid_macro_f1": macro_f1}])
    assert [len(read_boards([tmp_path], blind)[0].rows) for blind in (False, True)] == [2, 2]


def test_unfinished_and_incomplete_seeds_are_left_out_by_name(tmp_path: Path) -> None:
    save_run(tmp_path / "glem", 0)
    save_run(tmp_path / "glem", 1, finished=False)
    save_run(tmp_path / "glem", 2)
    (tmp_path / "glem" / "2" / "summary.json").unlink()
    stock = save_stock_run(tmp_path / "stock", 0, [0.5], 0.5)
    (stock / "test" / "stats.json").unlink()
    save_run(tmp_path / ".ensemble.part", 0)  # left by a killed run/ensemble.py
    (board,) = read_boards([tmp_path])
    assert list(board.experiments) == ["glem"]
    assert {row.seeds for row in board.rows} == {(0,)}
    left_out = [note for note in board.notes if "left out" in note]
    assert [note.split(":")[0] for note in left_out] == ["glem, seed 1", "glem, seed 2", "stock, seed 0"]


def test_folders_without_runs_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        experiment_folders(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no run found"):
        experiment_folders(tmp_path / "empty")
    seed = save_run(tmp_path / "glem", 0, finished=False)
    with pytest.raises(ValueError, match="folder of one seed"):
        experiment_folders(seed)
    with pytest.raises(ValueError, match="no finished run; glem, seed 0: unfinished"):
        read_boards([tmp_path])
    (seed / "run.json").write_text('{"mode": "glem"}')
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        read_boards([tmp_path])


def test_seeds_of_one_experiment_share_their_settings(tmp_path: Path) -> None:
    save_run(tmp_path / "glem", 0)
    save_run(tmp_path / "glem", 1, settings={"glem.alpha": 0.9})
    with pytest.raises(ValueError, match=r"seed 1 differs from the first seed in glem\.alpha"):
        read_boards([tmp_path])


def test_a_copy_of_a_seed_is_no_further_seed(tmp_path: Path) -> None:
    shutil.copytree(save_run(tmp_path / "glem", 0), tmp_path / "glem/1")
    with pytest.raises(ValueError, match=r"glem.1 holds a run of seed 0"):
        read_boards([tmp_path])


def test_equal_folder_names_are_told_apart_and_a_folder_counts_once(tmp_path: Path) -> None:
    for grid in ("one", "two"):
        save_run(tmp_path / grid / "glem", 0)
    board = board_of(tmp_path / "one", tmp_path / "two", tmp_path / "one" / "glem")
    assert set(board.experiments) == {"one/glem", "two/glem"}


def test_config_fingerprint_is_of_the_settings_without_the_seed(tmp_path: Path) -> None:
    for name, seed, alpha, iterations in (("a", 0, 0.5, 1), ("b", 7, 0.5, 1), ("c", 0, 0.6, 1), ("d", 0, 0.5, 2)):
        save_run(tmp_path / name, seed, settings={"glem.alpha": alpha}, em_iterations=iterations)
    board = board_of(tmp_path)
    config = {name: one.config for name, one in board.experiments.items()}
    assert config["a"] == config["b"]
    assert len(set(config.values())) == 3
    assert list(board.axes) == ["glem.alpha", "glem.em_iterations"]


def test_seeds_that_differ_in_iterations_or_versions_are_said_to(tmp_path: Path) -> None:
    save_run(tmp_path / "glem", 0, em_iterations=1, versions={"torch": "2.13.0", "ogb": "1.3.6"})
    save_run(tmp_path / "glem", 1, em_iterations=2, versions={"torch": "2.13.0, 2.14.0", "ogb": "1.3.6"})
    board = board_of(tmp_path)
    assert board.experiments["glem"].settings["glem.em_iterations"] == [1, 2]
    text = " ".join(printed(board).split())
    assert "glem was run with several versions of torch: 2.13.0, 2.14.0" in text
    assert "glem was run with several numbers of EM iterations: 1, 2" in text
    assert "versions of ogb" not in text


def test_paired_test_is_scipys_over_common_seeds() -> None:
    a, b = {0: 0.70, 1: 0.74, 2: 0.71, 3: 0.75, 9: 0.1}, {0: 0.69, 1: 0.71, 2: 0.715, 3: 0.72, 8: 0.9}
    found = paired_difference(a, b, "other")
    expected = scipy_stats.ttest_rel([a[s] for s in range(4)], [b[s] for s in range(4)]).pvalue
    assert found.interval is not None and found.interval[0] < found.mean < found.interval[1]
    assert replace(found, interval=None) == Difference("other", pytest.approx(0.01625), 4, pytest.approx(expected))  # type: ignore[arg-type]


def test_too_few_seeds_and_no_variance_give_no_false_p() -> None:
    assert paired_difference({0: 0.5}, {1: 0.4}, "x") == Difference("x", None, 0, None, TOO_FEW)
    two = paired_difference({0: 0.5, 1: 0.7}, {0: 0.4, 1: 0.4}, "x")
    assert (two.seeds, two.p, two.why_no_p) == (2, None, TOO_FEW)
    same = {0: 0.1 + 0.2, 1: 0.5, 2: 0.6}
    equal = paired_difference(same, {0: 0.3, 1: 0.5, 2: 0.6}, "x")
    assert replace(equal, interval=None) == Difference("x", 0.0, 3, 1.0)
    shifted = paired_difference({seed: value + 0.01 for seed, value in same.items()}, same, "x")
    assert (shifted.p, shifted.why_no_p) == (None, CONSTANT)
    assert difference_text(shifted) == f"+1.00 [+1.00, +1.00] ({CONSTANT}, n = 3)"


def test_a_missing_score_is_no_difference_of_zero() -> None:
    missing = paired_difference({0: math.nan, 1: 0.6, 2: 0.8, 3: 0.7}, {0: 0.5, 1: 0.5, 2: 0.5, 4: 0.5}, "x")
    assert (missing.seeds, missing.mean, missing.reason) == (2, pytest.approx(0.2), TOO_FEW)
    assert paired_difference({0: math.nan}, {0: 0.5}, "x").mean is None


def test_intervals_are_of_seeds_and_nodes() -> None:
    rng = np.random.default_rng(3)
    true = rng.integers(0, 3, 4000)

    def predicted(share: float) -> np.ndarray:
        return np.where(rng.random(4000) < share, true, (true + 1) % 3)

    ours, theirs = ({seed: (true, predicted(share)) for seed in range(4)} for share in (0.75, 0.7))
    scores, reference = ({seed: float((t == p).mean()) for seed, (t, p) in of.items()} for of in (ours, theirs))
    found = paired_difference(scores, reference, "x", ours, theirs)
    assert found.mean is not None and found.interval is not None
    low, high = found.interval
    # The standard error over nodes of the mean over seeds; seeds add theirs.
    differences = np.mean([(ours[s][1] == true) * 1.0 - (theirs[s][1] == true) for s in range(4)], axis=0)
    error = differences.std() / np.sqrt(4000)
    assert low < found.mean < high and 3.92 * error * 0.9 < high - low < 3.92 * error * 2.5
    of_one = paired_difference({0: scores[0]}, {0: reference[0]}, "x", ours, theirs)
    assert of_one.p is None and of_one.interval is not None  # one seed: nodes alone are drawn
    # Another metric, other nodes, or unknown predictions: seeds alone.
    of_seeds = paired_difference(scores, reference, "x").interval
    assert of_seeds is not None and of_seeds[1] - of_seeds[0] < high - low
    shifted = {seed: score / 2 for seed, score in scores.items()}
    other_nodes = {seed: (t[:-1], p[:-1]) for seed, (t, p) in theirs.items()}
    assert paired_difference(scores, reference, "x", ours, other_nodes).interval == of_seeds
    assert paired_difference(shifted, reference, "x", ours, theirs).interval != found.interval
    assert paired_difference({0: 0.5}, {0: 0.4}, "x").interval is None


def test_nodes_that_seeds_do_not_share_are_drawn_for_each() -> None:
    rng = np.random.default_rng(0)
    same = [rng.integers(-1, 2, 500).astype(np.int8)] * 3
    low, high = bootstrapped(same)
    apart = bootstrapped(same, shared=False)
    assert (apart[1] - apart[0]) * 1.15 < high - low  # three draws of nodes rather than one
    assert bootstrapped(same) == (low, high)  # the same on every day


def test_blind_boards_hold_no_test_score_until_they_are_unblinded(grid: Path, tmp_path: Path) -> None:
    (seen,) = read_boards([grid])
    (board,) = read_boards([grid], blind=True)
    assert [row.name for row in board.rows] == [row.name for row in seen.rows]
    secrets = {text for row in seen.rows for text in (percent(row.test), str(row.test.mean))}
    secrets -= {text for row in seen.rows for text in (percent(row.valid), str(row.valid.mean))}
    texts = [to_csv([board]), to_markdown([board]), to_latex([board]), render_page([board]), printed(board)]
    shown = [to_csv([seen]), to_markdown([seen]), to_latex([seen]), render_page([seen]), printed(seen)]
    for hidden, full in zip(texts, shown, strict=True):
        assert not any(secret in hidden.replace(r"$\pm$", "±") for secret in secrets)
        assert any(secret in full.replace(r"$\pm$", "±") for secret in secrets)
    assert "nan" not in re.sub(r"<script.*?</script>", "", texts[3], flags=re.DOTALL).replace("nance", "").lower()
    assert all("hidden" in text for text in texts[1:])
    assert any("paired t-test on validation accuracy" in note for note in board.notes)


@pytest.mark.parametrize("unblinded", [False, True])
def test_runs_below_a_blind_folder_are_blind_wherever_the_leaderboard_is(
    grid: Path, tmp_path: Path, unblinded: bool
) -> None:
    save_run(tmp_path / "elsewhere", 0)
    blinding(grid, True, False)
    if unblinded:
        blinding(grid, False, True)
    for dirs in ([grid / "glem-alpha=0.3"], [tmp_path / "elsewhere", grid]):
        (board,) = read_boards(dirs)
        assert board.blind != unblinded
        assert any(f"hidden, as {grid} is blind" in note for note in board.notes) != unblinded


def test_what_is_blind_stays_so_until_it_is_unblinded_once(tmp_path: Path) -> None:
    assert blinding(tmp_path, False, False) == (False, [])
    with pytest.raises(ValueError, match="no test score was hidden"):
        blinding(tmp_path, False, True)
    hidden, (note,) = blinding(tmp_path, True, False)
    assert hidden and note.startswith("blind since 20")
    assert blinding(tmp_path, False, False) == blinding(tmp_path, True, False) == (True, [note])
    with pytest.raises(ValueError, match="contradict"):
        blinding(tmp_path, True, True)
    hidden, (note,) = blinding(tmp_path, False, True)
    assert not hidden and "until 20" in note
    assert blinding(tmp_path, True, False) == blinding(tmp_path, False, True) == (False, [note])  # what was seen stays


def test_texts_and_energy_stand_beside_other_costs_where_runs_noted_them(tmp_path: Path) -> None:
    folder = save_run(tmp_path / "glem", 0)
    for place, (texts, energy) in enumerate(((300, 50.0), (0, 1.5), (900, 120.0), (0, 2.0))):
        file = sorted((folder / "stages").glob("*/stage.json"))[place]
        write_json(file, {**read_json(file), "texts": texts, "energy_j": None if place == 3 else energy})
    finish_run(folder)
    board = board_of(tmp_path)
    costs = {row.method: (row.texts, row.energy_j) for row in board.rows}
    assert costs == {"LM": (300, 50.0), "Cascade": (300, 51.5), "GLEM-LM": (1200, 171.5), "GLEM-GNN": (1200, None)}
    assert "texts trained" in to_markdown([board]) and ",1200.0," in to_csv([board])


def test_what_the_language_model_is_stands_in_the_csv_and_in_a_rows_details(tmp_path: Path) -> None:
    card = {"model": "org/lm", "family": "qwen3", "parameters": 595_776_512, "trained": 800, "prompt": "q: {text}"}
    save_run(tmp_path / "a", 0, language_model={**card, "pooling": "last"})
    save_run(tmp_path / "b", 0, [(0.6, 0.5)] * 4, settings={"glem.alpha": 0.1})  # by an older version
    board = board_of(tmp_path)
    line = "model org/lm, family qwen3, parameters 595.8 M, trained 800, prompt 'q: {text}', pooling last"
    for row in board.rows:
        expected = line if row.experiment == "a" else ""
        assert details_of(board, row)["facts"].get("language model", "") == expected
    assert {row["language_model"] for row in csv.DictReader(io.StringIO(to_csv([board])))} == {line, ""}
    assert "language_model" not in to_csv([board_of(tmp_path / "b")])


def test_holm_by_hand() -> None:
    ps = [0.01, None, 0.04, 0.03, 0.005]
    corrected = holm([None, *(Difference("x", 0.1, 5, p) for p in ps)])
    assert corrected[0] is None
    assert [one.p for one in corrected[1:] if one] == [
        pytest.approx(p) if p else None for p in (0.03, None, 0.06, 0.06, 0.02)
    ]


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(ps: list[float]) -> None:
    corrected = [one.p for one in holm([Difference("x", 0.0, 5, p) for p in ps]) if one and one.p is not None]
    assert all(p <= q <= 1 for p, q in zip(ps, corrected, strict=True))
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    assert [corrected[i] for i in order] == sorted(corrected)


def test_differences_are_to_the_best_row_and_to_the_best_that_is_not_glem(grid: Path) -> None:
    board = board_of(grid)
    best, baseline = board.rows[0], next(row for row in board.rows if not row.method.startswith("GLEM"))
    assert baseline.method == "Cascade" and best.to_best is None and baseline.to_non_glem is None
    assert {row.to_best.reference for row in board.rows[1:] if row.to_best} == {best.name}
    assert {row.to_non_glem.reference for row in board.rows if row.to_non_glem} == {baseline.name}
    (stock,) = [row for row in board.rows if row.experiment == "stock"]
    assert stock.to_best is not None and stock.to_best.seeds == 3
    rival = board.rows[1]  # the other α: 1 point lower on every seed
    assert rival.to_best is not None and (rival.to_best.mean, rival.to_best.reason) == (pytest.approx(-0.01), CONSTANT)


def test_axes_are_settings_that_differ_and_those_in_step_are_one(tmp_path: Path) -> None:
    for lr, width in ((0.01, 64), (0.001, 128), (0.1, 256)):
        for act in ("relu", "elu"):
            settings = {"optim.base_lr": lr, "gnn.dim_inner": width, "gnn.act": act, "dataset.tag_split": [0.1, 0.9]}
            save_run(tmp_path / f"lr={lr}-act={act}", 0, settings=settings)
    save_stock_run(tmp_path / "stock", 0, [0.5], 0.5, fingerprint="27fc6cf3f908e571")
    axes = board_of(tmp_path).axes
    assert set(axes) == {"gnn.act", "gnn.dim_inner + optim.base_lr"}
    assert list(axes["gnn.dim_inner + optim.base_lr"]) == ["64, 0.01", "128, 0.001", "256, 0.1"]
    assert list(axes["gnn.act"]) == ["elu", "relu"]
    assert axes["gnn.act"]["elu"] == ["lr=0.001-act=elu", "lr=0.01-act=elu", "lr=0.1-act=elu"]


def test_axes_are_of_all_train_modes_but_mix_none(tmp_path: Path) -> None:
    plan = [("glem_lm", 1, "lm.lora_rank", (0, 8)), ("glem_gnn", 1, "model.type", ("glem_mlp", "glem_sage"))]
    plan += [("glem_cascade", 2, "model.type", ("glem_sage",)), ("glem", 4, "model.type", ("glem_sage", "glem_gcn"))]
    for mode, stages, key, values in plan:
        for place, value in enumerate(values):
            scores = [(0.7 + place / 100, 0.7), (0.74, 0.73), (0.73, 0.74), (0.78 + place / 100, 0.76)][:stages]
            settings = {"lm.lora_rank": 0, "glem.node_features": "static" if mode == "glem_gnn" else "text", key: value}
            save_run(tmp_path / f"{mode}-{value}", 0, scores, mode=mode, settings=settings)
    board = board_of(tmp_path)
    assert board.axes == {
        "model.type": {
            "glem_gcn": ["glem-glem_gcn"],
            "glem_mlp": ["glem_gnn-glem_mlp"],
            "glem_sage": ["glem-glem_sage", "glem_gnn-glem_sage"],
        },
        "lm.lora_rank": {"0": ["glem_lm-0"], "8": ["glem_lm-8"]},
    }
    final = {name: row.method for name, row in board.final_rows.items()}
    assert final["glem_lm-8"] == "LM" and final["glem_cascade-glem_sage"] == "Cascade"
    assert final["glem-glem_gcn"] == final["glem-glem_sage"] == "GLEM-GNN"


def test_published_rows_change_only_on_purpose() -> None:
    """They were checked against their sources one by one: so must be what changes this hash."""
    assert fingerprint(PUBLISHED.read_bytes()) == "c98ef0b9f3c9ca9a"
    facts = {name: dict(zip(FACTS, numbers, strict=True)) for name, numbers in PUBLISHED_GRAPHS.items()}
    rows = {name: published_for(name, found)[0] for name, found in facts.items()}
    assert {name: len(found) for name, found in rows.items()} == {
        "ogbn-arxiv": 19, "ogbn-products": 14, "ogbn-papers100M": 9,
    }  # fmt: skip
    first, *_, giant = rows["ogbn-arxiv"][:7]
    assert first == Row(
        "GLEM+RevGAT", 10, Spread(0.7746, 0.0018), Spread(0.7694, 0.0025), name="GLEM+RevGAT", source=first.source
    )
    assert first.source == "OGB leaderboard"
    assert (giant.method, str(giant.valid.mean), giant.test) == ("MLP on GIANT features", "nan", Spread(0.7306))
    assert published_for("debian", {}) == ([], [])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"nodes": 169_344}, "the number of nodes is 169,344, expected 169,343"),
        ({"test": 48_604}, "the number of test nodes is 48,604, expected 48,603"),
        ({"edges": 1_000_000}, "the number of edges is 1,000,000, expected 1,157,799"),
        ({"edges": 1_166_243}, ""),  # as OGB counts them
        ({"valid": None}, "the number of valid nodes is not recorded, expected 29,799"),
    ],
)
def test_a_graph_that_is_only_named_as_a_published_one_is_not_compared(
    tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    facts = {key: value for key, value in (ARXIV["facts"] | changes).items() if value is not None}
    save_run(tmp_path / "glem", 0, dataset="ogbn-arxiv", facts=facts)
    board = board_of(tmp_path)
    assert bool(board.published) == (why == "")
    assert [why in note for note in board.notes if note.startswith("published results")] == [True] * (why != "")


def test_published_rows_stand_beside_with_their_source(tmp_path: Path) -> None:
    save_run(tmp_path / "glem", 0, **ARXIV)
    board = board_of(tmp_path)
    assert "GLEM+RevGAT [published: OGB leaderboard]" in printed(board)
    page = render_page([board])
    assert page.count(">published</span>") == 19 and "TAPE+RevGAT" in page and "OGB leaderboard" in page
    assert "| 77.46 ± 0.18 | 76.94 ± 0.25 |" in to_markdown([board])
    rows = list(csv.DictReader(io.StringIO(to_csv([board]))))
    published = [row for row in rows if row["source"] != "this run"]
    assert len(published) == 19 and {row["rank"] for row in published} == {""}
    (giant,) = [row for row in published if row["method"] == "MLP on GIANT features"]
    assert (giant["valid_mean"], giant["test_mean"], giant["runs"]) == ("", "0.7306", "10")


def test_markdown_escapes_what_would_break_the_table(tmp_path: Path) -> None:
    for place, act in enumerate(("relu", "a|b*")):
        scores = [(0.6 + place / 100, 0.6), (0.61 + place / 100, 0.6), (0.62, 0.6 + place / 9), (0.63, 0.6 + place / 9)]
        save_run(tmp_path / str(place + 100), 0, scores, settings={"gnn.act": act})
    lines = to_markdown([board_of(tmp_path)]).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 10
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert any("a\\|b\\*" in line for line in table)


def test_seeds_are_written_short() -> None:
    assert [seeds_text(seeds) for seeds in ((4,), (3, 7), tuple(range(10)))] == ["1 (4)", "2 (3, 7)", "10 (0-9)"]
