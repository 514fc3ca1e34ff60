"""Imports the user's own modules, so that a configuration can name what they register."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from glem_graphgym.config.keys import ConfigError, shown
from glem_graphgym.files import expand_path

PLUGINS = "glem.plugins"


def import_plugins(plugins: Iterable[Any]) -> None:
    """Import each Python file or module, unless it has been imported.

    Args:
        plugins: value of ``glem.plugins``. The folder of a file is added to ``sys.path``, for its own imports.

    Raises:
        ConfigError: one cannot be imported, or another module has the name of a file.
    """
    for plugin in map(str, plugins):
        try:
            file = Path(expand_path(plugin)).resolve(strict=True) if plugin.endswith(".py") else None
            if file is not None and str(file.parent) not in sys.path:
                sys.path.append(str(file.parent))
            module = importlib.import_module(plugin if file is None else file.stem)
        except (Exception, SystemExit) as error:  # the code of a plugin can fail in any way
            raise ConfigError(
                f"{PLUGINS}: '{shown(plugin)}' cannot be imported ({type(error).__name__}: {shown(str(error))}); "
                "expected a Python file or a module on PYTHONPATH"
            ) from error
        if file is not None and (module.__file__ is None or not file.samefile(module.__file__)):
            raise ConfigError(
                f"{PLUGINS}: '{shown(plugin)}' has the name of another module, {module.__file__ or file.stem}; rename "
                "the file"
            )
