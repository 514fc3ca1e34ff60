"""What ``run.json`` notes beside a run's settings: versions of packages, and the EM iterations that were asked for."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch_geometric
from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.register import train_dict

from glem_graphgym.build import run_folder
from glem_graphgym.build.run_folder import (
    RunError,
    check_run_folder,
    identity_of,
    package_versions,
    require_finished,
    take_run_folder,
)
from glem_graphgym.files import DamagedFileError, read_json, write_json
from glem_graphgym.report.stats import finish_run

OLD = {"ogb": "1.3.6", "torch": "2.13.0"}
NEW = {"ogb": "1.3.6", "torch": "2.14.0", "transformers": "5.9.0"}


@pytest.fixture
def identity(configure_run: Callable[..., Path]) -> dict[str, Any]:
    """What a run of the usual configuration notes."""
    configure_run()
    return identity_of(cfg, None)


def with_versions(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> dict[str, Any]:
    """What a run of the loaded configuration would note if ``versions`` were installed."""
    monkeypatch.setattr(run_folder, "package_versions", lambda: versions)
    return identity_of(cfg, None)


def begun(run_dir: Path, identity: dict[str, Any], *, stages: int = 1, finished: bool = False) -> Path:
    take_run_folder(run_dir, identity)
    for index in range(stages):
        (run_dir / "stages" / f"{index:02d}_lm_gold").mkdir(parents=True)
    if finished:
        write_json(run_dir / "run.json", {**read_json(run_dir / "run.json"), "finished": True})
    return run_dir


def test_versions_are_those_of_the_packages_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = package_versions()
    assert set(found) == {"ogb", "torch", "torch_geometric", "transformers"}
    assert (found["ogb"], found["torch_geometric"]) == (version("ogb"), torch_geometric.__version__)
    monkeypatch.setattr(run_folder, "RECORDED_PACKAGES", ("torch", "no-such-package-of-anybodys"))
    assert set(package_versions()) == {"torch"}


@pytest.mark.parametrize(("mode", "noted"), [("glem", 3), ("glem_cascade", None), ("glem_lm", None)])
def test_em_iterations_are_noted_where_there_is_em(
    configure_run: Callable[..., Path], mode: str, noted: int | None
) -> None:
    configure_run("train.mode", mode, "glem.em_iterations", 3)
    assert identity_of(cfg, None).get("em_iterations") == noted
    assert "glem.em_iterations" not in identity_of(cfg, None)["settings"]


def test_a_run_goes_on_under_other_versions_and_notes_both(
    configure_run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    configure_run()
    run_dir = begun(tmp_path / "exp" / "0", with_versions(monkeypatch, OLD))
    now = with_versions(monkeypatch, NEW)
    check_run_folder(run_dir, now)  # does not refuse
    with caplog.at_level(logging.WARNING):
        take_run_folder(run_dir, now)
        take_run_folder(run_dir, now)
    expected = {"ogb": "1.3.6", "torch": "2.13.0, 2.14.0", "transformers": "5.9.0"}
    assert read_json(run_dir / "run.json")["versions"] == expected
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2  # once, for each package that differs
    assert said[0].endswith("was begun with torch 2.13.0, goes on with 2.14.0")
    check_run_folder(tmp_path / "exp" / "1", now)  # nor does another seed


@pytest.mark.parametrize(("asked", "joined"), [(1, False), (2, True)])
def test_a_finished_run_keeps_its_versions_unless_it_goes_on(
    configure_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int, joined: bool
) -> None:
    configure_run()
    run_dir = begun(tmp_path / "0", with_versions(monkeypatch, OLD), finished=True)
    configure_run("glem.em_iterations", asked)
    take_run_folder(run_dir, with_versions(monkeypatch, NEW))
    noted = read_json(run_dir / "run.json")
    assert noted["versions"]["torch"] == ("2.13.0, 2.14.0" if joined else "2.13.0")
    assert noted["em_iterations"] == 1  # what its tables show, until it has gone on


def test_a_run_that_starts_anew_notes_its_own_versions_alone(
    configure_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure_run()
    run_dir = begun(tmp_path / "0", with_versions(monkeypatch, OLD), finished=True)
    (tmp_path / "larger_disk").mkdir()
    (run_dir / "working").symlink_to(tmp_path / "larger_disk")
    take_run_folder(run_dir, with_versions(monkeypatch, NEW), overwrite=1)
    assert read_json(run_dir / "run.json")["versions"] == NEW
    assert [path.name for path in run_dir.iterdir()] == ["run.json"]


def test_stages_left_by_a_killed_overwrite_are_not_taken_over(
    identity: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = begun(tmp_path / "0", identity, finished=True)

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        take_run_folder(run_dir, identity, overwrite=1)
    with pytest.raises(run_folder.RunError, match=r"no run.json that says whose; start it anew with --overwrite"):
        check_run_folder(run_dir, identity)


def test_overwriting_deletes_the_results_of_all_its_seeds_at_once(identity: dict[str, Any], tmp_path: Path) -> None:
    """So that a command that is interrupted in its first seed does not take over the old results of the others."""
    for seed in range(4):
        begun(tmp_path / str(seed), {**identity, "seed": seed}, finished=True)
    with run_folder.lock_run_folder(tmp_path / "2"), pytest.raises(run_folder.RunError, match=r"working on .*/2; wait"):
        take_run_folder(tmp_path / "0", {**identity, "seed": 0}, overwrite=3)
    assert [run_folder.is_finished(tmp_path / str(seed)) for seed in range(4)] == [True] * 4
    take_run_folder(tmp_path / "0", {**identity, "seed": 0}, overwrite=3)
    assert [[path.name for path in (tmp_path / str(seed)).iterdir()] for seed in range(3)] == [["run.json"], [], []]
    assert run_folder.is_finished(tmp_path / "3")


def test_another_seed_may_be_deleted_while_it_is_looked_at(
    identity: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(tmp_path / "1", identity)
    usual = Path.read_text

    def deleted(path: Path, **options: Any) -> str:
        path.unlink(missing_ok=True)
        return usual(path, **options)

    monkeypatch.setattr(Path, "read_text", deleted)
    check_run_folder(tmp_path / "0", identity)


def test_a_run_notes_how_many_iterations_its_tables_show(configure_run: Callable[..., Path]) -> None:
    for asked in (1, 2, 1):
        run_dir = configure_run("glem.em_iterations", asked)
        train_dict[cfg.train.mode]()
        finish_run(run_dir)
        noted = read_json(run_dir / "run.json")
        assert noted["em_iterations"] == asked
        assert len(noted["stages"]) == 2 + 2 * asked
        rows = [json.loads(line) for line in (run_dir / "val" / "stats.json").read_text().splitlines()]
        assert [row["epoch"] for row in rows] == [*range(2 + 2 * asked)]
        assert noted["versions"] == package_versions()


@pytest.mark.parametrize(("value", "refused"), [(0, False), (2, True)])
def test_a_run_of_a_version_that_lacked_a_key_goes_on_with_the_keys_default(
    configure_run: Callable[..., Path], tmp_path: Path, value: int, refused: bool
) -> None:
    configure_run("glem.label_input", True)
    identity = identity_of(cfg, None)
    older = {**identity, "settings": {k: v for k, v in identity["settings"].items() if k != "gnn.label_reuse"}}
    begun(tmp_path / "0", older, finished=True)
    configure_run("glem.label_input", True, "gnn.label_reuse", value)
    if refused:
        with pytest.raises(run_folder.RunError, match=r"gnn.label_reuse was 0, now 2"):
            check_run_folder(tmp_path / "0", identity_of(cfg, None))
    else:
        check_run_folder(tmp_path / "0", identity_of(cfg, None))


@pytest.mark.parametrize("missing", ["mode", "settings", "files"])
def test_a_run_json_that_lacks_something_is_named(identity: dict[str, Any], tmp_path: Path, missing: str) -> None:
    begun(tmp_path / "0", {name: value for name, value in identity.items() if name != missing})
    for seed in (0, 1):  # the run's own, and another seed's
        with pytest.raises(DamagedFileError, match=rf"{tmp_path}/0/run.json is damaged .*'{missing}'.* --overwrite"):
            check_run_folder(tmp_path / str(seed), identity)


@pytest.mark.parametrize("name", ["²", "--5", "5-", "a"])
def test_folders_beside_the_seeds_are_left_alone(identity: dict[str, Any], tmp_path: Path, name: str) -> None:
    begun(tmp_path / name, {**identity, "mode": "glem_lm"})
    check_run_folder(tmp_path / "0", identity)


def test_the_folder_of_an_experiment_is_no_run(identity: dict[str, Any], tmp_path: Path) -> None:
    begun(tmp_path / "7", identity, finished=True)
    require_finished(tmp_path / "7")
    with pytest.raises(RunError, match=r"no finished run; name that of a seed, such as .*/7$"):
        require_finished(tmp_path)
