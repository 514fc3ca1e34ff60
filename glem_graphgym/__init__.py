"""GLEM as a plugin of GraphGym: importing this package registers every component under its name."""

import sys

__version__ = "0.2.0"

# ``python -m glem_graphgym``: the program starts anew, before PyTorch is imported, as OpenMP has to be set up by then.
if sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)].endswith("glem_graphgym"):
    from glem_graphgym.__main__ import start_program

    start_program(sys.argv[1:], sys.orig_argv[1 : -len(sys.argv)])

from glem_graphgym.registered import config, loader, loss, metrics, networks, optim, train  # noqa: F401
