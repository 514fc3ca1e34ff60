"""The stages of a run before they are done, and about how long is left of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from glem_graphgym.em.plan import Plan, PlannedStage, Watch, in_words, title_of

LM, EM, GNN = {"batch": 90.0, "token": 10.0}, {"batch": 280.0, "token": 20.0}, {"batch": 50.0}
GLEM = [
    PlannedStage("lm_gold", "LM", LM),
    PlannedStage("gnn_gold", "GNN", GNN, seconds_before=500.0),
    PlannedStage("e_step_1", "LM", EM),
    PlannedStage("m_step_1", "GNN", GNN),
    PlannedStage("ensemble", "none"),
]


def bar(unit: str, share: float, seconds: float) -> Any:
    return SimpleNamespace(unit=unit, n=share * 1000, total=1000, format_dict={"elapsed": seconds})


def test_in_words() -> None:
    assert in_words("e_step_12") == (
        "E-step 12, the language model learns from gold labels and the GNN's pseudo-labels"
    )
    assert [title_of(name) for name in ("lm_gold", "m_step_3", "joint")] == ["LM", "M-step 3", "LM and GNN"]
    assert not any("_" in in_words(stage.name) for stage in GLEM)


class TestLeft:
    def test_nothing_is_said_where_nothing_is_known(self) -> None:
        assert Plan(GLEM).time_left(0) == Plan().time_left(0) == ""
        assert Plan(GLEM).numbered(1) == "stage 2 of 5"
        assert Plan(GLEM, at_most=True).numbered(1) == "stage 2, at most 5"
        assert Plan().numbered(1) == "stage 2"

    def test_by_the_stages_of_the_same_model_that_are_done(self) -> None:
        plan = Plan(GLEM)
        plan.seconds["lm_gold"] = 100.0  # a second per unit of work
        assert plan.time_left(1) == "more than 5 min left"  # the E-step; how long the GNN's stages take is not known
        plan.seconds["gnn_gold"] = 560.0  # of which 500 were spent before
        assert plan.time_left(2) == "about 6 of 17 min left"  # 300 and 60; 660 are gone
        plan.seconds["e_step_1"] = 300.0
        assert plan.time_left(3) == "about 1 of 17 min left"
        plan.seconds["m_step_1"] = 60.0
        assert plan.time_left(4) == ""

    def test_by_another_seed(self) -> None:
        known = {"lm_gold": 60.0, "gnn_gold": 620.0, "e_step_1": 120.0, "m_step_1": 60.0}
        assert Plan(GLEM, seconds_of_other_seeds=known).time_left(0) == "about 6 min left"

    def test_by_what_was_measured_before_the_stages(self) -> None:
        plan = Plan(GLEM, prior={"LM": 2.0})
        assert plan.time_left(0) == "more than 13 min left"
        plan.seconds["lm_gold"] = 100.0
        assert plan.time_left(1) == "more than 5 min left"  # a stage says more

    def test_where_em_ends_by_itself_it_is_a_bound(self) -> None:
        plan = Plan(GLEM, at_most=True)
        plan.seconds["lm_gold"] = 100.0
        assert plan.time_left(1) == ""
        plan.seconds["gnn_gold"] = 560.0
        assert plan.time_left(2) == "at most about 6 min left"

    def test_of_work_that_is_not_known_nothing_is_made_up(self) -> None:
        plan = Plan([PlannedStage("gnn_gold", "GNN"), PlannedStage("m_step_1", "GNN", GNN)])
        plan.seconds["gnn_gold"] = 100.0
        assert plan.time_left(1) == ""


class TestWatch:
    def test_the_first_stage_tells_of_the_later_ones(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("time.perf_counter", lambda: 0.0)
        plan = Plan(GLEM)
        watch = Watch(plan, 0, "lm_gold")
        assert watch.remark(bar("batch", 0.01, 60.0)) == ""  # too little to go by
        assert watch.remark(bar("batch", 0.5, 1.0)) == ""
        assert watch.remark(bar("batch", 0.5, 90.0)) == "more than 12 min left"  # 55 + 300 units of 2 s
        assert watch.remark(bar("edge", 0.1, 1.0)) == ""

    def test_training_that_ends_early_leaves_nothing_of_it(self) -> None:
        watch = Watch(Plan(GLEM[:1]), 0, "lm_gold")
        watch.remark(bar("batch", 0.5, 90.0))
        assert watch.work_left() == 55
        watch.remark(bar("token", 0.1, 2.0))
        assert watch.work_left() == pytest.approx(9)
        assert watch.done() == (92.0, pytest.approx(46))

    def test_what_bars_are_called(self) -> None:
        watch = Watch(Plan(GLEM), 2, "e_step_1")
        assert watch.title("e_step_1") == "E-step 1"
        assert watch.title("e_step_1, encoding") == "E-step 1, encoding"
        assert watch.title("layer 1 of 2") == "E-step 1, layer 1 of 2"
