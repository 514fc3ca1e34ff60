"""constraints-lowest.txt pins each package to the oldest version that setup.cfg admits."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = {"hypothesis", "mypy", "pandas-stubs", "pytest", "pytest-xdist", "ruff", "types-PyYAML", "types-tqdm"}


def test_lowest_constraints_are_the_lower_bounds() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    tried = re.findall(r"%\((\w+)\)s", extras.get("dev", raw=True))
    text = "\n".join([setup["options"]["install_requires"], extras["dev"], *(extras[name] for name in tried)])
    bounds = dict(re.findall(r"^([\w-]+)>=([\d.]+)", text, re.MULTILINE))
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)", (ROOT / "constraints-lowest.txt").read_text(), re.MULTILINE))
    assert {name: version.removesuffix(".0") for name, version in pins.items()} == {
        name: version.removesuffix(".0") for name, version in bounds.items() if name not in TOOLS
    }
