"""Machines unlike the one at hand: without apt, a network and other programs, and without what Linux alone has."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Functions of os and folders that only Linux has. Libraries get by without them: only we are denied them.
ELSEWHERE = """
import os, sys
import torch, transformers, torch_geometric.graphgym

DENIED = ("/proc", "/sys", "/var/lib/apt", "/etc/apt")

def deny(event, arguments):
    if event in ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "socket.connect", "socket.getaddrinfo"):
        raise FileNotFoundError(event)
    if event == "open" and str(arguments[0]).startswith(DENIED):
        frame = sys._getframe(1)
        while frame and "glem_graphgym" not in frame.f_code.co_filename:
            if "site-packages" in frame.f_code.co_filename:
                return
            frame = frame.f_back
        raise FileNotFoundError(arguments[0])

for name in dir(os):
    if name.startswith(("sched_", "posix_fa")):
        delattr(os, name)
sys.platform = "darwin"
sys.addaudithook(deny)
sys.argv = ["main.py", *sys.argv[1:]]
sys.path.insert(0, "run")
import runpy
runpy.run_path("run/main.py", run_name="__main__")
"""


@pytest.mark.slow
def test_the_default_graph_and_a_run_on_it_need_python_alone(tmp_path: Path, tiny_lm: Path) -> None:
    options = {
        "dataset.dir": tmp_path / "datasets",
        "dataset.tag_max_nodes": 400,
        "out_dir": tmp_path / "results",
        "lm.model": tiny_lm,
        "lm.max_length": 8,
        "lm.epochs": 1,
        "e_step.epochs": 1,
        "optim.max_epoch": 2,
    }
    words = [str(word) for option in options.items() for word in option]
    command = [sys.executable, "-c", ELSEWHERE, "--cfg", "configs_gg/glem_debian_small.yaml", *words]
    ended = subprocess.run(command, cwd=ROOT, env={"PATH": ""}, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "debian: 400 nodes" in ended.stdout


# Bash 4 and GNU alone have these; macOS has Bash 3.2 and BSD's tools.
NOT_PORTABLE = re.compile(
    r"mapfile|readarray|declare -[Ag]|coproc|wait -n|\|&|&>>|\$\{\w+(,,|\^\^|@)|readlink -f|realpath|sed -i|stat -c|"
    r"date -d|grep -P|xargs -r|sort -V|mktemp --|\btimeout\b|\bflock\b|\bseq\b|\btac\b|\bgetent\b|cp --|ls --"
)


@pytest.mark.parametrize("file", sorted((ROOT / "run").rglob("*.sh")), ids=lambda file: file.name)
def test_scripts_use_what_every_system_has(file: Path) -> None:
    assert NOT_PORTABLE.findall(file.read_text(encoding="utf-8")) == []
