"""The Debian package graph, from apt's lists on a Debian or Ubuntu machine or from a Packages file.

A node is a binary package, its text is its name and description, an edge is a relation between two packages, and the
class is the archive section. Format: Debian Policy, chapters 5 (control files) and 7 (relationships).
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import re
import subprocess
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from glem_graphgym.data.text_graph import (
    SPLITS,
    UNLABELLED,
    DataError,
    TextGraph,
    Texts,
    check_shares,
    csr_from_edges,
    snapshot,
)
from glem_graphgym.files import fingerprint

# To be raised whenever the same options and the same lists would give another graph than before.
RECIPE_VERSION = 1
RELATIONS = ("depends", "pre-depends", "recommends", "suggests", "enhances")
APT_HELPER = "/usr/lib/apt/apt-helper"
PACKAGES_FILE = "a Packages file (plain, .gz or .xz)"
REMEDY = f"run 'apt-get update' as root, or set dataset.tag_source to {PACKAGES_FILE}"

# The name after the start, a comma or a bar; what follows it (":any", "(>= 1)", "[amd64]") qualifies the relation.
_RELATED_NAME = re.compile(r"(?:^|[,|])\s*([A-Za-z0-9][A-Za-z0-9+.-]*)")
# A field's name and value, the value with its continuation lines.
_FIELD = re.compile(r"^([^\s:]+):[ \t]*(.*(?:\n[ \t].*)*)", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n(?:[ \t\r]*\n)+")


@dataclass(frozen=True)
class Recipe:
    """How packages become a graph; raises DataError where a value is out of range.

    The split hashes the source's name: the machine, the release, the other packages and ``max_nodes`` make no
    difference to it.
    """

    shares: tuple[float, ...] = (0.1, 0.1, 0.8)  # of the sources, for train, valid and test; positive, with sum 1
    labels_per_source: int = 5  # most packages of one source that carry a label; else near-copies decide the score
    min_class_size: int = 20  # sections with fewer labelled packages, or with none in training, are left unlabelled
    max_nodes: int = 0  # so many packages, of every section the same share, with the most neighbours; 0 keeps all

    def __post_init__(self) -> None:
        object.__setattr__(self, "shares", check_shares(self.shares))
        for key, value, least in (
            ("labels_per_source", self.labels_per_source, 1),
            ("min_class_size", self.min_class_size, 1),
            ("tag_max_nodes", self.max_nodes, 0),
        ):
            if value < least:
                raise DataError(f"dataset.{key} is {value}, expected {least} or more")


@dataclass(frozen=True, order=True, slots=True)
class Package:
    """One binary package; ordered by all its fields, so that ties break alike."""

    name: str
    version: str
    source: str
    section: str
    description: str
    description_md5: str
    related: tuple[str, ...]

    @classmethod
    def of(cls, stanza: Mapping[str, str]) -> Package:
        name = stanza["package"].strip()
        relations = [_RELATED_NAME.findall(stanza.get(field, "")) for field in RELATIONS]
        return cls(
            name=name,
            version=stanza.get("version", "").strip(),
            source=stanza.get("source", "").partition("(")[0].strip() or name,
            section=stanza.get("section", "").rpartition("/")[2].strip(),
            description=stanza.get("description", ""),
            description_md5=stanza.get("description-md5", "").strip(),
            related=tuple(chain.from_iterable(relations)),
        )


def version_order(version: str) -> tuple[Any, ...]:
    """A key that sorts versions as dpkg does: epoch, upstream version, revision (Debian Policy 5.6.12)."""
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, dash, revision = rest.rpartition("-")
    if not dash:
        upstream, revision = rest, "0"
    return _part_order(epoch), _part_order(upstream), _part_order(revision)


def _part_order(part: str) -> list[tuple[list[int], int]]:
    """Signs and numbers by turns; the end of the signs is 0, so that only a tilde comes before it."""
    runs = re.findall(r"([^0-9]*)([0-9]*)", part)
    return [([*map(_sign_order, signs), 0], int(number or 0)) for signs, number in runs]


def _sign_order(sign: str) -> int:
    if sign == "~":
        return -1
    return ord(sign) if sign.isalpha() else ord(sign) + 256


class Catalogue:
    """Binary packages by name, the newest version of each, whatever the order in which lists are added."""

    def __init__(self, architectures: frozenset[str] | None = None) -> None:
        self.architectures = architectures  # None: any
        self.packages: dict[str, Package] = {}
        self.descriptions: dict[str, str] = {}  # MD5 of a description -> the long description, from Translation lists
        self.files: list[dict[str, Any]] = []  # release, name, bytes and SHA-256 of each list, decompressed
        self.passed_over: Counter[str] = Counter()  # stanzas that were not used, by reason

    def add_packages(self, content: bytes, *, name: str, release: str = "") -> None:
        """Add the stanzas of a decompressed Packages list."""
        self._note(content, name, release)
        for stanza in _stanzas(content):
            if reason := self._reason_against(stanza):
                self.passed_over[reason] += 1
                continue
            package = Package.of(stanza)
            known = self.packages.setdefault(package.name, package)
            if known is not package:
                self.passed_over["older version"] += 1
                newest = max(known, package, key=lambda each: (version_order(each.version), each))
                self.packages[package.name] = newest

    def add_translations(self, content: bytes, *, name: str, release: str = "") -> None:
        """Add the English long descriptions of a decompressed Translation-en list."""
        self._note(content, name, release)
        for stanza in _stanzas(content):
            if "description-md5" in stanza and "description-en" in stanza:
                self.descriptions[stanza["description-md5"].strip()] = stanza["description-en"]

    def _reason_against(self, stanza: Mapping[str, str]) -> str:
        if not stanza.get("package", "").strip():
            return "without Package"
        if self.architectures and stanza.get("architecture", "all").strip() not in self.architectures:
            return "other architecture"
        if stanza.get("section", "").rpartition("/")[2].strip() == "debian-installer":
            return "installer package"
        return ""

    def _note(self, content: bytes, name: str, release: str) -> None:
        digest = hashlib.sha256(content).hexdigest()
        self.files.append({"release": release, "name": name, "bytes": len(content), "sha256": digest})


def load_debian(root: Path, *, packages: str = "", **options: Any) -> TextGraph:
    """The Debian package graph, frozen under ``root`` when it is first read and from then on read from there.

    Debian 12 (main, security, updates) has 63,666 nodes, 296,480 undirected edges and 56 classes.

    Args:
        root: dataset directory; the snapshot is its folder ``debian-<key>``, the key hashes the options and
            the Packages file, where one is given.
        packages: a Packages file (plain, gzip or xz); empty: apt's own lists, with their long descriptions if
            apt fetches any.
        options: those of a `Recipe`.

    Raises:
        DataError: an option is out of range, there is nothing to read, or what was read cannot make a graph.
    """
    recipe = Recipe(**options)
    if not packages:
        folder = root / f"debian-{fingerprint(RECIPE_VERSION, asdict(recipe))}"
        return snapshot(folder, lambda: package_graph(read_apt_lists(), recipe))
    try:
        raw = Path(packages).expanduser().read_bytes()
    except OSError as error:
        raise DataError(
            f"dataset.tag_source: {packages} cannot be read ({error.strerror}); "
            f"expected {PACKAGES_FILE}, or nothing for apt's own lists"
        ) from error
    folder = root / f"debian-{fingerprint(RECIPE_VERSION, asdict(recipe), raw)}"
    return snapshot(folder, lambda: package_graph(read_packages_file(Path(packages).name, raw), recipe))


def read_packages_file(name: str, raw: bytes) -> Catalogue:
    """The packages of one Packages file, given as its bytes on disk (plain, gzip or xz); raises DataError."""
    catalogue = Catalogue()
    try:
        if raw.startswith(b"\x1f\x8b"):
            raw = gzip.decompress(raw)
        elif raw.startswith(b"\xfd7zXZ\x00"):
            raw = lzma.decompress(raw)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"dataset.tag_source: {name} is damaged ({error}); fetch it again") from error
    catalogue.add_packages(raw, name=name)
    if not catalogue.packages:
        raise DataError(f"dataset.tag_source: {name} lists no packages; expected {PACKAGES_FILE}")
    return catalogue


def read_apt_lists() -> Catalogue:
    """The packages that apt knows for this machine's architecture, with English descriptions; raises DataError."""
    native = _run("apt-config", "dump", "--format", "%v%n", "APT::Architecture").decode().strip()
    catalogue = Catalogue(frozenset({native, "all"}))
    for release, name, architecture, path in _index_targets("Created-By: Packages"):
        # A flat repository states no architecture; its stanzas do.
        if architecture in ("", native, "all"):
            catalogue.add_packages(_run(APT_HELPER, "cat-file", path), name=name, release=release)
    if not catalogue.packages:
        raise DataError(f"apt has no package lists on this machine; {REMEDY}")
    for release, name, _, path in _index_targets("Created-By: Translations", "Language: en"):
        catalogue.add_translations(_run(APT_HELPER, "cat-file", path), name=name, release=release)
    return catalogue


