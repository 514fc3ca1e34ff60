"""The Debian package graph, from Packages files and apt lists written by the tests, and from apt's own."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glem_graphgym.data import debian
from glem_graphgym.data.debian import Catalogue, load_debian, read_packages_file, version_order
from glem_graphgym.data.records import Recipe, best_connected, split_of
from glem_graphgym.data.records import graph_of as graph_of_records
from glem_graphgym.data.text_graph import SPLITS, UNLABELLED, DataError, TextGraph

THIRDS = (1 / 3, 1 / 3, 1 / 3)


def stanza(name: str, section: str = "net", **fields: str) -> str:
    """A stanza; keyword ``pre_depends`` is field Pre-Depends, an empty value leaves its field out."""
    defaults = {"package": name, "version": "1", "architecture": "all", "section": section}
    return "".join(
        f"{key.title().replace('_', '-').replace('-Md5', '-md5')}: {value}\n"
        for key, value in (defaults | fields).items()
        if value
    )


# Enough packages, each its own source, for every split to hold both sections.
FILLER = [stanza(f"filler{i}", "net" if i % 2 else "libs") for i in range(40)]


def packages_text(stanzas: list[str]) -> str:
    return "\n".join([*FILLER, *stanzas])


def graph_of(*stanzas: str, **recipe: int) -> TextGraph:
    catalogue = read_packages_file("Packages", packages_text(list(stanzas)).encode())
    return graph_of_records(catalogue.records(), Recipe(shares=THIRDS, **{"min_class_size": 1, **recipe}))


def names(graph: TextGraph) -> list[str]:
    assert graph.node_ids is not None
    return graph.node_ids


def edges(graph: TextGraph) -> set[tuple[str, str]]:
    source, target = graph.edge_index()
    return {(names(graph)[a], names(graph)[b]) for a, b in zip(source, target, strict=True) if a < b}


def classes(graph: TextGraph) -> dict[str, str | None]:
    return {
        name: None if label == UNLABELLED else graph.class_names[label]
        for name, label in zip(names(graph), graph.label, strict=True)
    }


def text(graph: TextGraph, name: str) -> str:
    return graph.texts[names(graph).index(name)]


def splits(graph: TextGraph) -> dict[str, str]:
    return {names(graph)[node]: part for part in SPLITS for node in graph.split[part]}


def test_each_of_the_five_relations_makes_an_edge_and_no_other_field_does() -> None:
    graph = graph_of(
        stanza("a", depends="b", pre_depends="c", recommends="d", suggests="e", enhances="f", conflicts="g"),
        *(stanza(name) for name in "bcdefg"),
    )
    assert edges(graph) == {("a", other) for other in "bcdef"}


@pytest.mark.parametrize(
    "relation",
    [
        "b, c",
        "b | c",
        "b (>= 1.2~rc1-3) | c (<< 2:4)",
        "b:any, c:amd64 (= 1)",
        "b [!i386 linux-any], c <!nocheck> <stage1>",
        "absent | b,virtual,c",
        "b,\n c\n",
        "b, b (>= 1), c, a",
    ],
)
def test_names_are_taken_out_of_qualified_relations(relation: str) -> None:
    graph = graph_of(stanza("a", depends=relation.rstrip("\n")), stanza("b", provides="virtual"), stanza("c"))
    assert edges(graph) == {("a", "b"), ("a", "c")}


def test_names_may_hold_digits_plus_dot_and_minus() -> None:
    graph = graph_of(stanza("a", depends="libstdc++6 (>= 12)|libwx3.2-1"), stanza("libstdc++6"), stanza("libwx3.2-1"))
    assert edges(graph) == {("a", "libstdc++6"), ("a", "libwx3.2-1")}


def test_packages_that_name_each_other_share_one_edge() -> None:
    graph = graph_of(stanza("a", depends="b", suggests="b"), stanza("b", recommends="a"))
    assert edges(graph) == {("a", "b")}
    assert graph.num_edges == graph.origin["edges"] == 1


@pytest.mark.parametrize(
    ("description", "joined"),
    [
        ("A  tool\n It reads\n  * one   thing\n .\n and another.\n .", "a: A tool. It reads * one thing and another."),
        ("Is it?\n Yes.", "a: Is it? Yes."),
        ("short only", "a: short only"),
        ("\n long only", "a: long only"),
        ("", "a"),
        ("caf\u00e9 \u2028 bar\n na\u00efve", "a: caf\u00e9 bar. na\u00efve"),
    ],
)
def test_text_joins_name_short_and_long_description_with_single_spaces(description: str, joined: str) -> None:
    assert text(graph_of(stanza("a", description=description)), "a") == joined


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("1.9", "1.10"),
        ("2.0", "1:1.0"),
        ("1.0~rc1", "1.0"),
        ("1.0-1", "1.0-1+deb12u1"),
        ("1.0-1+deb12u9", "1.0-1+deb12u10"),
        ("", "0.1"),
    ],
)
@pytest.mark.parametrize("newer_first", [True, False])
def test_the_newest_version_of_a_package_is_used_wherever_it_stands(older: str, newer: str, newer_first: bool) -> None:
    both = [stanza("a", "libs", version=newer, description="new"), stanza("a", "net", version=older, description="old")]
    graph = graph_of(*(both if newer_first else both[::-1]))
    assert text(graph, "a") == "a: new"
    assert classes(graph)["a"] == "libs"
    assert graph.origin["passed_over"] == {"older version": 1}


# Lowest first; each from dpkg --compare-versions.
ASCENDING = ["0~~", "0~", "0", "0.1~", "0.1", "0.1-1~bpo", "0.1-1", "0.1-1a", "0.1-1+b1", "0.1-1.1", "0.1a", "0.1+"]
ASCENDING += ["0.9", "0.10", "0.10.0", "1.0-9", "1.0-1-1", "1:0.1", "1:0.1-2", "10:0"]


def test_versions_sort_as_dpkg_sorts_them() -> None:
    for shuffled in (ASCENDING[::-1], sorted(ASCENDING)):
        assert sorted(shuffled, key=version_order) == ASCENDING
    assert version_order("0:1.0") == version_order("1.0-0") == version_order("01.00") == version_order("1.0")


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="no dpkg to compare with")
@given(pair=st.tuples(*[st.from_regex(r"([01]:)?[0-9][09a~.+-]{0,5}[0-9a~.+]", fullmatch=True)] * 2))
@settings(max_examples=25, deadline=None)
def test_any_two_versions_compare_as_dpkg_has_it(pair: tuple[str, str]) -> None:
    first, second = pair
    lower = subprocess.run(["dpkg", "--compare-versions", first, "lt", second], check=False).returncode == 0
    assert (version_order(first) < version_order(second)) == lower


def test_the_label_is_the_section_without_its_component() -> None:
    unlabelled = stanza("c", "", depends="filler3")
    graph = graph_of(stanza("a", "contrib/net"), stanza("b", "non-free-firmware/libs"), unlabelled)
    assert {name: classes(graph)[name] for name in "abc"} == {"a": "net", "b": "libs", "c": None}
    assert edges(graph) == {("c", "filler3")} and "c" not in splits(graph)


def test_stanzas_that_are_no_packages_are_passed_over_and_counted() -> None:
    graph = graph_of(
        "Version: 1\nSection: net\n",
        "Package:\nVersion: 1\n",
        stanza("ab", "debian-installer"),
        stanza("ac", "contrib/debian-installer"),
    )
    assert len(names(graph)) == 40
    assert graph.origin["passed_over"] == {"installer package": 2, "without Package": 2}


def test_lines_that_belong_to_no_stanza_do_not_hide_what_follows() -> None:
    graph = graph_of("junk\n continued\n", stanza("a"), "# comment\n\n \n", " x\n", "Homepage: x\n", stanza("b"))
    assert set(names(graph)) >= {"a", "b"}
    assert graph.origin["passed_over"] == {"without Package": 1}


def test_field_names_in_any_case_folded_fields_and_carriage_returns_are_read() -> None:
    graph = graph_of(
        "package: a\nVERSION: 1\nSection:\tnet\nPre-depends: b,\n c,\n\td\nDescription: one\n  two: 2\n",
        *(stanza(name).replace("\n", "\r\n") + "\r\n" + stanza(f"{name}{name}") for name in "bcd"),
    )
    assert edges(graph) == {("a", "b"), ("a", "c"), ("a", "d")}
    assert text(graph, "a") == "a: one. two: 2"
    assert {"bb", "cc", "dd"} <= set(names(graph))
    assert classes(graph)["b"] == "net"


def test_a_byte_order_mark_hides_no_package() -> None:
    catalogue = read_packages_file("Packages", "\ufeffPackage: a\n\nPackage: b\n".encode())
    assert {*catalogue.packages} == {"a", "b"}


def test_at_most_five_packages_of_a_source_carry_a_label() -> None:
    family = [stanza(f"big-{i}", source="big (2:1.0-3)") for i in range(9)]
    graph = graph_of(*family)
    labelled = {name for name, label in classes(graph).items() if label and name.startswith("big")}
    assert len(labelled) == 5
    assert labelled == {n for n, label in classes(graph_of(*family[::-1])).items() if label and n.startswith("big")}
    assert set(names(graph)) >= {f"big-{i}" for i in range(9)}
    assert graph.origin["unlabelled"] == 4
    assert sum(name.startswith("big") for name in splits(graph_of(*family, labels_per_group=2))) == 2


def test_a_package_without_section_takes_no_label_from_its_siblings() -> None:
    family = [stanza(f"big-{i}", "net" if i > 3 else "", source="big") for i in range(9)]
    assert sum(name.startswith("big") for name in splits(graph_of(*family))) == 5


def test_which_package_of_a_source_is_labelled_does_not_go_with_the_split() -> None:
    stanzas = [
        stanza(name, "net" if i % 2 else "libs", source=f"s{i}") for i in range(1500) for name in (f"s{i}", f"s{i}-doc")
    ]
    parts = splits(graph_of(*stanzas, labels_per_group=1))
    for part in SPLITS:
        members = [name for name in parts if parts[name] == part and name.startswith("s")]
        # 500 fair coins: 0.1 is more than four standard deviations.
        assert abs(sum(name.endswith("-doc") for name in members) / len(members) - 0.5) < 0.1


@pytest.mark.parametrize(
    ("source", "position"),  # printf SOURCE | sha256sum: the first 12 digits over 16 ** 12
    [("zlib", 0.0572), ("bash", 0.2181), ("gcc-12", 0.4032), ("python3.11", 0.4488), ("linux", 0.7929)],
)
def test_the_split_of_a_source_is_its_hash_on_every_machine(source: str, position: float) -> None:
    near = 1e-4
    assert split_of(source, (position + near, 0.1, 0.9 - position - near)) == "train"
    assert split_of(source, (position - near, 0.1, 0.9 - position + near)) == "valid"
    assert split_of(source, (0.05, position - 0.05 - near, 1 - position + near)) == "test"


PACKAGE_NAMES = st.sampled_from([f"p{i}" for i in range(12)] + [f"filler{i}" for i in range(4)])
STANZAS = st.lists(
    st.builds(
        lambda name, section, source, version, depends: stanza(
            name, section, source=source, version=version, depends=depends
        ),
        PACKAGE_NAMES,
        st.sampled_from(["net", "libs", "contrib/net", "doc", ""]),
        st.sampled_from(["", "s", "s (1)", "t", "filler1", "filler2 (3:4)"]),
        st.sampled_from(["0.1", "1", "1.0-1", "2:0", "?"]),
        st.lists(PACKAGE_NAMES).map(", ".join),
    ),
    max_size=25,
)


@given(stanzas=STANZAS, seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_the_graph_does_not_depend_on_the_order_of_stanzas(stanzas: list[str], seed: int) -> None:
    shuffled = stanzas[:]
    random.Random(seed).shuffle(shuffled)
    graph, again = graph_of(*stanzas), graph_of(*shuffled)
    assert graph.fingerprint() == again.fingerprint()
    assert graph.origin["passed_over"] == again.origin["passed_over"]


@given(stanzas=STANZAS)
@settings(max_examples=60, deadline=None)
def test_the_split_tears_no_source_apart_and_ignores_other_packages(stanzas: list[str]) -> None:
    content = packages_text(stanzas).encode()
    source = {p.name: p.source for p in read_packages_file("Packages", content).packages.values()}
    parts = splits(graph_of(*stanzas))
    of_source: dict[str, set[str]] = {}
    for name, part in parts.items():
        of_source.setdefault(source[name], set()).add(part)
    assert all(len(found) == 1 for found in of_source.values())
    alone = splits(graph_of())
    assert all(parts[name] == alone[name] for name in parts if alone.get(name) and source[name] == name)


def test_small_sections_are_left_unlabelled() -> None:
    few = [stanza(f"a{i}", "news") for i in range(9)]
    graph = graph_of(*few, min_class_size=10)
    assert graph.class_names == ["libs", "net"]
    assert graph.origin["unlabelled_classes"] == {"news": 9}
    assert graph.origin["labelled"] == 40
    assert graph_of(*few, min_class_size=9).class_names == ["libs", "net", "news"]


def test_a_section_that_training_never_sees_is_left_unlabelled() -> None:
    unseen = [name for name in (f"u{i}" for i in range(30)) if split_of(name, THIRDS) != "train"]
    graph = graph_of(*(stanza(name, "news") for name in unseen))
    assert graph.class_names == ["libs", "net"]
    assert not set(unseen) & set(splits(graph))
    seen = next(name for name in (f"u{i}" for i in range(30)) if split_of(name, THIRDS) == "train")
    assert "news" in graph_of(*(stanza(name, "news") for name in [*unseen, seen])).class_names


def test_the_class_size_counts_labels_after_the_cap() -> None:
    family = [stanza(f"task-{i}", "tasks", source="tasksel") for i in range(12)]
    assert "tasks" not in graph_of(*family, min_class_size=6).class_names


def test_too_few_classes_are_an_error_that_names_the_option() -> None:
    with pytest.raises(DataError, match=r"0 of 2 classes have 100 .* larger file \(dataset\.tag_source\)"):
        graph_of(min_class_size=100)


def test_a_smaller_graph_keeps_the_best_connected_packages_of_every_section() -> None:
    """30 packages of net, 10 of libs: numbers that sum to at least the section's size are neighbours."""
    catalogue = Catalogue()
    for section, size in (("net", 30), ("libs", 10)):
        for i in range(size):
            related = ", ".join(f"{section}{j:02}" for j in range(size - i, size))
            catalogue.add(stanza(f"{section}{i:02}", section, depends=related).encode(), name="")
    records = catalogue.records()
    kept = [records.names[node] for node in best_connected(records, 16)]
    assert kept == [f"libs{i:02}" for i in range(6, 10)] + [f"net{i:02}" for i in range(18, 30)]


