"""For tests of datasets: no network, and nobody at the keyboard."""

from __future__ import annotations

import builtins
from unittest.mock import Mock
from urllib.error import URLError

import pytest


@pytest.fixture
def unattended(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network and nobody at the keyboard, for OGB's own code too."""

    for name in ("glem_graphgym.data.ogb.download.urlopen", "urllib.request.urlopen"):
        monkeypatch.setattr(name, Mock(side_effect=URLError("no network")))
    monkeypatch.setattr(builtins, "input", Mock(side_effect=AssertionError("blocked on standard input")))
