"""Whole programs: start-up, and a GLEM run by stage."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Row, row_of, seconds_of

RUN = Path(__file__).resolve().parent.parent
IMPORT = """
import time, torch_geometric.graphgym
start = time.perf_counter()
import glem_graphgym
print(time.perf_counter() - start)
"""


def startup(repeats: int) -> Iterator[Row]:
    """``run/main.py --help``, and what importing the plugin adds to importing GraphGym."""
    command = [sys.executable, str(RUN / "main.py"), "--help"]
    seconds = seconds_of({"": lambda: subprocess.run(command, check=True, capture_output=True)}, repeats)[""]
    yield row_of("startup", "run/main.py --help", seconds, "s")
    added = [
        float(subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True, text=True).stdout)
        for _ in range(min(repeats, 3))
    ]
    yield row_of("startup", "import glem_graphgym, beyond GraphGym's own import", added, "s")


def run(repeats: int) -> Iterator[Row]:
    """``configs_gg/glem_debian_small.yaml`` from tokens to tables, once, by stage."""
    config = RUN.parent / "configs_gg" / "glem_debian_small.yaml"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(RUN / "main.py"), "--cfg", str(config), "out_dir", folder]
        subprocess.run([*command, "dataset.dir", f"{folder}/data"], check=True, capture_output=True)
        stages = sorted(Path(folder).glob("glem_debian_small/0/stages/*/stage.json"))
        found = [json.loads(file.read_text()) for file in stages]
    for stage in found:
        yield Row("run", f"glem_debian_small, {stage['name']}", stage["seconds"], "s")
    yield Row("run", "glem_debian_small, all stages", sum(stage["seconds"] for stage in found), "s")
