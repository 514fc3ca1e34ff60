"""docs/tour.md is true: its files are written and its commands run, in their order, on tiny sizes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/tour.md").read_text(encoding="utf-8")
# What makes it tiny: (text of the page, what stands there in the test).
SMALLER = (("epochs: 6", "epochs: 1"), ("max_epoch: 200", "max_epoch: 2"))
LEFT = {"make_words.py": "words.csv", "run/main.py": "results/words/0/summary.json"}
LEFT |= {
    "run/leaderboard.py": "results/words_grid_methods/leaderboard.html",
    "run/export.py": "words_lm/lm/modules.json",
}


def test_from_a_table_to_the_exported_model(tmp_path: Path, tiny_lm: Path) -> None:
    for name, content in re.findall(r"\n`([\w.]+)`:\n\n```\w+\n(.*?)```", PAGE, re.DOTALL):
        for given, smaller in (*SMALLER, ("lm: {", f"lm: {{model: {tiny_lm}, max_length: 32, ")):
            content = content.replace(given, smaller)
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "run").symlink_to(ROOT / "run")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    settings = {"PATH": path, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    commands = "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)).splitlines()
    assert commands[:2] == ["bash run/setup.sh demo", "source .venv/bin/activate"]
    for command in commands[2:]:
        command = command.replace("REPEAT=3", "REPEAT=2")
        ended = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert ended.returncode == 0, (command, ended.stdout, ended.stderr)
        if left := [file for program, file in LEFT.items() if program in command]:
            assert (tmp_path / left[0]).exists(), (command, ended.stdout)
        if "leaderboard" in command:
            assert "GLEM-GNN" in (tmp_path / "results/words_grid_methods/leaderboard.csv").read_text()
    assert len(commands) == 7