def package_graph(catalogue: Catalogue, recipe: Recipe) -> TextGraph:
    """The graph of a catalogue, nodes in the order of their names; raises DataError where two classes do not remain."""
    packages = sorted(catalogue.packages.values())
    if 0 < recipe.max_nodes < len(packages):
        packages = best_connected(packages, recipe.max_nodes)
    parts = np.array([split_of(package.source, recipe.shares) for package in packages])
    label, class_names, dropped = _labels(packages, parts, recipe)
    rowptr, col = csr_from_edges(*_edges(packages), len(packages))
    descriptions = [
        _paragraphs(catalogue.descriptions.get(package.description_md5) or package.description) for package in packages
    ]
    texts = [_text(package.name, *both) for package, both in zip(packages, descriptions, strict=True)]
    counts = {
        "packages": len(catalogue.packages),
        "nodes": len(packages),
        "edges": len(col) // 2,
        "sources": len({package.source for package in packages}),
        "labelled": int((label != UNLABELLED).sum()),
        "unlabelled": int((label == UNLABELLED).sum()),
        "long_descriptions": sum(bool(long) for _, long in descriptions),
    }
    return TextGraph(
        name="debian",
        texts=Texts.of(texts),
        rowptr=rowptr,
        col=col,
        label=label,
        split={part: np.flatnonzero((parts == part) & (label != UNLABELLED)) for part in SPLITS},
        class_names=class_names,
        node_ids=[package.name for package in packages],
        origin={
            "files": sorted(catalogue.files, key=lambda file: tuple(map(str, file.values()))),
            "passed_over": dict(sorted(catalogue.passed_over.items())),
            **counts,
            "unlabelled_sections": dropped,
            "recipe": asdict(recipe),
        },
    )


