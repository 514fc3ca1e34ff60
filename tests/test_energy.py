"""The energy of the processor, read from files in the layout of Linux."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from glem_graphgym import energy
from glem_graphgym.energy import EnergyMeter

MOST = 262_143_328_850  # microjoules, a usual range


def package(folder: Path, name: str, microjoules: int, most: int = MOST) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "max_energy_range_uj").write_text(f"{most}\n")
    (folder / name / "energy_uj").write_text(f"{microjoules}\n")
    return folder / name / "energy_uj"


def test_packages_are_summed_over_the_end_of_a_counter_and_their_parts_are_not(tmp_path: Path) -> None:
    first, second = package(tmp_path, "intel-rapl:0", 5_000_000), package(tmp_path, "intel-rapl:1", MOST - 1_000_000)
    part = package(tmp_path, "intel-rapl:0:0", 0)
    meter = EnergyMeter(tmp_path)
    first.write_text("7500000\n")
    second.write_text("499999\n")
    part.write_text("900000000\n")
    assert meter.stop() == pytest.approx(2.5 + 1.5)


@pytest.mark.parametrize("what", ["nothing", "unreadable"])
def test_a_machine_that_does_not_tell(tmp_path: Path, what: str) -> None:
    if what == "unreadable":
        package(tmp_path, "intel-rapl:0", 1).write_text("no number")
    assert EnergyMeter(tmp_path).stop() is None


def test_a_counter_that_could_not_be_read_for_a_while_leaves_the_energy_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = package(tmp_path, "intel-rapl:0", 1)
    monkeypatch.setattr(energy, "READ_SECONDS", 0.001)
    meter = EnergyMeter(tmp_path)
    counter.write_text("no number")
    while meter._ranges:
        time.sleep(0.001)
    counter.write_text("5000000\n")
    assert meter.stop() is None
