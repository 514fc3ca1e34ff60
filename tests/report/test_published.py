from __future__ import annotations

import pytest

from glem_graphgym.report.published import PUBLISHED, Published, published_for

# method | valid | test | runs | source, as they were checked
TABLE = {
    "ogbn-arxiv": """
        GLEM+RevGAT | .7746 ± .0018 | .7694 ± .0025 | 10 | OGB leaderboard
        GLEM+GAMLP | .7695 ± .0014 | .7562 ± .0023 | 10 | authors' README
        GLEM+GCN | .7686 ± .0019 | .7593 ± .0019 | 10 | authors' README
        MLP on OGB features | .5765 | .5550 | 10 | OGB leaderboard
        GCN on OGB features | .7300 | .7174 | 10 | OGB leaderboard
        SAGE on OGB features | .7277 | .7149 | 10 | OGB leaderboard
        MLP on GIANT features | – | .7306 | 10 | GIANT README, OGB
        SAGE on GIANT features | .7595 | .7435 | 10 | GIANT README, OGB
        RevGAT on GIANT features | .7701 | .7590 | 10 | GIANT README, OGB
        TAPE+RevGAT | .7785 | .7750 | 10 | OGB leaderboard
        SimTeG+TAPE+RevGAT | .7846 | .7803 | 10 | OGB leaderboard
    """,
    "ogbn-products": """
        GLEM+GIANT+SAGN+SCR | .9400 ± .0003 | .8737 ± .0006 | 10 | OGB leaderboard
        GLEM+GAMLP | .9419 ± .0001 | .8509 ± .0021 | 10 | authors' README
        MLP on OGB features | .7554 | .6106 | 10 | OGB leaderboard
        SAGE on OGB features | .9224 | .7850 | 10 | OGB leaderboard
        GAMLP on OGB features | .9312 | .8354 | 10 | OGB leaderboard
    """,
    "ogbn-papers100M": """
        GLEM+GIANT+GAMLP | .7354 ± .0001 | .7037 ± .0002 | 3 | OGB leaderboard
        GLEM+GAMLP | .7211 ± .0006 | .6891 ± .0012 | 3 | older authors' README
        MLP on OGB features | .4960 | .4724 | 3 | OGB leaderboard
        SGC on OGB features | .6648 | .6329 | 3 | OGB leaderboard
        GAMLP on OGB features | .7117 | .6771 | 3 | OGB leaderboard
    """,
}


def numbers(cell: str) -> tuple[float | None, float | None]:
    mean, _, std = cell.partition("±")
    return (None if "–" in mean else float(mean)), (float(std) if std else None)


@pytest.mark.parametrize("dataset", TABLE)
def test_rows_are_those_that_were_checked_and_no_other(dataset: str) -> None:
    lines = [[cell.strip() for cell in line.split("|")] for line in TABLE[dataset].strip().splitlines()]
    expected = [
        Published(dataset, method, *numbers(valid), *numbers(test), int(runs), source)  # type: ignore[arg-type]
        for method, valid, test, runs, source in lines
    ]
    assert published_for(dataset) == expected


def test_no_row_is_of_another_dataset() -> None:
    assert {row.dataset for row in PUBLISHED} == set(TABLE)
    assert published_for("debian") == []
