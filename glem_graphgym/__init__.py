"""GLEM as a plugin of GraphGym: importing this package registers every component under its name."""

__version__ = "0.1.0"

from glem_graphgym.registered import config, loader, loss, metrics, networks, optim, train  # noqa: F401
