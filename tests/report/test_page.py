"""The page: complete, self-contained, escaped; in a real browser where one is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glem_graphgym.report.charts import Chart, Scale, nice_step
from glem_graphgym.report.details import agreement_of, comparison_data, kinds_of_nodes
from glem_graphgym.report.leaderboard import read_boards
from glem_graphgym.report.page import environment, render_page
from glem_graphgym.report.panels import COLORED, FOLDER, color_of, mark_of, seconds_text
from glem_graphgym.report.reliability import describe_run
from tests.report.conftest import CLASSES, Elements, labels_of_nodes, save_run, save_stock_run, split_of_nodes

CSS = "\n" + (FOLDER / "page.css").read_text(encoding="utf-8")

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def test_every_method_has_a_colour_in_every_theme() -> None:
    for method in COLORED:
        assert len(re.findall(rf"[;{{\n]{color_of(method)[4:-1]}:#[0-9a-f]{{6}};", CSS)) == 3


def test_the_page_tells_the_facts_of_a_graph_that_runs_noted(tmp_path: Path) -> None:
    facts = {"nodes": 63666, "edges": 296480, "classes": 22, "label_rate": 0.1, "empty_texts": 0.00026}
    for name, more in (("older", {}), ("newer", {"facts": {**facts, "edge_homophily": 0.714}})):
        save_run(tmp_path / name, 0, **more)
    line = "63,666 nodes · 296,480 edges · 22 classes · edge homophily 0.71 · label rate 10 % · empty texts 0.026 %"
    assert line in render_page(read_boards([tmp_path]))
    assert "homophily" not in render_page(read_boards([tmp_path / "older"]))
    save_run(tmp_path / "unlabelled", 0, facts={**facts, "edge_homophily": None})
    assert "22 classes · label rate" in render_page(read_boards([tmp_path / "unlabelled"]))


METHODS_OF_RUNS = [*COLORED, *(f"{gnn}+C&S" for gnn in ("GNN", "Cascade", "Joint", "GLEM-GNN")), "GraphGym"]


def test_no_two_methods_look_the_same_and_all_can_be_seen() -> None:
    assert len({(color_of(method), mark_of(method)) for method in METHODS_OF_RUNS}) == len(METHODS_OF_RUNS)
    themes = [dict(re.findall(r"(--[\w-]+):(#[0-9a-f]{3,6})", part)) for part in CSS.split("{color-scheme:")[1:]]
    assert len(themes) == 3
    for theme in themes:
        colors = {method: shown(color_of(method), theme) for method in METHODS_OF_RUNS}
        assert len({tuple(map(round, color)) for color in colors.values()}) == len(colors)
        surface = luminance(rgb(theme["--surface"]))
        for color in colors.values():
            low, high = sorted((luminance(color), surface))
            assert (high + 0.05) / (low + 0.05) >= 3  # WCAG, of graphical objects


def rgb(color: str) -> list[float]:
    digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
    return [int(digits[at : at + 2], 16) for at in (0, 2, 4)]


def shown(color: str, theme: dict[str, str]) -> list[float]:
    parts = [rgb(theme[name]) for name in re.findall(r"var\((--[\w-]+)\)", color)]
    share = int(found[1]) / 100 if (found := re.search(r"(\d+)%", color)) else 1
    return [share * first + (1 - share) * last for first, last in zip(parts[0], parts[-1], strict=True)]


def luminance(color: list[float]) -> float:
    linear = [c / 12.92 if (c := v / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for v in color]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def page_of(*dirs: Path) -> str:
    return render_page(read_boards(dirs))


def panel(page: str, title: str) -> str:
    (found,) = re.findall(rf"<figure[^>]*><figcaption><h3>{re.escape(title)}</h3>.*?</figure>", page, re.DOTALL)
    return found


def test_panels_without_data_say_what_is_missing(tmp_path: Path) -> None:
    save_stock_run(tmp_path / "stock", 0, [0.5, 0.6], 0.55)
    page = page_of(tmp_path / "stock")
    Elements(page)
    assert page.count('class="missing"') == 6
    save_run(tmp_path / "glem", 0)
    page = page_of(tmp_path / "glem")
    assert "No stage here has a predictions.json" in panel(page, "Calibration")
    assert 'class="missing"' not in panel(page, "Accuracy by EM iteration")
    assert "too few seeds" in page


def test_sensitivity_is_of_every_train_mode(tmp_path: Path) -> None:
    for mode, stages in (("glem_cascade", 2), ("glem", 4)):
        for place, network in enumerate(("glem_gcn", "glem_sage")):
            scores = [(0.7, 0.7), (0.71 + place / 100, 0.72), (0.7, 0.7), (0.73 + place / 100, 0.74)][:stages]
            save_run(tmp_path / f"{mode}-{network}", 0, scores, mode=mode, settings={"model.type": network})
    for rank in (0, 8):
        save_run(tmp_path / f"lm-{rank}", 0, [(0.6 + rank / 100, 0.6)], mode="glem_lm", settings={"lm.lora_rank": rank})
    page = page_of(tmp_path)
    Elements(page)
    networks = panel(page, "Sensitivity to model.type")
    for text in ("GLEM-GNN, model.type = glem_sage, valid: 74.00 %", "Cascade, model.type = glem_gcn, valid: 71.00 %"):
        assert text in networks
    assert "each train mode by its final method, and compared with itself alone" in networks
    assert "LM, lm.lora_rank = 8, valid: 68.00 %" in panel(page, "Sensitivity to lm.lora_rank")
    modes = panel(page, "Sensitivity to train.mode")
    assert all(f">{mode}</text>" in modes for mode in ("lm", "cascade", "glem"))
    assert all(f">{network}</text>" in modes for network in ("GCN", "SAGE"))  # lines from cascade to GLEM
    assert "other settings may differ" in modes
    assert "Sensitivity to train.mode" not in page_of(
        *(tmp_path / f"glem-{name}" for name in ("glem_gcn", "glem_sage"))
    )


def test_text_from_runs_is_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>&'
    for name, value in (("<i>a</i>&", evil), ("b'\"", "plain")):
        save_run(tmp_path / name.replace("/", "|"), 0, dataset=evil, settings={"gnn.act": value}, described=True)
    page = render_page(read_boards([tmp_path]), title=evil)
    assert evil in Elements(page).found
    assert page.count("<script>") == 1 and "<i>a" not in page and "<b>games" not in page
    assert "&lt;b&gt;games&lt;/b&gt;" in page


@given(st.floats(-1e6, 1e6), st.floats(1e-4, 1e6))
def test_ticks_lie_inside_and_are_few(low: float, width: float) -> None:
    ticks = Scale(low, low + width, 0, 100).ticks()
    assert all(low - width * 1e-6 - 1e-9 <= tick <= low + width * (1 + 1e-6) + 1e-9 for tick in ticks)
    assert len(ticks) <= 9


def test_a_logarithmic_scale_ends_where_its_range_does() -> None:
    scale = Scale(0.5, 50, 0, 100, log=True)
    assert [scale(value) for value in (0.5, 5, 50)] == [0, 50, 100]


def test_texts_of_ticks_do_not_run_into_each_other_and_their_places_stay() -> None:
    chart = Chart("", "", "", (0, 1000), (0, 1))
    ticks = [(0, "0 s"), (500, "8.33 min"), (540, "9 min"), (900, "15 min")]
    assert chart.apart(ticks) == [(0, "0 s"), (500, "8.33 min"), (540, ""), (900, "15 min")]


def test_steps_are_round() -> None:
    assert [nice_step(rough) for rough in (0.11, 0.23, 0.72, 1.0, 3.0, 7.5)] == [0.1, 0.2, 1.0, 1.0, 5.0, 10.0]
    texts = [seconds_text(value) for value in (0.5, 95, 120, 810.46, 7200)]
    assert texts == ["0.5 s", "95 s", "2 min", "13.5 min", "2 h"]


def svg(chart: Chart) -> str:
    return str(environment().get_template("chart.html").module.svg(chart))  # type: ignore[attr-defined]


@pytest.mark.parametrize("shape", ["circle", "square", "diamond"])
def test_a_mark_is_where_its_value_is(shape: str) -> None:
    chart = Chart("a", "x", "y", (0, 1), (0, 1))
    chart.dot(0.5, 0.5, "red", "", radius=5, shape=shape)
    mark = ET.fromstring(svg(chart))[-1]
    place = {name: float(value) for name, value in mark.items() if name not in ("class", "style", "transform")}
    sides = (("x", "width"), ("y", "height"))
    middle = [place.get(f"c{axis}", place.get(axis, 0) + place.get(side, 0) / 2) for axis, side in sides]
    assert middle == pytest.approx([chart.x(0.5), chart.y(0.5)])
    assert (mark.get("transform") is None) == (shape != "diamond")


def browse(folder: Path, file: Path, query: str, *flags: str) -> tuple[str, str]:
    """The page's elements after its script ran, and what the browser logged."""
    assert CHROMIUM is not None
    quiet = ["--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--disable-quic", "--enable-logging=stderr"]  # fmt: skip
    command = [CHROMIUM, "--headless", "--no-sandbox", *quiet, f"--user-data-dir={folder / 'profile'}", *flags,
               "--dump-dom", f"{file.as_uri()}?{query}"]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return result.stdout, result.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="no browser installed")
