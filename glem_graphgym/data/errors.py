"""The one error of bad data, and all that is wrong said at once."""

from __future__ import annotations

from collections.abc import Callable


class DataError(ValueError):
    """The data at hand cannot be used as it is; the message names the file or key and what to do."""


def check_all(*checks: Callable[[], object]) -> None:
    """Run all checks, also after one that fails.

    Raises:
        DataError: what the checks that failed said, each in a line of its own where there are several.
    """
    found = []
    for check in checks:
        try:
            check()
        except (ValueError, OSError) as error:
            found.append(str(error))
    found = list(dict.fromkeys(found))
    if len(found) == 1:
        raise DataError(found[0])
    if found:
        lines = (f"  {number}. {error}" for number, error in enumerate(found, start=1))
        raise DataError("\n".join([f"{len(found)} things are missing or wrong:", *lines]))