def test_a_smaller_graph_has_the_split_and_texts_of_the_whole_one() -> None:
    rows = [
        stanza(f"p{i}", ("net", "libs", "")[i % 3], depends=", ".join(f"p{j}" for j in range(0, i, 1 + i % 7)))
        for i in range(120)
    ]
    whole, small = graph_of(*rows), graph_of(*rows, max_nodes=60)
    assert small.num_nodes == 60
    assert small.origin["records"] == whole.num_nodes == 160
    assert splits(small).items() <= splits(whole).items()
    assert {text(small, name) for name in names(small)} <= set(whole.texts)
    assert edges(small) == {edge for edge in edges(whole) if set(edge) <= set(names(small))}
    assert graph_of(*rows[::-1], max_nodes=60).fingerprint() == small.fingerprint()
    assert graph_of(*rows, max_nodes=160).fingerprint() == whole.fingerprint()


def test_shares_out_of_range_are_named_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.tag_split is \[10\.0, 500\.0, 1000\.0\], expected three positive"):
        load_debian(tmp_path, "/no/such/file", shares=(10, 500, 1000))


def load(root: Path, source: Path | str = "apt", **options: int) -> TextGraph:
    return load_debian(root, str(source), shares=THIRDS, **{"min_class_size": 1, **options})


