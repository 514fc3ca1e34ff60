"""The train modes: for each a program over the steps of a `Run`, the models that it trains and the methods it reports.

`run_em` is GLEM: variational EM between a language model q and a GNN p, in the paper's order (arXiv 2210.14709).
The others are baselines: `run_lm`, `run_gnn` and `run_cascade` are parts of GLEM, `run_joint` is training end to end.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glem_graphgym.em.run import Run

UNTIL_PLATEAU = -1  # as the number of EM iterations: stop after one that raises neither model's best validation score


def run_lm(run: Run) -> None:
    """The LM alone, fine-tuned on gold."""
    run.fit_lm_on_gold()


def run_gnn(run: Run) -> None:
    """The GNN alone, on features that need no fine-tuned LM."""
    run.fit_gnn_on_gold(None)
    run.combine()


def run_cascade(run: Run) -> None:
    """The LM, then the GNN on its embeddings, without pseudo-labels: GLEM with zero EM iterations."""
    run.fit_gnn_on_gold(run.fit_lm_on_gold())
    run.combine()


def run_joint(run: Run) -> None:
    """LM and GNN trained together end to end on gold, on sampled neighbourhoods."""
    run.fit_jointly()
    run.combine()


def run_em(run: Run) -> None:
    """GLEM: both models on gold, then E-steps and M-steps by turns."""
    gold_lm = q = run.fit_lm_on_gold()
    p = run.fit_gnn_on_gold(q)
    for iteration in _iterations(run):
        if run.settings.order == "lm_first":
            q = run.e_step(iteration, run.teacher_logits(iteration, p), q, gold_lm)
            p = run.m_step(iteration, q, q.logits)
        else:
            p = run.m_step(iteration, q, run.teacher_logits(iteration, q))
            q = run.e_step(iteration, p.logits, q, gold_lm)
        run.forget_weights(q)
    run.combine()


def _iterations(run: Run) -> Iterator[int]:
    """Count from 1 up to the number asked for, or until an iteration raises neither model's best validation score."""
    settings, finished = run.settings, run.journal.finished
    if settings.iterations != UNTIL_PLATEAU:
        yield from range(1, settings.iterations + 1)
        return
    best = {"LM": -math.inf, "GNN": -math.inf}
    for iteration in itertools.count(1):
        scores = {model: max(stage.valid for stage in finished if stage.key.model == model) for model in best}
        if iteration > settings.max_iterations or all(scores[model] <= best[model] for model in best):
            return
        best = scores
        yield iteration


@dataclass(frozen=True)
class Mode:
    """A train mode: the program that does a run's stages; whether it trains an LM, a GNN, or both as one (joint)."""

    program: Callable[[Run], None]
    methods: tuple[str, ...]  # rows of its results, in the order of its stages; the last is the mode's final method
    lm: bool = False
    gnn: bool = False
    joint: bool = False


# train.mode -> `Mode`; a mode whose stages begin another's comes before it.
MODES: dict[str, Mode] = {
    "glem_lm": Mode(run_lm, ("LM",), lm=True),
    "glem_gnn": Mode(run_gnn, ("GNN",), gnn=True),
    "glem_cascade": Mode(run_cascade, ("LM", "Cascade"), lm=True, gnn=True),
    "glem_joint": Mode(run_joint, ("Joint",), joint=True),
    "glem": Mode(run_em, ("LM", "Cascade", "GLEM-LM", "GLEM-GNN"), lm=True, gnn=True),
}
METHODS = tuple(dict.fromkeys(method for mode in MODES.values() for method in mode.methods))
