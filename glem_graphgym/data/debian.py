"""Debian's packages, from apt's lists on a Debian or Ubuntu machine or from a Packages file.

A node is a binary package: its text is the name and description, its class the archive section, its group the source
package. An edge is a relation between two packages. Format: Debian Policy, chapters 5 (control files) and 7
(relationships).
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from glem_graphgym.data.errors import DataError, reading_data
from glem_graphgym.data.records import Recipe, Records, graph_snapshot
from glem_graphgym.data.text_graph import TextGraph

RELATIONS = ("depends", "pre-depends", "recommends", "suggests", "enhances")
APT = "apt"  # value of dataset.tag_source
APT_HELPER = "/usr/lib/apt/apt-helper"
PACKAGES_FILE = "a Packages file (plain, .gz or .xz)"
REMEDY = "run 'apt-get update' as root, or leave dataset.tag_source empty for the packages that are frozen in here"

# The name after the start, a comma or a bar; what follows it (":any", "(>= 1)", "[amd64]") qualifies the relation.
_RELATED_NAME = re.compile(r"(?:^|[,|])\s*([A-Za-z0-9][A-Za-z0-9+.-]*)")
# A field's name and value, the value with its continuation lines.
_FIELD = re.compile(r"^([^\s:]+):[ \t]*(.*(?:\n[ \t].*)*)", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n(?:[ \t\r]*\n)+")


@dataclass(frozen=True, order=True, slots=True)
class Package:
    """One binary package; ordered by all its fields, so that ties are always broken the same way."""

    name: str
    version: str
    source: str
    section: str
    description: str
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
            description=_one_line(stanza.get("description", "")),
            related=tuple(chain.from_iterable(relations)),
        )


def version_order(version: str) -> tuple[Any, ...]:
    """A key that sorts versions as dpkg does: epoch, upstream version, revision (Debian Policy 5.6.12)."""
    epoch, colon, without_epoch = version.partition(":")
    if not colon:
        epoch, without_epoch = "0", version
    upstream, dash, revision = without_epoch.rpartition("-")
    if not dash:
        upstream, revision = without_epoch, "0"
    return _component_order(epoch), _component_order(upstream), _component_order(revision)


def _component_order(component: str) -> list[tuple[list[int], int]]:
    """Alternating non-digits and numbers; 0 ends each run of non-digits, so that only a tilde sorts before the end."""
    runs = re.findall(r"([^0-9]*)([0-9]*)", component)
    return [([*map(_sign_order, signs), 0], int(number or 0)) for signs, number in runs]


def _sign_order(sign: str) -> int:
    if sign == "~":
        return -1
    return ord(sign) if sign.isalpha() else ord(sign) + 256


class Catalogue:
    """Binary packages by name; keeps the newest version of each, in whatever order lists are added."""

    def __init__(self, architectures: frozenset[str] | None = None) -> None:
        self.architectures = architectures  # None = any
        self.packages: dict[str, Package] = {}
        self.files: list[dict[str, Any]] = []  # release, name, bytes and SHA-256 of each list, decompressed
        self.passed_over: Counter[str] = Counter()  # number of unused stanzas, by reason

    def add(self, content: bytes, *, name: str, release: str = "") -> None:
        """Add the stanzas of a decompressed Packages list."""
        digest = hashlib.sha256(content).hexdigest()
        self.files.append({"release": release, "name": name, "bytes": len(content), "sha256": digest})
        for stanza in _stanzas(content):
            if reason := self._skip_reason(stanza):
                self.passed_over[reason] += 1
                continue
            package = Package.of(stanza)
            previous = self.packages.setdefault(package.name, package)
            if previous is not package:
                self.passed_over["older version"] += 1
                newest = max(previous, package, key=lambda each: (version_order(each.version), each))
                self.packages[package.name] = newest

    def _skip_reason(self, stanza: Mapping[str, str]) -> str:
        if not stanza.get("package", "").strip():
            return "without Package"
        if self.architectures and stanza.get("architecture", "all").strip() not in self.architectures:
            return "other architecture"
        if stanza.get("section", "").rpartition("/")[2].strip() == "debian-installer":
            return "installer package"
        return ""

    def records(self) -> Records:
        """The packages, and every relation between two of them."""
        packages = sorted(self.packages.values())
        node = {package.name: index for index, package in enumerate(packages)}
        ends = [(node[each.name], node[other]) for each in packages for other in each.related if other in node]
        return Records(
            name="debian",
            names=[*node],
            groups=[package.source for package in packages],
            classes=[package.section for package in packages],
            descriptions=[package.description for package in packages],
            edges=np.array(ends, dtype=np.int64).reshape(-1, 2).T,
            origin={
                "files": sorted(self.files, key=lambda file: tuple(map(str, file.values()))),
                "passed_over": dict(sorted(self.passed_over.items())),
            },
        )


def load_debian(root: Path, source: str, **options: Any) -> TextGraph:
    """Load the graph of Debian packages from ``source`` (not the bundled one), frozen under ``root`` when first read.

    Args:
        root: dataset directory; the snapshot is its folder ``debian-<key>``, where the key hashes the options and, if
            one is given, the Packages file.
        source: a Packages file (plain, gzip or xz), or "apt" for the lists of this machine's apt.
        options: see `Recipe`.

    Raises:
        DataError: an option is out of range, there is nothing to read, or the packages do not make a graph.
    """
    recipe = Recipe(**options)
    if source == APT:
        return graph_snapshot(root, "debian", recipe, lambda: read_apt_lists().records())
    try:
        raw = Path(source).expanduser().read_bytes()
    except OSError as error:
        raise DataError(
            f"dataset.tag_source: {source} cannot be read ({error.strerror}); expected {PACKAGES_FILE}, '{APT}' for "
            "this machine's lists, or nothing for the packages that are frozen in here"
        ) from error
    return graph_snapshot(root, "debian", recipe, lambda: read_packages_file(Path(source).name, raw).records(), raw)


def read_packages_file(name: str, raw: bytes) -> Catalogue:
    """Parse a Packages file, given as its bytes on disk (plain, gzip or xz); raises DataError."""
    catalogue = Catalogue()
    with reading_data(f"dataset.tag_source: {name} is damaged", "fetch it again"):
        if raw.startswith(b"\x1f\x8b"):
            raw = gzip.decompress(raw)
        elif raw.startswith(b"\xfd7zXZ\x00"):
            raw = lzma.decompress(raw)
    catalogue.add(raw, name=name)
    if not catalogue.packages:
        raise DataError(f"dataset.tag_source: {name} lists no packages; expected {PACKAGES_FILE}")
    return catalogue


def read_apt_lists() -> Catalogue:
    """The packages that apt knows for this machine's architecture; raises DataError."""
    native = _run("apt-config", "dump", "--format", "%v%n", "APT::Architecture").decode().strip()
    catalogue = Catalogue(frozenset({native, "all"}))
    layout = "$(ORIGIN) $(RELEASE)\t$(METAKEY)\t$(ARCHITECTURE)\t$(FILENAME)"
    listing = _run("apt-get", "indextargets", "--format", layout, "Created-By: Packages").decode("utf-8", "replace")
    targets = re.sub(r"\$\([A-Z_]+\)", "", listing)  # apt prints the placeholder of a property that a list lacks
    for line in targets.splitlines():
        release, name, architecture, path = (cell.strip() for cell in line.split("\t"))
        # A flat repository states no architecture; its stanzas do.
        if architecture in ("", native, "all"):
            catalogue.add(_run(APT_HELPER, "cat-file", path), name=name, release=release)
    if not catalogue.packages:
        raise DataError(f"apt has no package lists on this machine; {REMEDY}")
    return catalogue


def _stanzas(content: bytes) -> Iterator[dict[str, str]]:
    """Yield the fields of each stanza, by name in lower case; lines that belong to no field are skipped."""
    for block in _BLANK_LINES.split(content.decode("utf-8-sig", "replace")):
        fields = {name.lower(): value for name, value in _FIELD.findall(block)}
        if fields:
            yield fields


def _one_line(description: str) -> str:
    """The short and, if there is one, the long description as sentences on one line, with single spaces."""
    short, _, long = description.partition("\n")
    short = " ".join(short.split())
    long = " ".join(" ".join(line for line in long.split("\n") if line.strip() != ".").split())
    if short and long and short[-1] not in ".!?":
        short += "."
    return f"{short} {long}".strip()


def _run(*command: str) -> bytes:
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        return subprocess.run(command, capture_output=True, check=True, env=environment).stdout
    except FileNotFoundError as error:
        raise DataError(f"dataset.tag_source is '{APT}', but {command[0]} was not found; {REMEDY}") from error
    except subprocess.CalledProcessError as error:
        messages = error.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"]
        raise DataError(f"{command[0]} {command[1]} failed ({messages[-1]}); {REMEDY}") from error
