"""Results of finished runs: one frame, and every table, page and submission as a view of it."""

from glem_graphgym.report.experiments import results

__all__ = ["results"]
