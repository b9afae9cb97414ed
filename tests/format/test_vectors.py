"""The test vectors of docs/format.md, read by cvfs and by the independent reader."""

import ast
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import trio

from cvfs.errors import FormatError, IntegrityError, TransportError, TrustError
from cvfs.format.blob import blob_path, digest, unseal
from cvfs.format.history import check_step
from cvfs.format.locations import check_run
from cvfs.format.manifest import decode_manifest, encode_manifest
from cvfs.format.pages import (
    Inner,
    Leaf,
    LocationPage,
    Page,
    decode_page,
    encode_inner,
    encode_leaf,
    encode_locations,
)
from cvfs.format.tags import decode_tags, encode_tags
from cvfs.format.tree import Tree
from cvfs.format.tree.boundaries import child_weight, record_weight
from cvfs.heads import Heads
from cvfs.mirrors import Mirrors, Network
from cvfs.model import BlobRef, Digest, Location, Record
from cvfs.revisions import Revisions
from cvfs.trust import names
from cvfs.trust.anchor import Anchor
from cvfs.trust.values import root_id
from tests.format import independent_reader, independent_trust, make_vectors
from tests.trust.simulator import Simulator

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "format.md"
VECTORS = make_vectors.VECTORS
YEAR_2026 = datetime(2026, 1, 1, tzinfo=UTC)
DEADLINE_S = 10.0
PATHS = sorted(VECTORS.glob("*/*.txt"))


@dataclass(frozen=True)
class Vector:
    headers: dict[str, str]
    bodies: list[bytes]

    @classmethod
    def read(cls, path: Path) -> "Vector":
        head, *bodies = path.read_text().split("\n\n")
        headers = dict(line.split(": ", 1) for line in head.splitlines())
        return cls(headers, [b"".join(map(_line, body.split())) for body in bodies])

    @property
    def body(self) -> bytes:
        (body,) = self.bodies or [b""]
        return body


def _line(text: str) -> bytes:
    hexadecimal, _, count = text.partition("*")
    return bytes.fromhex(hexadecimal) * int(count or 1)