def split_of(source: str, shares: Sequence[float]) -> str:
    """The split of all packages of a source: by the name's hash alone."""
    position = _unit_hash(source)
    if position < shares[0]:
        return "train"
    return "valid" if position < shares[0] + shares[1] else "test"


def best_connected(packages: Sequence[Package], max_nodes: int) -> list[Package]:
    """``max_nodes`` of the packages, in the given order: of every section the same share, by highest degree.

    Without regard to sections a fifth or more would be libraries; a random sample would keep a third of the degree.
    """
    rowptr, _ = csr_from_edges(*_edges(packages), len(packages))
    degree = np.diff(rowptr)
    sections: dict[str, list[int]] = defaultdict(list)
    for node, package in enumerate(packages):
        sections[package.section].append(node)
    place = np.empty(len(packages))
    for nodes in sections.values():
        ranked = sorted(nodes, key=lambda node: (-degree[node], packages[node].name))
        place[ranked] = (np.arange(len(nodes)) + 0.5) / len(nodes)
    chosen = np.argsort(place, kind="stable")[:max_nodes]
    return [packages[node] for node in np.sort(chosen)]


def _edges(packages: Sequence[Package]) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of every relation between two of the packages."""
    node = {package.name: index for index, package in enumerate(packages)}
    pairs = [
        (index, node[other]) for index, package in enumerate(packages) for other in package.related if other in node
    ]
    ends = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return ends[:, 0], ends[:, 1]


def _labels(
    packages: Sequence[Package], parts: np.ndarray, recipe: Recipe
) -> tuple[np.ndarray, list[str], dict[str, int]]:
    """Label of each package, names of the classes, and the sections that make none, with their sizes."""
    chosen = _capped(packages, recipe.labels_per_source)
    size = Counter(packages[node].section for node in chosen)
    trained = {packages[node].section for node in chosen if parts[node] == "train"}
    names = sorted(section for section in trained if size[section] >= recipe.min_class_size)
    if len(names) < 2:
        raise DataError(
            f"debian: {len(names)} of {len(size)} sections have {recipe.min_class_size} or more labelled "
            "packages and one in training; expected 2: name a larger Packages file (dataset.tag_source)"
        )
    index = {section: i for i, section in enumerate(names)}
    label = np.full(len(packages), UNLABELLED, dtype=np.int64)
    for node in chosen:
        label[node] = index.get(packages[node].section, UNLABELLED)
    return label, names, {section: size[section] for section in sorted(size) if section not in index}


def _capped(packages: Sequence[Package], labels_per_source: int) -> list[int]:
    """Nodes that may carry a label: of each source the first few with a section, in the order of a hash."""
    # Salted: the split's own hash would favour packages named like their source in training, not in test.
    order = [_unit_hash(f"label {package.name}") for package in packages]
    sources: dict[str, list[int]] = defaultdict(list)
    for node, package in enumerate(packages):
        if package.section:
            sources[package.source].append(node)
    return [node for nodes in sources.values() for node in sorted(nodes, key=order.__getitem__)[:labels_per_source]]


def _unit_hash(text: str) -> float:
    """A number in [0, 1) that depends on ``text`` alone (48 bits, exact in a float)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _stanzas(content: bytes) -> Iterator[dict[str, str]]:
    """Fields of each stanza, by name in lower case; lines that belong to no field are passed over."""
    for block in _BLANK_LINES.split(content.decode("utf-8", "replace")):
        fields = {name.lower(): value for name, value in _FIELD.findall(block)}
        if fields:
            yield fields