@pytest.fixture
def packages_file(tmp_path: Path) -> Path:
    path = tmp_path / "Packages"
    path.write_text(packages_text([stanza("a", depends="filler0", description="caf\u00e9")]), encoding="utf-8")
    return path


def test_plain_gzip_and_xz_files_give_one_graph_whatever_their_names(tmp_path: Path, packages_file: Path) -> None:
    plain = packages_file.read_bytes()
    for name, raw in (("Packages.gz", gzip.compress(plain)), ("Packages.xz", lzma.compress(plain)), ("list", plain)):
        (tmp_path / name).write_bytes(raw)
    graphs = [load(tmp_path / "root", tmp_path / name) for name in ("Packages", "Packages.gz", "Packages.xz", "list")]
    assert len({graph.fingerprint() for graph in graphs}) == 1
    assert len({graph.origin["files"][0]["sha256"] for graph in graphs}) == 1
    assert graphs[1].origin["files"][0]["name"] == "Packages.gz"
    assert graphs[1].origin["files"][0]["bytes"] == len(plain)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (gzip.compress(packages_text([]).encode())[:-20], "Packages is damaged"),
        (lzma.compress(packages_text([]).encode())[:-20], "Packages is damaged"),
        (b"\x1f\x8b\x08\x00" + bytes(40), "Packages is damaged"),
        (b"<html>404</html>", "Packages lists no packages; expected a Packages file"),
        (b"\x28\xb5\x2f\xfd" + bytes(range(256)), "Packages lists no packages; expected a Packages file"),
        (b"", "Packages lists no packages"),
    ],
)
def test_a_file_that_is_no_packages_file_is_an_error_and_leaves_no_snapshot(
    tmp_path: Path, raw: bytes, message: str
) -> None:
    (tmp_path / "Packages").write_bytes(raw)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "root", tmp_path / "Packages")
    assert not list((tmp_path / "root").glob("debian-*"))


