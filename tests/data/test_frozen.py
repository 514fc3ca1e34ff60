"""Graphs that the package carries: the same everywhere, from files that are checked, and made again by a script."""

from __future__ import annotations

import hashlib
import lzma
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glem_graphgym.data import frozen
from glem_graphgym.data.frozen import file_of, freeze, load_frozen, thaw
from glem_graphgym.data.records import Recipe, Records, graph_of
from glem_graphgym.data.text_graph import SPLITS, DataError
from tests.bad_inputs.conftest import load_program, run_here

# What published figures rest on: a change of any of these numbers makes them figures of another graph.
SIZES = {
    ("debian", 0): ("ba140795c7d66655", 63_436, 295_300, 56, [5_243, 5_227, 42_096]),
    ("debian", 8000): ("4613bf0ab5701780", 8_000, 73_601, 37, [683, 650, 5_539]),
    ("wordnet", 0): ("2669d41ae1955d67", 27_255, 34_201, 43, [2_716, 2_760, 21_735]),
    ("wordnet", 8000): ("82add7de47cca164", 8_000, 12_883, 41, [777, 787, 6_404]),
}


@pytest.fixture(scope="module")
def debian() -> Records:
    return thaw(file_of("debian").read_bytes())


@pytest.mark.parametrize(("name", "max_nodes"), SIZES)
def test_a_graph_is_the_same_everywhere(name: str, max_nodes: int) -> None:
    graph = graph_of(thaw(file_of(name).read_bytes()), Recipe(max_nodes=max_nodes))
    sizes = [len(graph.split[part]) for part in SPLITS]
    found = graph.fingerprint(), graph.num_nodes, graph.num_edges, graph.num_classes, sizes
    assert found == SIZES[name, max_nodes]


def test_its_origin_says_of_what_when_and_under_which_terms(debian: Records) -> None:
    assert debian.origin["release"] == "Debian 12.15 (bookworm)"
    assert debian.origin["date"] == "Sat, 11 Jul 2026 10:16:37 UTC"
    assert "redistribution" in debian.origin["terms"]
    (file,) = debian.origin["files"]
    assert file["name"] == "main/binary-amd64/Packages" and len(file["sha256"]) == 64


def test_its_nodes_are_packages(debian: Records) -> None:
    graph = graph_of(debian, Recipe())
    assert debian.names == sorted(set(debian.names)) == graph.node_ids
    bash = debian.names.index("bash")
    assert graph.texts[bash] == "bash: GNU Bourne Again SHell"
    assert graph.class_names[graph.label[bash]] == "shells"
    neighbours = graph.col[graph.rowptr[bash] : graph.rowptr[bash + 1]]
    assert {"base-files", "bash-doc", "libc6"} <= {debian.names[node] for node in neighbours}


CELLS = st.text(st.characters(exclude_characters="\t\n", exclude_categories=["Cs"]), max_size=5)
RECORDS = st.integers(1, 8).flatmap(
    lambda count: st.builds(
        lambda names, groups, classes, descriptions, ends: Records(
            "some", sorted(names), groups, classes, descriptions, np.array(ends, np.int64).reshape(-1, 2).T, {"x": 1}
        ),
        st.sets(CELLS.filter(bool), min_size=count, max_size=count),
        *[st.lists(cells, min_size=count, max_size=count) for cells in (CELLS.filter(bool), CELLS, CELLS)],
        st.lists(st.tuples(*[st.integers(0, count - 1)] * 2), max_size=12),
    )
)


@given(records=RECORDS)
@settings(max_examples=25, deadline=None)
def test_what_is_frozen_is_thawed(records: Records) -> None:
    again = thaw(freeze(records))
    for column in ("name", "names", "groups", "classes", "descriptions", "origin"):
        assert getattr(again, column) == getattr(records, column)
    pairs = {(min(edge), max(edge)) for edge in records.edges.T.tolist() if edge[0] != edge[1]}
    assert sorted(pairs) == [tuple(edge) for edge in again.edges.T.tolist()]


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-9], lambda raw: raw[:900] + b"\0" + raw[901:], lambda raw: b"", None]
)
def test_a_missing_or_damaged_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, debian: Records, damage: object
) -> None:
    file = tmp_path / "debian.tsv.xz"
    if callable(damage):
        file.write_bytes(damage(freeze(debian.only(np.arange(500)))))
    monkeypatch.setattr(frozen, "file_of", lambda name: file)
    with pytest.raises(
        DataError, match=rf"{file}, which comes with the package, is missing or damaged .* reinstall it"
    ):
        load_frozen("debian", tmp_path / "root")
    assert not list((tmp_path / "root").glob("debian-*"))