def test_a_browser_runs_the_page_without_errors_and_sorts_it(tmp_path: Path, grid: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(page_of(grid))

    def column(query: str, number: int) -> list[str]:
        dom, log = browse(tmp_path, file, query)
        assert "CONSOLE" not in log, log
        assert f'data-theme="{"dark" if "dark" in query else "light"}"' in dom
        rows = re.findall(r'<tbody class="row.*?</tr>', dom, re.DOTALL)
        return [re.findall(r'data-value="([^"]*)"', row)[number] for row in rows]

    assert column("theme=dark", 0) == [str(rank) for rank in range(1, 8)]
    tests = [float(value) for value in column("theme=light&sort=3", 3)]
    assert tests == sorted(tests, reverse=True)
    seconds = column("theme=dark&sort=9", 9)
    assert [float(value) for value in seconds[:-1]] == sorted(float(value) for value in seconds[:-1])
    assert seconds[-1] == ""  # not known: last


# A reader's steps, and what the page then shows.
STEPS = """<script>addEventListener("load", () => {
const shown = selector => [...document.querySelectorAll(selector)].filter(one => one.offsetParent).length;
const choose = (filter, value) => document.querySelector(`input[data-filter="${filter}"][value="${value}"]`).click();
const press = element => { element.focus(); if (document.activeElement === element) element.click(); };
const counts = [shown("tbody.row"), shown("tr.details")];
press(document.querySelector("button.name"));
counts.push(shown("tr.details"));
choose("Family", "GLEM");
counts.push(shown("tbody.row"));
choose("Columns", "test"), choose("Columns", "config");
counts.push(shown('th[data-column="test"]'), shown('td[data-column="config"]'));
press(document.getElementById("view"));
const select = document.querySelectorAll(".compare select")[1];
select.selectedIndex = 2;
select.dispatchEvent(new Event("change"));
counts.push(shown(".board"), shown(".pairs table"));
document.body.dataset.seen = counts.join(" ");
document.body.dataset.compared = document.querySelector(".pairs").textContent;
});</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no browser installed")
def test_rows_open_are_filtered_and_compared(tmp_path: Path, grid: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(page_of(grid).replace("</body>", STEPS))
    dom, log = browse(tmp_path, file, "")
    assert "CONSOLE" not in log, log
    (seen,) = re.findall(r'data-seen="([^"]*)"', dom)
    # 7 rows, of which 4 are GLEM's and the first opens; columns of 3 rows; then the tables of the comparison
    assert seen == "7 0 1 3 0 3 0 6"
    (compared,) = re.findall(r'data-compared="([^"]*)"', dom)
    for text in (
        "0, test76.60",
        "same class predicted",
        "the first alone is right",
        "seconds220",
        "glem.alpha",
        "science",
        "neighbours from 0 to 14.75",
    ):
        assert text in compared, text


def test_kinds_of_nodes_are_those_of_all_splits_and_unlike_nodes_are_not_compared(tmp_path: Path) -> None:
    """A graph with several fixed splits: each seed has test nodes of its own, here some without any of class 3."""
    for name, gain in (("a", 0.0), ("b", 0.05)):
        for seed, nodes in enumerate((np.arange(60, 100), np.flatnonzero(labels_of_nodes() != 3)[:80])):
            run = save_run(tmp_path / name, seed, [(0.7 + gain, 0.6)], mode="glem_lm", settings={"lm.lr": gain})
            split = split_of_nodes() | {"test": nodes}
            describe_run(run, labels_of_nodes(), split, CLASSES, lambda nodes=nodes: {"neighbours": nodes * 1.0})
    (board,) = read_boards([tmp_path])
    kinds = [(text, share) for text, share, *_ in kinds_of_nodes(board) if text.startswith("neighbours")]
    assert kinds == [  # of both seeds' nodes together
        ("neighbours from 0 to 39.5", 25.0),
        ("neighbours above 39.5 to 68", 25.8),
        ("neighbours above 68 to 85", 25.0),
        ("neighbours above 85 to 105", 24.2),
    ]
    Elements(render_page([board]))
    data = json.loads(comparison_data(board))
    assert data["classes"][3][1] == 5 and list(data["agreement"]) == ["0,1"]
    for file in (tmp_path / "b").glob("*/stages/*/test_predictions.npz"):  # as many test nodes, but other ones
        true, predicted = (np.load(file)[key] for key in ("true", "predicted"))
        np.savez(file, true=true[::-1], predicted=predicted)
    assert agreement_of(read_boards([tmp_path])[0]) == {}


def test_labels_beside_points_keep_apart_and_inside() -> None:
    points = [(100 + place % 3, 70 + 0.05 * place, f"GLEM (SAGE, {place} iterations)") for place in range(40)]
    chart = Chart("", "", "", (0, 200), (60, 80))
    chart.labels(points)
    boxes = []
    for element, attributes, text in chart.marks:
        if element == "text":
            start = attributes["x"] - 6.6 * len(text) * (attributes["text-anchor"] == "end")
            boxes.append((start, attributes["y"] - 10, start + 6.6 * len(text), attributes["y"] + 2))
    assert 10 <= len(boxes) < 40  # there is no room for all
    for place, (left, top, right, bottom) in enumerate(boxes):
        assert chart.left - 1 <= left and right <= chart.width and chart.top <= top + 3 and bottom <= chart.bottom
        assert not any(left < c and a < right and top < d and b < bottom for a, b, c, d in boxes[:place])


LAYOUT = """<script>addEventListener("load", () => {
const board = document.querySelector(".board");
const tags = [...document.querySelectorAll(".tag")].map(tag => tag.getBoundingClientRect().height);
document.body.dataset.layout = [board.scrollWidth - board.clientWidth, Math.max(0, ...tags)].join(" ");
});</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no browser installed")
def test_the_table_fits_a_desktop_and_its_tags_stay_whole_on_a_phone(tmp_path: Path) -> None:
    for gain in (0.0, 0.01):
        for seed in range(3):
            scores = [(0.7, 0.7 + gain), (0.74, 0.73 + gain), (0.73, 0.74 + gain), (0.78 + gain, 0.76 + gain)]
            save_run(tmp_path / f"alpha={gain}", seed, scores, dataset="ogbn-products")
    file = tmp_path / "page.html"
    page = page_of(tmp_path)
    assert page.count("same on every seed") > 4
    file.write_text(page.replace("</body>", LAYOUT))
    layout = {}
    for width in (1400, 500):
        dom, _ = browse(tmp_path, file, "", f"--window-size={width},900")
        (found,) = re.findall(r'data-layout="(\S+) (\S+)"', dom)
        layout[width] = [float(value) for value in found]
    assert layout[1400][0] == 0  # pixels that stick out
    assert layout[500][1] < 28  # one line