LINES = st.sampled_from(
    ["Package: a", "Section: net", "Package:", " x", " .", "", " ", "# x", "Depends: ,|(((", "Source: (1)", ":"]
).map(str.encode)


@given(lines=st.lists(LINES | st.binary(max_size=8)))
@settings(max_examples=150, deadline=None)
def test_no_content_breaks_the_parser(lines: list[bytes]) -> None:
    catalogue = Catalogue(frozenset({"amd64"}))
    catalogue.add(b"\n".join(lines), name="Packages")
    assert all(package.name == name and package.source for name, package in catalogue.packages.items())


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(DataError, match=f"dataset.tag_source: {path} cannot be read"):
            load(tmp_path / "root", path)


def test_bytes_that_are_not_utf8_are_replaced(tmp_path: Path, packages_file: Path) -> None:
    packages_file.write_bytes(packages_file.read_bytes().replace("\u00e9".encode(), b"\xe9"))
    assert text(load(tmp_path / "root", packages_file), "a") == "a: caf\ufffd"


def test_a_snapshot_belongs_to_its_options_and_its_file(tmp_path: Path, packages_file: Path) -> None:
    root = tmp_path / "root"
    first = load(root, packages_file)
    assert load(root, packages_file).fingerprint() == first.fingerprint()
    assert len(list(root.glob("debian-*"))) == 1
    load(root, packages_file, labels_per_group=1)
    packages_file.write_text(packages_text([stanza("b")]), encoding="utf-8")
    assert "b" in names(load(root, packages_file))
    assert len(list(root.glob("debian-*"))) == 3


