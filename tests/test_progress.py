"""Progress where there is no terminal: plain lines, with an estimate, and none of what is quick."""

from __future__ import annotations

import io
from collections.abc import Iterator
from weakref import WeakSet

import pytest

from glem_graphgym.progress import Progress, time_text, watched


class Clock:
    """Stands still but where somebody works."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds

    def slowly(self, steps: int) -> Iterator[int]:
        for step in range(steps):
            self.seconds += 10
            yield step


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    monkeypatch.setattr("tqdm.std.tqdm._instances", WeakSet())  # bars that other tests broke off move this one down
    return clock


def lines_of(captured: pytest.CaptureFixture[str]) -> list[str]:
    error = captured.readouterr().err
    assert "\r" not in error and "\n\n" not in error
    return error.splitlines()


def test_lines_say_how_far_it_is_and_how_long_it_will_take(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(Progress(clock.slowly(20), desc="texts", total=20, unit="nodes")) == list(range(20))
    lines = lines_of(capsys)
    assert lines[0] == "texts: 15%, 3 of 20 nodes, 00:30 gone, about 02:50 left"
    assert [line.split(" gone")[0].split(", ")[-1] for line in lines[:3]] == ["00:30", "01:00", "01:30"]
    assert lines[-1] == "texts: 100%, 20 of 20 nodes, 03:20 gone, about 00:00 left"
    assert len(lines) == 7


def test_lines_of_what_has_no_known_end_and_of_bytes(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(desc="reading", unit="B", unit_scale=True) as bar:
        for _ in clock.slowly(10):
            bar.update(1000)
    assert lines_of(capsys)[-1] == "reading: 10.0k B, 01:40 gone"
    with Progress.wrapattr(io.BytesIO(b"x" * 3000), "read", total=3000, desc="unpacking") as stream:
        while stream.read(500):
            clock.seconds += 20
    assert lines_of(capsys)[-1].startswith("unpacking: 100%, 2.93k of 2.93k B")


def test_what_is_quick_is_not_said(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(list(Progress(clock.slowly(2), desc="quick", total=2))) == 2
    assert lines_of(capsys) == []


def test_what_is_switched_off_is_silent(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    list(Progress(clock.slowly(10), desc="off", total=10, disable=True))
    assert lines_of(capsys) == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    list(Progress(range(3), desc="texts", total=3, file=terminal))
    assert "texts: 100%" in terminal.getvalue() and "3/3" in terminal.getvalue()


class Whole:
    """A watcher that counts what it sees."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def title(self, text: str) -> str:
        return f"E-step 1, {text}"

    def remark(self, bar: Progress) -> str:
        self.seen.append(bar.n)
        return "about 5 of 9 min left"


def test_what_the_work_is_a_part_of_is_said_beside_it(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    whole = Whole()
    with watched(whole):
        bar = Progress(clock.slowly(3), desc="texts", total=4, unit="nodes")
        bar.set_postfix_str("best 78.1%", refresh=False)
        list(bar)
    line = lines_of(capsys)[-1]
    assert line.startswith("E-step 1, texts: 75%, 3 of 4 nodes") and line.endswith(
        " left, best 78.1%, run: about 5 of 9 min left"
    )
    assert whole.seen[-1] == 3
    list(Progress(clock.slowly(3), desc="texts", total=4, unit="nodes"))
    assert lines_of(capsys)[-1].startswith("texts: 75%")


def test_a_quick_bar_is_silent_but_watched(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    whole = Whole()
    with watched(whole):
        list(Progress(clock.slowly(2), desc="quick", total=2))
    assert lines_of(capsys) == [] and whole.seen == [2]


def test_a_bar_fits_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with watched(Whole()):
        bar = Progress(clock.slowly(90), desc="texts", total=100, file=terminal, ncols=80)
        bar.set_postfix_str("best 78.1%", refresh=False)
        list(bar)
    shown = terminal.getvalue().split("\r")
    assert max(len(line.rstrip("\n")) for line in shown) <= 80
    assert "E-step 1, texts: 90%|" in shown[-2] and ", best 78.1%, run: ~5 of 9 min left]" in shown[-2]


def test_times_are_readable() -> None:
    assert [time_text(seconds) for seconds in (0.24, 12, 90, 7200)] == ["0.2 s", "12 s", "2 min", "2.0 h"]
