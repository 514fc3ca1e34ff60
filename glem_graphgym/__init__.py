"""GLEM as a plugin of GraphGym: importing this package registers all components under their names."""

import sys

__version__ = "0.2.0"

# ``python -m glem_graphgym``: start the program anew before PyTorch is imported, because OpenMP must be set up by then.
if sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)].endswith("glem_graphgym"):
    from glem_graphgym.__main__ import start_program

    start_program(sys.argv[1:], sys.orig_argv[1 : -len(sys.argv)])

from glem_graphgym.registered import config, loader, loss, metrics, networks, optim, train  # noqa: F401