def pytest_ids(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


@pytest.fixture(params=PATHS, ids=pytest_ids)
def vector(request: pytest.FixtureRequest) -> Vector:
    return Vector.read(request.param)


# cvfs


def cvfs_blob(vector: Vector) -> str:
    headers = vector.headers
    ref = BlobRef(Digest(bytes.fromhex(headers["id"])), int(headers["stored_size"]), int(headers["plain_size"]))
    return digest(unseal(ref, vector.body, "vector")).hex()


def cvfs_page(vector: Vector) -> str:
    """Also: what it says is written as exactly the same bytes."""
    page = decode_page(vector.body)
    assert encoded(page) == vector.body
    value = independent_reader.unpack(vector.body)
    return "" if len(vector.body) > 4096 else json.dumps(value, default=bytes.hex)


def encoded(page: Page) -> bytes:
    if isinstance(page, Leaf):
        return encode_leaf(list(page.records()))
    if isinstance(page, Inner):
        return encode_inner(page.level, page.children)
    return encode_locations(page.locations)


def cvfs_manifest(vector: Vector) -> None:
    manifest = decode_manifest(vector.body)
    assert decode_manifest(encode_manifest(manifest)) == manifest


def cvfs_tags(vector: Vector) -> None:
    tags = decode_tags(vector.body)
    assert decode_tags(encode_tags(tags)) == tags


def cvfs_history(vector: Vector) -> None:
    later, earlier = map(decode_manifest, vector.bodies)
    check_step(later, earlier, later.ancestors[-1])


def cvfs_tree(vector: Vector) -> None:
    blobs = {digest(body): body for body in vector.bodies}

    def plain(ref: BlobRef) -> bytes:
        return unseal(ref, blobs[ref.id], "vector")

    def load(ref: BlobRef) -> Page:
        return decode_page(plain(ref))

    id_, stored_size, plain_size = vector.headers["root"].split()
    root = BlobRef(Digest(bytes.fromhex(id_)), int(stored_size), int(plain_size))
    tree = Tree(root, int(vector.headers["level"]), load)
    list(tree.pages())
    for record in tree.records():
        found = tree.find_path(record.path)
        assert found is not None
        assert found.record == record
        for location in locations_of(record, load):
            start = location.pack_offset
            # The format gives the ids; comparing them is the client's task, and its tests hold it to that.
            got = digest(plain(location.pack)[start : start + location.length])
            wanted = location.chunk_id or record.entry.content_id
            if got != wanted:
                raise IntegrityError(wanted.hex(), got.hex(), "vector")


def locations_of(record: Record, load: Callable[[BlobRef], Page]) -> Iterator[Location]:
    yield from record.content.locations
    pages = record.content.location_pages
    ends = [*(offset for offset, _ in pages), record.entry.size][1:]
    for (start, ref), end in zip(pages, ends, strict=True):
        page = load(ref)
        if not isinstance(page, LocationPage):
            raise FormatError("not a location page")
        check_run(page.locations, start, end)
        yield from page.locations


def cvfs_signed(vector: Vector) -> None:
    """As a client does that has just started and knows nothing but the root."""
    root, *metadata = vector.bodies[:4]
    timestamp, snapshot, targets = metadata
    files = {blob_path(digest(blob)): blob for blob in vector.bodies[4:]}
    files |= {names.metadata_path("root", 1): root, names.TIMESTAMP: timestamp}
    for version in (1, 2):  # what is asked for is there, if not of the version that was said
        files[names.metadata_path("snapshot", version)] = snapshot
        files[names.metadata_path("targets", version)] = targets
    simulator, url = Simulator(), "http://vector.example.org"
    mirrors = Mirrors(Network(simulator), [simulator.serve(url, files)])  # type: ignore[arg-type]
    with TemporaryDirectory() as state:
        own = Path(state) / "own"  # who could write beside it could replace it
        heads = Heads(mirrors, url, own, Anchor("vector", None, root_id(root)), now=YEAR_2026.timestamp)
        trio.run(open_repository, heads, mirrors, own)


async def open_repository(heads: Heads, mirrors: Mirrors, state: Path) -> None:
    head = await heads.current(DEADLINE_S)
    await mirrors.fetch_blob(head.manifest.root, DEADLINE_S)
    await Revisions(mirrors, state).tags(head, DEADLINE_S)


CVFS: dict[str, Callable[[Vector], Any]] = {
    "blob": cvfs_blob,
    "page": cvfs_page,
    "manifest": cvfs_manifest,
    "tags": cvfs_tags,
    "history": cvfs_history,
    "signed": cvfs_signed,
    "tree": cvfs_tree,
}
BY_A_CLIENT = (TrustError, FormatError, IntegrityError, TransportError)
REFUSALS = {"refused": FormatError, "wrong bytes": IntegrityError}
# Only the whole of a chunked object shows that its content id is wrong; nothing in cvfs.format sees it.
BEYOND_CVFS_FORMAT = "Wrong chunked object"


def test_cvfs_reads_it_as_expected(vector: Vector) -> None:
    headers = vector.headers
    read = CVFS[headers["kind"]]
    if headers["expect"] == "success":
        said = headers.get("plain") or headers.get("value")
        assert (read(vector) or None) == said
    elif headers["comment"] != BEYOND_CVFS_FORMAT:
        with pytest.raises(BY_A_CLIENT if headers["kind"] == "signed" else REFUSALS[headers["expect"]]):
            read(vector)


# The independent reader


def their_blob(vector: Vector) -> None:
    headers = vector.headers
    sizes = int(headers["stored_size"]), int(headers["plain_size"])
    independent_reader.unseal(independent_reader.Ref(bytes.fromhex(headers["id"]), *sizes), vector.body)


def their_page(vector: Vector) -> None:
    independent_reader.read_page(vector.body)


def their_manifest(vector: Vector) -> None:
    independent_reader.read_manifest(vector.body)


def their_tags(vector: Vector) -> None:
    independent_reader.read_tags(vector.body)


def their_history(vector: Vector) -> None:
    independent_reader.check_history(*vector.bodies)


def their_signed(vector: Vector) -> None:
    independent_trust.Store(*vector.bodies).read(YEAR_2026)


def their_tree(vector: Vector) -> None:
    blobs = {digest(body): body for body in vector.bodies}

    def fetch(ref: independent_reader.Ref) -> bytes:
        return blobs[Digest(ref.id)]

    id_, stored_size, plain_size = vector.headers["root"].split()
    root = independent_reader.Ref(bytes.fromhex(id_), int(stored_size), int(plain_size))
    for record in independent_reader.walk(fetch, root, int(vector.headers["level"])):
        if record.entry[9]:
            list(independent_reader.content(fetch, record))


THEIRS: dict[str, Callable[[Vector], None]] = {
    "blob": their_blob,
    "page": their_page,
    "manifest": their_manifest,
    "tags": their_tags,
    "history": their_history,
    "signed": their_signed,
    "tree": their_tree,
}


def test_independent_reader_reads_it_as_expected(vector: Vector) -> None:
    """It also names the rule."""
    read = THEIRS[vector.headers["kind"]]
    if vector.headers["expect"] == "success":
        read(vector)
        return
    with pytest.raises(independent_reader.Refused) as refused:
        read(vector)
    assert refused.value.rule == vector.headers["rule"], str(refused.value)


def test_independent_reader_is_independent() -> None:
    sources = [Path(module.__file__ or "").read_text() for module in (independent_reader, independent_trust)]
    tree = ast.parse("\n".join(sources))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported.remove("tests.format.independent_reader")
    others = ("cvfs", "publisher", "tests", "msgspec", "tuf", "securesystemslib")
    assert not [name for name in imported if name.split(".")[0] in others]


# The document, the vectors, and the repository among them


def test_every_rule_has_a_vector_and_every_vector_a_rule() -> None:
    rules = set(re.findall(r"^- \*\*([A-Z]\d+)\*\*", DOCUMENT.read_text(), re.MULTILINE))
    used = {headers["rule"] for path in PATHS if "rule" in (headers := Vector.read(path).headers)}
    assert rules == used


def test_every_section_that_code_names_is_there() -> None:
    sections = set(re.findall(r"^##+ (\d+(?:\.\d+)?)\.? ", DOCUMENT.read_text(), re.MULTILINE))
    sources = [*(ROOT / "cvfs").rglob("*.py"), *(ROOT / "publisher").rglob("*.py")]
    named = {
        (path.name, number)
        for path in sources
        for number in re.findall(r"format\.md,\s+section\s+(\d+(?:\.\d+)?)", path.read_text())
    }
    assert named
    assert not [(name, number) for name, number in named if number not in sections]


def test_vectors_are_what_the_script_writes() -> None:
    written = {str(path.relative_to(VECTORS)): path.read_text() for path in PATHS}
    assert make_vectors.all_vectors() == written


def test_repository_is_what_the_script_writes() -> None:
    """So nothing moved in how cvfs encodes records and cuts pages."""
    files = [path for path in make_vectors.REPOSITORY.rglob("*") if path.is_file()]
    written = {str(path.relative_to(make_vectors.REPOSITORY)): path.read_bytes() for path in files}
    assert make_vectors.repository() == written


def test_independent_reader_lists_the_repository() -> None:
    assert make_vectors.listing() == (VECTORS / "listing.json").read_bytes()


def repository_tree() -> Tree:
    def load(ref: BlobRef) -> Page:
        return decode_page(unseal(ref, (make_vectors.REPOSITORY / blob_path(ref.id)).read_bytes(), "repository"))

    manifest = decode_manifest((make_vectors.REPOSITORY / "manifest.json").read_bytes())
    return Tree(manifest.root, manifest.level, load)


def test_cvfs_lists_the_same_repository() -> None:
    _, *lines = json.loads((VECTORS / "listing.json").read_bytes())
    listed = [(line["path"].encode("latin-1"), int(line["mode"], 8), line.get("size", 0)) for line in lines]
    found = [(record.path, record.entry.mode, record.entry.size) for record in repository_tree().records()]
    assert found == listed


def test_parent_of_the_repository_is_stored() -> None:
    manifest = decode_manifest((make_vectors.REPOSITORY / "manifest.json").read_bytes())
    assert manifest.parent is not None
    stored = (make_vectors.REPOSITORY / blob_path(manifest.parent.id)).read_bytes()
    assert decode_manifest(unseal(manifest.parent, stored, "repository")).revision == manifest.revision - 1


def test_pages_are_cut_where_the_document_says() -> None:
    tree = repository_tree()
    root = tree._load(tree.root)
    assert isinstance(root, Inner)
    records = list(tree.records())
    keys = [(record.directory.replace(b"/", b"\0"), record.entry.name) for record in records]
    ends = independent_reader.cuts(keys, [record_weight(record) for record in records], 0)
    assert len(ends) > 1
    assert [keys[end] for end in [0, *ends[:-1]]] == list(map(tuple, root.keys))
    assert independent_reader.cuts(root.keys, list(map(child_weight, root.children)), 1) == [len(root.children)]
