"""Published results, for comparison: exactly those that could be checked, with where they stand."""

from __future__ import annotations

from dataclasses import dataclass

OGB = "OGB leaderboard"
AUTHORS = "authors' README"
OLDER_AUTHORS = "older authors' README"
GIANT = "GIANT README, OGB"


@dataclass(frozen=True)
class Published:
    """A result as it was published, a share 0-1; None where a cell could not be checked.

    Attributes:
        dataset: OGB's name of the graph.
        method: as published.
        valid, test: mean accuracy over the runs.
        valid_std, test_std: standard deviation.
        runs: how many.
        source: where the row stands.
    """

    dataset: str
    method: str
    valid: float | None
    valid_std: float | None
    test: float
    test_std: float | None
    runs: int
    source: str


# Never fill a None from memory: it means that nobody has looked the number up.
PUBLISHED = (
    Published("ogbn-arxiv", "GLEM+RevGAT", 0.7746, 0.0018, 0.7694, 0.0025, 10, OGB),
    Published("ogbn-arxiv", "GLEM+GAMLP", 0.7695, 0.0014, 0.7562, 0.0023, 10, AUTHORS),
    Published("ogbn-arxiv", "GLEM+GCN", 0.7686, 0.0019, 0.7593, 0.0019, 10, AUTHORS),
    Published("ogbn-arxiv", "MLP on OGB features", 0.5765, None, 0.5550, None, 10, OGB),
    Published("ogbn-arxiv", "GCN on OGB features", 0.7300, None, 0.7174, None, 10, OGB),
    Published("ogbn-arxiv", "SAGE on OGB features", 0.7277, None, 0.7149, None, 10, OGB),
    Published("ogbn-arxiv", "MLP on GIANT features", None, None, 0.7306, None, 10, GIANT),
    Published("ogbn-arxiv", "SAGE on GIANT features", 0.7595, None, 0.7435, None, 10, GIANT),
    Published("ogbn-arxiv", "RevGAT on GIANT features", 0.7701, None, 0.7590, None, 10, GIANT),
    Published("ogbn-arxiv", "TAPE+RevGAT", 0.7785, None, 0.7750, None, 10, OGB),
    Published("ogbn-arxiv", "SimTeG+TAPE+RevGAT", 0.7846, None, 0.7803, None, 10, OGB),
    Published("ogbn-products", "GLEM+GIANT+SAGN+SCR", 0.9400, 0.0003, 0.8737, 0.0006, 10, OGB),
    Published("ogbn-products", "GLEM+GAMLP", 0.9419, 0.0001, 0.8509, 0.0021, 10, AUTHORS),
    Published("ogbn-products", "MLP on OGB features", 0.7554, None, 0.6106, None, 10, OGB),
    Published("ogbn-products", "SAGE on OGB features", 0.9224, None, 0.7850, None, 10, OGB),
    Published("ogbn-products", "GAMLP on OGB features", 0.9312, None, 0.8354, None, 10, OGB),
    Published("ogbn-papers100M", "GLEM+GIANT+GAMLP", 0.7354, 0.0001, 0.7037, 0.0002, 3, OGB),
    Published("ogbn-papers100M", "GLEM+GAMLP", 0.7211, 0.0006, 0.6891, 0.0012, 3, OLDER_AUTHORS),
    Published("ogbn-papers100M", "MLP on OGB features", 0.4960, None, 0.4724, None, 3, OGB),
    Published("ogbn-papers100M", "SGC on OGB features", 0.6648, None, 0.6329, None, 3, OGB),
    Published("ogbn-papers100M", "GAMLP on OGB features", 0.7117, None, 0.6771, None, 3, OGB),
)


def published_for(dataset: str) -> list[Published]:
    """The published rows of a dataset, in the order above; none for a dataset that nobody published on."""
    return [row for row in PUBLISHED if row.dataset == dataset]