def test_another_seed_is_another_split_of_whole_groups(tmp_path: Path) -> None:
    first, other = (load_frozen("wordnet", tmp_path, seed=seed) for seed in (0, 1))
    parts = [np.full(first.num_nodes, -1), np.full(first.num_nodes, -1)]
    for graph, part in zip((first, other), parts, strict=True):
        for number, nodes in enumerate(graph.split.values()):
            part[nodes] = number
    shares = [np.mean(part[part >= 0] == 0) for part in parts]
    assert shares == pytest.approx([0.1, 0.1], abs=0.02)
    both = (parts[0] >= 0) & (parts[1] >= 0)
    # As independent draws of 0.1, 0.1, 0.8 agree.
    assert np.mean(parts[0][both] == parts[1][both]) == pytest.approx(0.66, abs=0.03)
    assert first.fingerprint() != other.fingerprint()


# ---- making the file ----------------------------------------------------------------------------------------------

PACKAGES = b"Package: b\nSection: net\nDepends: a\nDescription: two\n\nPackage: a\nSection: libs\nSource: s\n"
RELEASE = """Origin: Debian
Version: 12.0
Codename: bookworm
Date: Sat, 10 Jun 2023 08:41:09 UTC
SHA256:
 {sha256}      {bytes} main/binary-amd64/Packages
"""


@pytest.mark.parametrize("packed", [False, True])
def test_the_script_makes_a_file_of_a_release(tmp_path: Path, packed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    stated = {"sha256": "5b6", "bytes": len(PACKAGES)}
    (tmp_path / "Packages").write_bytes(lzma.compress(PACKAGES) if packed else PACKAGES)
    (tmp_path / "InRelease").write_text(RELEASE.format(**stated))
    command = ["debian", str(tmp_path / "InRelease"), str(tmp_path / "Packages"), "--out", str(tmp_path / "out")]
    refused = run_here("freeze", command, capsys)
    assert refused.returncode == 1 and "states no file with the SHA-256 of" in refused.stderr
    assert not (tmp_path / "out").exists()

    stated["sha256"] = hashlib.sha256(PACKAGES).hexdigest()
    (tmp_path / "InRelease").write_text(RELEASE.format(**stated))
    assert run_here("freeze", command, capsys).returncode == 0
    records = thaw((tmp_path / "out").read_bytes())
    assert (records.names, records.groups, records.classes) == (["a", "b"], ["s", "b"], ["libs", "net"])
    assert (records.descriptions, records.edges.tolist()) == (["", "two"], [[0], [1]])
    assert records.origin["release"] == "Debian 12.0 (bookworm)"
    assert records.origin["files"] == [{"release": "bookworm", "name": "main/binary-amd64/Packages", **stated}]


WORDNET = {
    "index.noun": "  1 Free\n  2 to use.  \ndog n 2 2 @ ~ 2 1 00000020 00000010  \nanimal n 1 0 1 1 00000030  \n",
    "index.verb": "dog v 1 1 + 1 0 00000040  \n",
    "index.adj": "galore a 1 0 1 1 00000050  \n",
    "index.adv": "",
    "data.noun": "  1 Free\n  2 to use.  \n"
    "00000010 06 n 01 dog 0 001 @ 00000030 n 0000 | a machine  \n"
    '00000020 05 n 02 dog 0 domestic_dog 0 002 @ 00000030 n 0000 + 00000040 v 0101 | a pet; "the dog barked"  \n'
    "00000030 05 n 01 animal 0 002 ~ 00000020 n 0000 ~ 00000010 n 0000 | a living thing  \n",
    "data.verb": "00000040 38 v 01 dog 0 001 + 00000020 n 0101 01 + 02 00 | go after  \n",
    "data.adj": "00000050 00 s 0a galore(ip) 0"
    + "".join(f" g{i} 0" for i in range(9))
    + " 001 ! 00000030 n 0000 | a lot  \n",
    "data.adv": "",
}


def test_the_script_makes_a_file_of_wordnet(tmp_path: Path) -> None:
    for name, content in WORDNET.items():
        (tmp_path / name).write_text(content)
    assert load_program("freeze").main(["wordnet", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    records = thaw((tmp_path / "out").read_bytes())
    galore = ", ".join(["galore", *(f"g{i}" for i in range(9))])
    assert records.names == records.groups == ["animal", "dog, domestic dog", galore]
    assert records.classes == ["noun.animal", "noun.animal", "adj.all"]
    assert records.descriptions == ["a living thing", 'a pet; "the dog barked"', "a lot"]
    assert records.edges.T.tolist() == [[0, 1], [0, 2]]
    assert records.origin["terms"] == "Free to use."


@pytest.mark.slow
def test_the_wheel_has_the_files(tmp_path: Path) -> None:
    """Setuptools takes them into what it builds."""
    root = Path(__file__).resolve().parents[2]
    program = (
        "import sys, setuptools; sys.argv[1:] = ['-q', 'build_py', '--build-lib', sys.argv[1]]; setuptools.setup()"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=root, check=True, capture_output=True)
    built = {file.name for file in tmp_path.rglob("*.tsv.xz")}
    assert built == {file.name for file in file_of("x").parent.iterdir()}
