"""The README and the pages under docs/ are true: the table of keys, the files, links, commands and code in them."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
import shlex
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from torch import Tensor
from torch_geometric.graphgym.config import cfg, set_cfg

from glem_graphgym.config import keys_table, load_config
from glem_graphgym.em import e_step
from glem_graphgym.em.objective import glem_loss
from tests.bad_inputs.conftest import WORKING, load_program

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "glem_graphgym"
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = {path.relative_to(ROOT).as_posix(): path for path in [README, ROOT / "CONTRIBUTING.md", *DOCS]}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}


def commands_of(text: str) -> list[str]:
    """Every line of a bash block, and every ``python run/...`` or ``bash run/...`` in the running text."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    inline = re.findall(r"`((?:[A-Z_]+=\S+\s+)*(?:python|bash)\s+run/[^`]+)`", prose)
    return [line for line in lines if line and not line.startswith("#")] + [" ".join(found.split()) for found in inline]


FOR_THE_SITE = ('pip install -e ".[docs]"', "mkdocs build --strict")  # continuous integration runs them
# The tour's commands are run (end_to_end/test_tour.py); here all others are held against programs and configurations.
COMMANDS = sorted({(name, line) for name, text in TEXTS.items() if "tour" not in name for line in commands_of(text)})


def anchors_of(text: str) -> set[str]:
    """The fragments under which GitHub shows the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_table_of_keys_is_the_code() -> None:
    assert keys_table() in TEXTS["docs/config.md"]


def test_the_readme_is_short() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES)
def test_files_that_it_names_exist(page: str) -> None:
    named = set(re.findall(r"(?:configs_gg|run|docs|glem_graphgym|tests)/[\w/]*\.(?:yaml|txt|sh|py|md)", TEXTS[page]))
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_each_link_leads_somewhere_and_the_readme_leads_to_each_page() -> None:
    from_readme = set()
    for page, text in TEXTS.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            link = urlparse(target)
            if link.scheme:
                continue
            file = (PAGES[page].parent / link.path).resolve() if link.path else PAGES[page]
            assert file.exists(), (page, target)
            if link.fragment:
                assert link.fragment in anchors_of(file.read_text(encoding="utf-8")), (page, target)
            if page == "README.md":
                from_readme.add(file)
    assert set(PAGES.values()) - from_readme == {README}


def test_there_are_commands_on_most_pages() -> None:
    assert len({page for page, _ in COMMANDS}) > len(PAGES) / 2 and len(COMMANDS) > 25


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_its_commands_are_understood(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs exist, their flags are known, and configuration and options load."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(command, comments=True)
    settings = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
    for folder, ending, variable in (("configs_gg", "yaml", "CONFIG"), ("configs_gg/grids", "txt", "GRID")):
        assert variable not in settings or Path(folder, f"{settings[variable]}.{ending}").exists()
    programs = [place for place, word in enumerate(words) if re.fullmatch(r"run/\w+\.(py|sh)", word)]
    if not programs:
        assert words[0] == "source" or command in FOR_THE_SITE
        return
    place = programs[0]
    assert Path(words[place]).exists()
    program = load_program(Path(words[place]).stem) if words[place].endswith(".py") else None
    if not hasattr(program, "parse_args"):
        return
    args: argparse.Namespace = program.parse_args(words[place + 1 :])
    if hasattr(args, "cfg_file"):
        load_config(cfg, args.cfg_file, args.opts)


# What a page names in the code: (module, name in it); in docs/architecture.md in the order of its two walks.
NAMED = {
    page: re.findall(r"`([\w/]+\.py):([\w.]+)`", TEXTS[page]) for page in ("docs/architecture.md", "docs/method.md")
}
WALK = NAMED["docs/architecture.md"]


@pytest.mark.parametrize("page", NAMED)
def test_what_it_names_is_in_the_code(page: str) -> None:
    assert len(NAMED[page]) > 12
    for file, name in NAMED[page]:
        found = importlib.import_module(f"glem_graphgym.{file.removesuffix('.py').replace('/', '.')}")
        for part in name.split("."):
            found = getattr(found, part)


def test_its_main_runs_a_configuration_and_the_walks_take_the_way_of_its_e_step(
    tmp_path: Path, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (main,) = re.findall(r"```python\n(.*?)```", TEXTS["README.md"], re.DOTALL)
    config = tmp_path / "own.yaml"
    text = WORKING.replace("precision: 32", "precision: auto")  # which yacs reads as a number
    config.write_text(text.format(folder=tmp_path, tiny_lm=tiny_lm), encoding="utf-8")
    stacks: list[list[tuple[str, str]]] = []

    def noted_loss(*args: Any, **how: Any) -> Tensor:
        codes = [frame.f_code for frame, _ in traceback.walk_stack(inspect.currentframe())]
        ours = [(Path(code.co_filename), code.co_name) for code in reversed(codes)]
        stacks.append([(str(file.relative_to(PACKAGE)), name) for file, name in ours if PACKAGE in file.parents])
        return glem_loss(*args, **how)

    monkeypatch.setattr(e_step, "glem_loss", noted_loss)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py", "--cfg", str(config), "glem.beta", "0.1"])
    set_cfg(cfg)
    exec(compile(main, "README.md", "exec"), {})
    assert cfg.glem.beta == 0.1
    stages = [path.name for path in sorted((tmp_path / "results/own/0/stages").iterdir())]
    assert stages == ["00_lm_gold", "01_gnn_gold", "02_e_step_1", "03_m_step_1"]

    stack = stacks[-1]  # of the E-step: no other step after it trains a language model
    walked = list(dict.fromkeys((file, name.rpartition(".")[2]) for file, name in WALK))
    on_the_way = [place for place in walked if place in stack]
    assert on_the_way == [place for place in stack if place in walked]
    assert [name for _, name in on_the_way] == ["train", "train_run", "run_em", "e_step", "fit", "fit", "forward"]


def test_each_message_of_the_troubleshooting_is_in_the_source() -> None:
    """``…`` stands for what a message fills in."""
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "run").rglob("*.py")]
    said = "\n".join(literal for file in files for literal in literals(file))
    said += (ROOT / "run/setup.sh").read_text(encoding="utf-8")
    messages = TEXTS["docs/troubleshooting.md"].partition("## Results")[0]
    rows = re.findall(r"^\| `([^`]+)` \|.*\|.*\|$", messages, re.MULTILINE)
    assert len(rows) > 20
    for message in rows:
        pattern = r"[^\n]*".join(map(re.escape, message.split("…")))
        assert re.search(pattern, said), message


def literals(file: Path) -> Iterator[str]:
    """The texts in a Python file, each on one line, with … for what is filled in."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        values = node.values if isinstance(node, ast.JoinedStr) else [node]
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in values)
        yield text.replace("\n", " ")


def test_every_page_is_on_the_site() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [path.name for path in DOCS if not re.search(rf"[ \[]{path.name}[,\]]", site)] == []


def test_nothing_is_left_to_be_filled_in() -> None:
    assert [page for page, text in TEXTS.items() if "@@" in text] == []
