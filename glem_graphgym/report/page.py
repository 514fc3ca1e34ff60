"""The leaderboard as one self-contained HTML page: no network, light and dark, sortable, readable on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from glem_graphgym.report.experiments import STOCK_CAVEAT
from glem_graphgym.report.leaderboard import Board, Row, Spread, p_text, percent, published_spread, seeds_text
from glem_graphgym.report.panels import all_panels, color_of, seconds_text
from glem_graphgym.report.published import Published
from glem_graphgym.report.significance import Difference

SIGNIFICANT = 0.05

# What a browser starts a column's sorting with.
COLUMNS = (
    ("#", "num", "ascending"),
    ("Method", "text", "ascending"),
    ("Valid %", "num", "descending"),
    ("Test %", "num", "descending"),
    ("", "plot", ""),
    ("Δ best non-GLEM", "num", "descending"),
    ("Δ best", "num", "descending"),
    ("Params", "num", "ascending"),
    ("Time", "num", "ascending"),
    ("Memory", "num", "ascending"),
    ("Seeds", "num", "descending"),
    ("Config", "text", "ascending"),
)

CSS = """
:root{color-scheme:light;--bg:#f6f7f9;--surface:#fff;--line:#e3e6eb;--text:#14181f;--soft:#596273;--muted:#98a1b0;
--accent:#2f6fdb;--good:#137a4d;--bad:#b3372f;--tint:#eef3fc;--lm:#2f6fdb;--gnn:#0f8f6b;--cascade:#b97a00;
--joint:#0a86a8;--glem-lm:#7a4ad6;--glem-gnn:#d22f6b;--lm-cascade:#d4501e;--glem-lm-gnn:#5c8500;--other:#5f6b7c;
--shadow:0 1px 2px rgb(20 24 31/6%),0 4px 16px rgb(20 24 31/4%)}
@media(prefers-color-scheme:dark){:root:not([data-theme=light]){color-scheme:dark;--bg:#0e1116;--surface:#171b22;
--line:#2a303a;--text:#e8ebf0;--soft:#a2acbb;--muted:#6d7787;--accent:#6ea3ff;--good:#4cc38a;--bad:#ff8a80;
--tint:#1a2436;--lm:#6ea3ff;--gnn:#35c49a;--cascade:#e8b03c;--joint:#4fc8e8;
--glem-lm:#b190ff;--glem-gnn:#ff78a5;--lm-cascade:#ff8f5a;--glem-lm-gnn:#a5d64c;--other:#a2acbb;--shadow:none}}
:root[data-theme=dark]{color-scheme:dark;--bg:#0e1116;--surface:#171b22;--line:#2a303a;--text:#e8ebf0;--soft:#a2acbb;
--muted:#6d7787;--accent:#6ea3ff;--good:#4cc38a;--bad:#ff8a80;--tint:#1a2436;--lm:#6ea3ff;--gnn:#35c49a;
--cascade:#e8b03c;--joint:#4fc8e8;--glem-lm:#b190ff;--glem-gnn:#ff78a5;--lm-cascade:#ff8f5a;--glem-lm-gnn:#a5d64c;
--other:#a2acbb;--shadow:none}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--text);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue","DejaVu Sans",sans-serif}
main,header{max-width:1360px;margin:0 auto;padding:0 clamp(14px,3vw,32px)}
header{display:flex;gap:16px;align-items:center;justify-content:space-between;padding-top:26px}
h1{font-size:24px;letter-spacing:-.02em;margin:0}h2{font-size:19px;letter-spacing:-.01em;margin:26px 0 4px}
h3{font-size:15px;margin:0}h4{font-size:13px;margin:0 0 6px}
.sub,figcaption p{color:var(--soft);font-size:13px;margin:0;overflow-wrap:anywhere}
code{font:12px ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace}
button{font:inherit;color:inherit;background:none;border:0;padding:0;cursor:pointer}
#theme{border:1px solid var(--line);background:var(--surface);border-radius:8px;padding:5px 12px;font-size:13px;
white-space:nowrap}
button:focus-visible,summary:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
.tiles{display:grid;gap:12px;grid-template-columns:repeat(auto-fit,minmax(min(100%,158px),1fr));margin:14px 0}
.tile,.card,.board{background:var(--surface);border:1px solid var(--line);border-radius:12px;box-shadow:var(--shadow)}
.tile{padding:12px 16px;min-width:0}.tile span{display:block;color:var(--soft);font-size:12.5px}
.tile b{display:block;font-size:21px;font-weight:650;letter-spacing:-.02em;font-variant-numeric:tabular-nums;
overflow-wrap:anywhere}
.tile.first{border-left:4px solid var(--c)}
.tile small{display:block;color:var(--soft);font-size:12px;line-height:1.35;overflow-wrap:anywhere}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:9px 10px;text-align:left;border-bottom:1px solid var(--line);white-space:nowrap;vertical-align:middle}
.board th{white-space:normal}.board td.text{min-width:clamp(150px,21vw,290px);white-space:normal;overflow-wrap:anywhere}
.board td.text:last-child{min-width:0;white-space:normal;overflow-wrap:normal}
th{color:var(--soft);font-size:12.5px;font-weight:600;background:var(--surface)}
td.num,th.num{text-align:right}tbody tr:last-child td{border-bottom:0}
.board tbody tr:hover{background:var(--tint)}
.board tr.best td{background:var(--tint)}.board tr.best .name{font-weight:650}
th button{font-weight:600}th button::after{content:"↕";opacity:.35;margin-left:4px;font-size:11px}
th[aria-sort=ascending] button::after{content:"↑";opacity:1}
th[aria-sort=descending] button::after{content:"↓";opacity:1}
th[aria-sort=ascending],th[aria-sort=descending]{color:var(--text)}
.name{display:inline-block;position:relative;padding-left:18px}
.name::before{content:"";position:absolute;left:0;top:.42em;width:10px;height:10px;border-radius:3px;background:var(--c)}
.published .name::before{background:none;border:2px solid var(--muted);border-radius:50%}
.published td{color:var(--soft)}tr.published.opens td{border-top:2px solid var(--line)}
.experiment,.p{display:block;color:var(--soft);font-size:12px}.experiment{padding-left:18px}
.p{white-space:normal;max-width:9em;margin-left:auto}
.tag{display:inline-block;white-space:nowrap;border:1px solid var(--line);border-radius:99px;padding:1px 8px;
font-size:11.5px;margin-left:8px}
.up{color:var(--good);font-weight:600}.down{color:var(--bad);font-weight:600}
.small{font-size:13px}.small th,.small td{padding:5px 8px}
.grid-of-cards{display:grid;gap:16px;grid-template-columns:repeat(auto-fill,minmax(min(100%,380px),1fr));margin:16px 0}
.card{margin:0;padding:16px 18px;min-width:0;display:flex;flex-direction:column}
.card>.chart{margin-top:auto;padding-top:10px}
.wide{grid-column:1/-1}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;margin-top:8px;font-size:12.5px;color:var(--soft)}
.key{display:inline-flex;align-items:center;gap:6px}.key i{width:16px;height:0;border-top:2.5px solid var(--c)}
.key i.dashed{border-top-style:dashed}
.key i.circle,.key i.square,.key i.diamond{width:9px;height:9px;border:0;background:var(--c)}
.key i.circle{border-radius:50%}.key i.diamond{transform:rotate(45deg)}
.key i.box,.key i.gap{width:11px;height:11px;border:1px solid var(--c);background:var(--c);border-radius:2px}
.key i.gap{background:none;border-style:dashed}
.chart{display:block;width:100%;height:auto;margin-top:8px}
.chart text{font-family:inherit;font-size:11.5px;fill:var(--soft)}.chart .axis{font-size:12px}
.chart .note{fill:var(--text);font-weight:600;paint-order:stroke;stroke:var(--surface);stroke-width:3px}
.grid{stroke:var(--line)}.base{stroke:var(--muted)}
.line{fill:none;stroke:var(--c);stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}
.dashed{stroke-dasharray:5 5}.line.faint{opacity:.45;stroke-width:1.4}
.band{fill:var(--c);opacity:.14}.whisker{stroke:var(--c);stroke-width:1.6;opacity:.65}
.dot{fill:var(--c);stroke:var(--surface);stroke-width:1.4}.dot.hollow{fill:var(--surface);stroke:var(--c);stroke-width:1.8}
.dot.faint{opacity:.4;stroke:none}.bar{fill:var(--c);opacity:.75}
.bar.gap{fill:none;stroke:var(--c);stroke-dasharray:3 2;opacity:.9}
.spread{display:block;width:120px;height:20px}.spread line{stroke:var(--c)}.spread .rail{stroke:var(--line)}
.split{display:grid;gap:24px;grid-template-columns:repeat(auto-fit,minmax(min(100%,380px),1fr));align-items:start}
.split>div{min-width:0}.split .chart{max-width:620px}
.quarters{display:grid;gap:20px;grid-template-columns:repeat(auto-fit,minmax(min(100%,270px),1fr));margin-top:12px}
.quarters>div{min-width:0}.quarters h4{margin:0}
details{margin-top:12px}summary{cursor:pointer;color:var(--accent);font-size:13px}
.missing{color:var(--soft);background:var(--bg);border-radius:8px;padding:18px;margin:12px 0 0;font-size:13.5px}
.notes{color:var(--soft);font-size:13px;padding-left:18px;margin:10px 0 30px;overflow-wrap:anywhere}
@media(max-width:560px){.chart text{font-size:14px}.chart .axis{font-size:14px}th,td{padding:8px}h1{font-size:20px}}
@media print{#theme{display:none}.card,.tile,.board{break-inside:avoid;box-shadow:none}}
"""

SCRIPT = """
"use strict";
const root = document.documentElement, query = new URLSearchParams(location.search);
const system = () => matchMedia("(prefers-color-scheme:dark)").matches ? "dark" : "light";
const dark = () => (root.dataset.theme ?? system()) === "dark";
const setTheme = theme => {
  root.dataset.theme = theme;
  document.getElementById("theme").textContent = dark() ? "Light theme" : "Dark theme";
};
if (["dark", "light"].includes(query.get("theme"))) setTheme(query.get("theme"));
else document.getElementById("theme").textContent = dark() ? "Light theme" : "Dark theme";
document.getElementById("theme").addEventListener("click", () => setTheme(dark() ? "light" : "dark"));
const sortBy = head => {
  const first = head.dataset.first, other = first === "ascending" ? "descending" : "ascending";
  const order = head.getAttribute("aria-sort") === first ? other : first, sign = order === "ascending" ? 1 : -1;
  const table = head.closest("table"), body = table.tBodies[0], numeric = head.classList.contains("num");
  const value = row => row.cells[head.cellIndex].dataset.value;
  const compare = (a, b) => numeric ? a - b : a.localeCompare(b);
  const rows = [...body.rows].sort((a, b) => {
    const x = value(a), y = value(b);
    return x === "" || y === "" ? (x === "") - (y === "") : sign * compare(x, y);
  });
  for (const cell of head.parentNode.cells) if (cell.hasAttribute("aria-sort")) cell.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", order);
  body.append(...rows);
};
for (const button of document.querySelectorAll("th button"))
  button.addEventListener("click", () => sortBy(button.closest("th")));
const wanted = query.get("sort");
if (wanted) for (const table of document.querySelectorAll("table.sortable"))
  table.querySelector(`th:nth-child(${Number(wanted) + 1}) button`)?.click();
"""


def render_page(boards: Sequence[Board], title: str = "GLEM leaderboard") -> str:
    """The page of all boards.

    ``?theme=dark`` or ``?theme=light`` fixes the theme, and ``?sort=3`` sorts by that column (from 0), as a click does.
    """
    body = "".join(_section(board) for board in boards)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><button id="theme" type="button">Theme</button></header>'
        f"<main>{body}</main><script>{SCRIPT}</script></body></html>\n"
    )


def _section(board: Board) -> str:
    graph = f"fingerprint <code>{escape(board.fingerprint)}</code>" if board.fingerprint else "fingerprint not recorded"
    counts = f"{len(board.experiments)} experiment{'s' * (len(board.experiments) > 1)}, {len(board.rows)} rows"
    notes = "".join(f"<li>{escape(('† ' if STOCK_CAVEAT in note else '') + note)}</li>" for note in board.notes)
    return (
        f"<section><h2>{escape(board.dataset)}</h2>"
        f'<p class="sub">{graph} · {counts} · metric: {escape(board.metric)}</p>'
        f"{_tiles(board)}{_table(board)}"
        f'<div class="grid-of-cards">{all_panels(board)}</div><ul class="notes">{notes}</ul></section>'
    )


def _tiles(board: Board) -> str:
    best, gain = board.rows[0], board.rows[0].to_baseline
    tiles = [
        _tile("best by validation", best.method, "" if best.name == best.method else best.experiment, best.method),
        _tile("its validation accuracy, %", percent(best.valid)),
        _tile("its test accuracy, %", percent(best.test)),
    ]
    if gain is not None and gain.mean is not None:
        reason = p_text(gain.p) if gain.p is not None else gain.reason
        tiles.append(
            _tile("test, points over best non-GLEM", _signed(gain.mean), f"{reason}, against {gain.reference}")
        )
    tiles.append(_tile("parameters of all stages", _params(best.params)))
    if best.seconds is not None:
        tiles.append(_tile("time to that model", seconds_text(best.seconds)))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _tile(name: str, value: str, more: str = "", method: str = "") -> str:
    style = f' first" style="--c:{color_of(method)}' if method else ""
    return (
        f'<div class="tile{style}"><span>{escape(name)}</span><b>{escape(value)}</b>'
        f"{f'<small>{escape(more)}</small>' if more else ''}</div>"
    )


def _params(count: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)


def _table(board: Board) -> str:
    heads = []
    for place, (name, kind, first) in enumerate(COLUMNS):
        if not first:
            heads.append('<th><span class="sub">valid ○ test ●</span></th>')
            continue
        sort = "ascending" if place == 0 else "none"
        heads.append(
            f'<th scope="col" class="{kind}" data-first="{first}" aria-sort="{sort}">'
            f'<button type="button">{escape(name)}</button></th>'
        )
    scale = _scale(board)
    rows = [_row(row, scale) for row in board.rows]
    rows += [_published_row(row, scale, place == 0) for place, row in enumerate(board.published)]
    return (
        f'<div class="board scroll"><table class="sortable"><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(row: Row, scale: tuple[float, float]) -> str:
    short = row.name == row.method
    same = f'<span class="experiment" title="{escape(", ".join(row.also), quote=True)}">'
    same = f"{same}and {len(row.also)} more with the same scores</span>" if row.also else ""
    experiment = "" if short else f'<span class="experiment">{escape(row.experiment)}</span>'
    mark = f'<abbr title="{escape(row.caveat, quote=True)}">†</abbr>' if row.caveat else ""
    cells = [
        _cell(str(row.rank), row.rank),
        _cell(f'<span class="name">{escape(row.method)}{mark}</span>{experiment}{same}', row.name, "text"),
        _cell(percent(row.valid), row.valid.mean),
        _cell(percent(row.test), row.test.mean),
        f"<td>{_spread_plot(row.valid, row.test, scale, color_of(row.method))}</td>",
        _difference(row.to_baseline),
        _difference(row.to_best),
        _cell(_params(row.params), row.params, title=f"{row.params:,}"),
        _cell("" if row.seconds is None else seconds_text(row.seconds), row.seconds),
        _cell("" if row.peak_memory_mb is None else f"{row.peak_memory_mb:,.0f} MB", row.peak_memory_mb),
        _cell(str(len(row.seeds)), len(row.seeds), title=f"seeds {seeds_text(row.seeds)}"),
        _cell(f"<code>{escape(row.config_text)}</code>", row.config_text, "text"),
    ]
    style = "best" if row.rank == 1 else ""
    return f'<tr class="{style}" style="--c:{color_of(row.method)}">{"".join(cells)}</tr>'


def _published_row(row: Published, scale: tuple[float, float], opens: bool) -> str:
    valid, test = published_spread(row.valid, row.valid_std), published_spread(row.test, row.test_std)
    name = (
        f'<span class="name">{escape(row.method)}</span><span class="tag">published</span>'
        f'<span class="experiment">{escape(row.source)}</span>'
    )
    cells = [
        _cell("", None),
        _cell(name, row.method, "text"),
        _cell(percent(valid), None if valid is None else valid.mean),
        _cell(percent(test), row.test),
        f"<td>{_spread_plot(valid, Spread(row.test, row.test_std), scale, 'var(--muted)')}</td>",
        *[_cell("", None)] * 5,
        _cell(str(row.runs), row.runs, title="runs"),
        _cell("", None, "text"),
    ]
    return f'<tr class="published{" opens" * opens}">{"".join(cells)}</tr>'


def _cell(content: str, value: object, kind: str = "num", title: str = "") -> str:
    """A cell; ``content`` is HTML, ``value`` is what it is sorted by (None: last)."""
    sort = "" if value is None else escape(str(value), quote=True)
    hint = f' title="{escape(title, quote=True)}"' if title else ""
    return f'<td class="{kind}" data-value="{sort}"{hint}>{content}</td>'


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return _cell('<span class="sub">reference</span>', None)
    if difference.mean is None:
        return _cell('<span class="sub">no common seed</span>', None)
    reason = difference.reason if difference.p is None else p_text(difference.p)
    sure = difference.p is not None and difference.p < SIGNIFICANT
    style = ("up" if difference.mean > 0 else "down") if sure else ""
    text = f'<span class="{style}">{_signed(difference.mean)}</span><span class="p">{escape(reason)}</span>'
    hint = f"test accuracy, points, against {difference.reference}; {difference.seeds} common seeds"
    return _cell(text, difference.mean, title=hint)


def _signed(share: float) -> str:
    """Percentage points with a sign, a true minus."""
    return f"{100 * share:+.2f}".replace("-", "−")


def _scale(board: Board) -> tuple[float, float]:
    spreads = [part for row in board.rows for part in (row.valid, row.test)]
    spreads += [Spread(row.test, row.test_std) for row in board.published]
    spreads += [Spread(row.valid, row.valid_std) for row in board.published if row.valid is not None]
    low = min(part.mean - (part.std or 0) for part in spreads)
    high = max(part.mean + (part.std or 0) for part in spreads)
    return low, max(high, low + 1e-6)


def _spread_plot(valid: Spread | None, test: Spread, scale: tuple[float, float], color: str) -> str:
    """Validation (ring) and test (dot, ± std) on a rail that all rows share."""
    low, high = scale

    def at(value: float) -> str:
        return f"{7 + 106 * (value - low) / (high - low):.1f}"

    marks = '<line class="rail" x1="2" x2="118" y1="10" y2="10"/>'
    if test.std:
        marks += (
            f'<line x1="{at(test.mean - test.std)}" x2="{at(test.mean + test.std)}" y1="10" y2="10" stroke-width="3"/>'
        )
    if valid is not None:
        marks += f'<circle class="dot hollow" cx="{at(valid.mean)}" cy="10" r="4"/>'
    marks += f'<circle class="dot" cx="{at(test.mean)}" cy="10" r="4.5"/>'
    return f'<svg class="spread" style="--c:{color}" viewBox="0 0 120 20" aria-hidden="true">{marks}</svg>'
