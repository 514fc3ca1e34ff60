"""For tests of datasets: no network, and nobody at the keyboard."""

from __future__ import annotations

import builtins
from urllib.error import URLError

import pytest


@pytest.fixture
def unattended(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network and nobody at the keyboard, for OGB's own code too."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    def ask(prompt: str = "") -> str:
        raise AssertionError(f"blocked on standard input: {prompt}")

    monkeypatch.setattr("glem_graphgym.data.ogb.download.urlopen", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(builtins, "input", ask)