class Apt:
    """An apt of shell scripts whose lists are what `add` gave it; its helper reads gzip."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.script("apt-config", 'test "$*" = "dump --format %v%n APT::Architecture" && echo amd64')
        self.script(
            "apt-get",
            f"""test "$1 $2" = "indextargets --format" || exit 100
            test "$4" = "Created-By: Packages" && cat {folder}/targets""",
        )
        self.script("apt-helper", 'test "$1" = cat-file && exec gzip -dc "$2"')
        (folder / "targets").touch()

    def script(self, name: str, body: str) -> None:
        (self.folder / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (self.folder / name).chmod(0o755)

    def add(
        self,
        content: str,
        release: str = "Debian bookworm",
        architecture: str = "amd64",
        name: str = "main/binary-amd64/Packages",
    ) -> None:
        path = self.folder / f"mirror.example.org_{len(list(self.folder.glob('*.gz')))}.gz"
        path.write_bytes(gzip.compress(content.encode()))
        with (self.folder / "targets").open("a", encoding="utf-8") as targets:
            targets.write(f"{release}\t{name}\t{architecture}\t{path}\n")


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Apt:
    made = Apt(tmp_path / "apt")
    monkeypatch.setenv("PATH", f"{made.folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(debian, "APT_HELPER", str(made.folder / "apt-helper"))
    return made


def test_apt_lists_are_merged(apt: Apt, tmp_path: Path) -> None:
    apt.add(packages_text([stanza("a", architecture="amd64", description="old"), stanza("b", description="thing")]))
    security = stanza("a", version="1+deb12u1", architecture="amd64", description="new")
    apt.add(security, release="Debian bookworm-security")
    graph = load(tmp_path / "root")
    assert (text(graph, "a"), text(graph, "b"), text(graph, "filler1")) == ("a: new", "b: thing", "filler1")
    assert [(file["release"], file["name"]) for file in graph.origin["files"]] == [
        ("Debian bookworm", "main/binary-amd64/Packages"),
        ("Debian bookworm-security", "main/binary-amd64/Packages"),
    ]


def test_other_architectures_are_left_out_and_third_party_lists_do_no_harm(apt: Apt, tmp_path: Path) -> None:
    apt.add(packages_text([stanza("a", architecture="amd64", depends="b")]))
    apt.add(stanza("foreign", architecture="i386"), architecture="i386")
    apt.add(stanza("independent"), architecture="all")
    flat = [stanza("mine", "weird", architecture="amd64", version="v_?"), stanza("arm", architecture="arm64")]
    apt.add("\n".join([*flat, "no stanza at all\n"]), "$(ORIGIN) $(RELEASE)", "$(ARCHITECTURE)", "Packages")
    apt.add("", release="Empty list")
    graph = load(tmp_path / "root")
    assert set(names(graph)) - {f"filler{i}" for i in range(40)} == {"a", "independent", "mine"}
    assert graph.origin["passed_over"]["other architecture"] == 1
    assert {"release": "", "name": "Packages"}.items() <= graph.origin["files"][0].items()


def test_a_snapshot_of_apt_lists_stays_when_the_lists_change(apt: Apt, tmp_path: Path) -> None:
    apt.add(packages_text([stanza("a")]))
    first = load(tmp_path / "root")
    apt.add(stanza("later"))
    assert load(tmp_path / "root").fingerprint() == first.fingerprint()
    assert "later" in names(load(tmp_path / "other"))
    assert "later" in names(load(tmp_path / "root", labels_per_group=4))
    shutil.rmtree(apt.folder)
    assert load(tmp_path / "root").fingerprint() == first.fingerprint()


def test_the_origin_names_no_folder_and_no_host(apt: Apt, tmp_path: Path, packages_file: Path) -> None:
    apt.add(packages_text([]))
    for graph in (load(tmp_path / "root"), load(tmp_path / "root", packages_file)):
        told = json.dumps(graph.origin)
        assert str(tmp_path) not in told
        assert "mirror.example.org" not in told


def test_without_apt_the_error_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        DataError, match=r"tag_source is 'apt', but apt-config was not found; .* leave dataset\.tag_source empty"
    ):
        load(tmp_path / "root")


@pytest.mark.parametrize("lists", [[], ["", "\n"]])
def test_without_lists_the_error_says_what_to_run(apt: Apt, tmp_path: Path, lists: list[str]) -> None:
    for content in lists:
        apt.add(content)
    with pytest.raises(DataError, match=r"'apt-get update' as root, or leave dataset\.tag_source empty"):
        load(tmp_path / "root")


def test_a_failing_apt_is_quoted(apt: Apt, tmp_path: Path) -> None:
    apt.script("apt-get", "echo 'E: Malformed entry 1 in list file' >&2; exit 100")
    with pytest.raises(DataError, match=r"apt-get indextargets failed \(E: Malformed entry 1 in list file\)"):
        load(tmp_path / "root")


def test_a_list_that_cannot_be_read_is_not_left_out_silently(apt: Apt, tmp_path: Path) -> None:
    apt.add(packages_text([]))
    apt.script("apt-helper", "exit 1")
    with pytest.raises(DataError, match=r"apt-helper cat-file failed \(no message\); run 'apt-get update'"):
        load(tmp_path / "root")
    assert not list((tmp_path / "root").glob("debian-*"))


def has_distribution_lists() -> bool:
    """Whether apt has lists of Debian's or Ubuntu's main component, for the test on them."""
    command = ["apt-get", "indextargets", "--format", "$(ORIGIN)", "Created-By: Packages", "Component: main"]
    if shutil.which("apt-get") is None:
        return False
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return bool({"Debian", "Ubuntu"} & set(listed.split()))


@pytest.mark.slow
def test_the_lists_of_this_machine_give_a_plausible_graph(tmp_path: Path) -> None:
    if not has_distribution_lists():
        pytest.skip("apt has no lists of Debian or Ubuntu on this machine")
    graph = load_debian(tmp_path, "apt")
    labelled = (graph.label != UNLABELLED).sum()
    degree = np.diff(graph.rowptr)
    assert names(graph)[int(degree.argmax())] == "libc6"
    assert ("base-files", "bash") in edges(graph)
    assert graph.num_nodes > 5_000
    assert 2 < graph.num_edges / graph.num_nodes < 10
    assert 30 <= graph.num_classes <= 70
    assert 0.6 < labelled / graph.num_nodes < 1
    for part, share in zip(SPLITS, (0.1, 0.1, 0.8), strict=True):
        assert abs(len(graph.split[part]) / labelled - share) < 0.02
        assert len(np.unique(graph.label[graph.split[part]])) > 0.9 * graph.num_classes
    assert np.bincount(graph.label[graph.label >= 0]).min() >= 20


def test_lists_may_be_added_in_any_order() -> None:
    lists = [packages_text([stanza("a", version="1")]), stanza("a", "libs", version="2"), stanza("b", depends="a")]
    fingerprints = set()
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        catalogue = Catalogue()
        for i in order:
            catalogue.add(lists[i].encode(), name=str(i))
        graph = graph_of_records(catalogue.records(), Recipe(shares=THIRDS, min_class_size=1))
        fingerprints.add((graph.fingerprint(), json.dumps(graph.origin)))
    assert len(fingerprints) == 1