def _paragraphs(description: str) -> tuple[str, str]:
    """Short and long description, each on one line with single spaces."""
    short, _, long = description.partition("\n")
    lines = [line for line in long.split("\n") if line.strip() != "."]
    return " ".join(short.split()), " ".join(" ".join(lines).split())


def _text(name: str, short: str, long: str) -> str:
    if short and long and short[-1] not in ".!?":
        short += "."
    return ": ".join(part for part in (name, f"{short} {long}".strip()) if part)


def _index_targets(*conditions: str) -> list[list[str]]:
    """Release, name, architecture and path of apt's lists; what apt does not know of one is empty."""
    layout = "$(ORIGIN) $(RELEASE)\t$(METAKEY)\t$(ARCHITECTURE)\t$(FILENAME)"
    listing = _run("apt-get", "indextargets", "--format", layout, *conditions).decode("utf-8", "replace")
    known = re.sub(r"\$\([A-Z_]+\)", "", listing)  # apt leaves the names of properties that a list lacks
    return [[cell.strip() for cell in line.split("\t")] for line in known.splitlines()]


def _run(*command: str) -> bytes:
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        return subprocess.run(command, capture_output=True, check=True, env=environment).stdout
    except FileNotFoundError as error:
        raise DataError(
            f"{command[0]} was not found, there is no apt here; set dataset.tag_source to {PACKAGES_FILE}"
        ) from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"]
        raise DataError(f"{command[0]} {command[1]} failed ({said[-1]}); {REMEDY}") from error
