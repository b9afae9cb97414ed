"""Attacks on what is trusted, by name. In each a client that knows revision 1 must go on with it, remember nothing of
the attack, and take revision 3 once the attack has ended; and a client that knows nothing must refuse."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from cvfs.errors import ConfigError, CvfsError, ExpiredError, TrustError, UnreachableError
from cvfs.format.blob import blob_path
from cvfs.heads import Heads
from cvfs.mirrors import Mirrors, Network
from cvfs.trust import names
from cvfs.trust.anchor import find_anchor
from publisher.repository import head
from tests.trust.simulator import DAY_S, DEADLINE_S, NAME, Files, World, resign_with

SIGNED = ("timestamp", "snapshot", "targets")


def withstands(world: World, match: str, tmp_path: Path, *, is_new_refused: bool = True) -> None:
    """What is served now changes nothing for who knows revision 1, and is refused by who knows nothing."""
    before = world.stored()
    found = world.refresh()
    assert found.manifest.revision == 1
    assert re.search(match, found.problem), found.problem
    assert world.stored() == before
    if is_new_refused:
        with pytest.raises(CvfsError):
            world.refresh(state=tmp_path / "new")
        assert not (tmp_path / "new").exists()


def recovers(world: World, honest: Files) -> None:
    """The attack ends, and the client follows again."""
    world.files.clear()
    world.files.update(honest)
    world.publisher.publish(b"after")
    found = world.refresh()
    assert (found.problem, found.manifest.revision) == ("", 3)


def attack(world: World, tmp_path: Path, match: str, spoil: Callable[[Files], object], **options: Any) -> None:
    """Revision 2 is published, and spoilt on its way to the client."""
    world.publisher.publish()
    honest = dict(world.files)
    spoil(world.files)
    assert world.files != honest
    withstands(world, match, tmp_path, **options)
    recovers(world, honest)


def test_no_temporary_directory(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full /tmp is no attack; what is known serves meanwhile."""
    world.publisher.publish()
    honest = dict(world.files)
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
        withstands(world, "cannot verify signatures without a temporary directory: .*No such file", tmp_path)
        with pytest.raises(ConfigError):
            world.refresh(state=tmp_path / "new")
    recovers(world, honest)


@pytest.mark.parametrize("role", SIGNED)
@pytest.mark.parametrize("data", [b"", b"{}", b"\0" * 1000, b"<html>hello</html>", b'{"signed": [], "signatures": 7}'])
def test_arbitrary_content(world: World, tmp_path: Path, role: str, data: bytes) -> None:
    attack(world, tmp_path, ".", lambda files: files.update({world.publisher.current(role): data}))


@pytest.mark.parametrize("role", SIGNED)
def test_one_bit_flipped(world: World, tmp_path: Path, role: str) -> None:
    def flip(files: Files) -> None:
        data = bytearray(files[world.publisher.current(role)])
        data[data.index(b'"version": ') + 11] ^= 4
        files[world.publisher.current(role)] = bytes(data)

    attack(world, tmp_path, "signed|hash|length", flip)


def test_arbitrary_manifest(world: World, tmp_path: Path) -> None:
    world.publisher.publish()
    honest = dict(world.files)
    blob = blob_path(head.read_head(world.publisher.store).blob.id)
    world.files[blob] = world.files[blob][::-1]
    withstands(world, "wrong bytes", tmp_path)
    recovers(world, honest)


def test_arbitrary_root_page(world: World, tmp_path: Path) -> None:
    """What has no readable tree is not remembered, though every signature is right."""
    root = world.publisher.publish().root
    honest = dict(world.files)
    world.files[blob_path(root.id)] = bytes(root.stored_size)
    before = world.stored()
    with pytest.raises(CvfsError, match="wrong bytes"):
        world.refresh()
    assert world.stored() == before
    recovers(world, honest)


def test_rollback_of_the_timestamp(world: World, tmp_path: Path) -> None:
    old = world.files[names.TIMESTAMP]
    world.publisher.publish()
    assert world.refresh().manifest.revision == 2
    before = world.stored()
    world.files[names.TIMESTAMP] = old
    found = world.refresh()
    assert found.manifest.revision == 2
    assert "timestamp version" in found.problem
    assert world.stored() == before


def test_rollback_of_the_snapshot_by_who_has_the_timestamp_key(world: World, tmp_path: Path) -> None:
    def spoil(files: Files) -> None:
        old = files[names.metadata_path("snapshot", 1)]

        def change(timestamp: Any) -> None:
            timestamp.snapshot_meta.version = 1
            timestamp.snapshot_meta.length = None
            timestamp.snapshot_meta.hashes = None

        assert old
        resign_with(files, names.TIMESTAMP, change, *world.publisher.steal("timestamp").values())

    attack(world, tmp_path, "snapshot version", spoil, is_new_refused=False)


def test_rollback_of_the_targets_by_who_has_the_snapshot_key_too(world: World, tmp_path: Path) -> None:
    """The targets name the manifest and the tags, which are rolled back, or not, with them."""

    def spoil(files: Files) -> None:
        stolen = world.publisher.steal("snapshot", "timestamp")
        path = world.publisher.current("snapshot")

        def to_first(snapshot: Any) -> None:
            targets = snapshot.meta["targets.json"]
            targets.version, targets.length, targets.hashes = 1, None, None

        _snapshot(files, path, to_first, stolen)

    attack(world, tmp_path, "targets.json version", spoil, is_new_refused=False)


def test_rollback_of_the_manifest(world: World, tmp_path: Path) -> None:
    """Without the targets key another manifest can only be put in the place of the right one."""
    old = blob_path(head.read_head(world.publisher.store).blob.id)
    world.publisher.publish()
    honest = dict(world.files)
    world.files[blob_path(head.read_head(world.publisher.store).blob.id)] = world.files[old]
    withstands(world, "wrong bytes", tmp_path)
    recovers(world, honest)


def test_freeze(world: World, tmp_path: Path) -> None:
    """A mirror that goes on serving what was right: noticed when the timestamp has expired, and not before."""
    world.now_s += 6 * DAY_S
    assert world.refresh().problem == ""
    world.now_s += DAY_S
    withstands(world, "expired", tmp_path)
    world.publisher.now_s = world.now_s
    world.publisher.resign()
    assert world.refresh().problem == ""


def test_freeze_with_a_timestamp_that_is_newer_and_has_expired_too(world: World, tmp_path: Path) -> None:
    world.publisher.publish()
    world.now_s += 8 * DAY_S
    withstands(world, "expired", tmp_path)


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_mix_and_match(world: World, tmp_path: Path, role: str) -> None:
    """Files of different moments, each signed as it should be."""

    def spoil(files: Files) -> None:
        files[world.publisher.current(role)] = files[names.metadata_path(role, 1)]

    attack(world, tmp_path, "hash|length", spoil)


def test_fast_forward_and_recovery(world: World, tmp_path: Path) -> None:
    """Thieves of the online keys make versions so great that nothing can follow them; new keys undo it."""
    stolen = world.publisher.steal("snapshot", "timestamp")
    honest = dict(world.files)
    path = names.metadata_path("snapshot", 10**6)
    world.files[path] = world.files[world.publisher.current("snapshot")]

    def far(snapshot: Any) -> None:
        snapshot.version = 10**6

    _snapshot(world.files, path, far, stolen, timestamp_version=10**6)
    assert world.refresh().problem == ""
    world.files.clear()
    world.files.update(honest)
    world.publisher.publish()
    assert "version" in world.refresh().problem
    world.publisher.rotate("snapshot")
    world.publisher.rotate("timestamp")
    found = world.refresh()
    assert (found.problem, found.manifest.revision) == ("", 2)


def test_endless_data(world: World, tmp_path: Path) -> None:
    for role in SIGNED:
        honest = dict(world.files)
        world.publisher.publish()
        world.files[world.publisher.current(role)] += b" " * (8 << 20)
        withstands(world, "more than", tmp_path)
        world.files.clear()
        world.files.update(honest)


def test_endless_roots(world: World, tmp_path: Path) -> None:
    """A root of half a megabyte, and one that is the same again and again."""
    world.files[names.metadata_path("root", 2)] = bytes(512 << 10)
    with pytest.raises(CvfsError):
        world.refresh(state=tmp_path / "new")
    world.files[names.metadata_path("root", 2)] = world.first_root
    with pytest.raises(TrustError, match="root version 2"):
        world.refresh(state=tmp_path / "new")


@pytest.mark.parametrize(
    "bomb",
    [
        b"[" * 15_000,
        b'{"signed":' * 1500,
        b'{"signatures": [], "signed": {"version": ' + b"9" * 10_000 + b"}}",
        b'{"signatures": [], "signed": ' + json.dumps({"a" * 9: [[]] * 3000}).encode() + b"}",
        b'{"signatures": [], "signed": {"_type": "timestamp", "version": 1e999}}',
        b"\xff\xfe{\x00}\x00",
    ],
    ids=["nested arrays", "nested objects", "digits", "many", "infinity", "utf-16"],
)
@pytest.mark.parametrize("role", SIGNED)
def test_json_bomb(world: World, tmp_path: Path, role: str, bomb: bytes) -> None:
    attack(world, tmp_path, ".", lambda files: files.update({world.publisher.current(role): bomb}))


@pytest.mark.parametrize("role", SIGNED)
def test_missing_signature(world: World, tmp_path: Path, role: str) -> None:
    attack(world, tmp_path, ".", lambda files: _sign_chain(world, files, role, []))


@pytest.mark.parametrize("role", SIGNED)
def test_wrong_signature(world: World, tmp_path: Path, role: str) -> None:
    """Signed by a key that is trusted, but for another role."""
    other = world.publisher.steal("root")["root"]
    attack(world, tmp_path, "signed by 0/1", lambda files: _sign_chain(world, files, role, [other]))


def test_threshold_not_reached(tmp_path: Path) -> None:
    """One of two root keys cannot make a root, however often it signs."""
    world = World(tmp_path, threshold=2)
    world.publisher.publish()
    assert world.refresh().manifest.revision == 1
    one, other = world.publisher.keys.signers("root")
    assert one.public_key.keyid != other.public_key.keyid
    path = names.metadata_path("root", 2)
    world.files[path] = world.first_root
    resign_with(world.files, path, lambda root: setattr(root, "version", 2), one, one)
    world.publisher.resign_blindly()
    withstands(world, "signed by 1/2", tmp_path)


def test_revoked_key(world: World, tmp_path: Path) -> None:
    """What the old timestamp key signs after its replacement is worth nothing, to old clients too."""
    stolen = world.publisher.steal("timestamp").values()
    world.publisher.rotate("timestamp")

    def spoil(files: Files) -> None:
        resign_with(files, names.TIMESTAMP, lambda timestamp: setattr(timestamp, "version", 99), *stolen)

    assert world.refresh().problem == ""
    attack(world, tmp_path, "signed by 0/1", spoil)


def test_revoked_root_key(world: World, tmp_path: Path) -> None:
    stolen = world.publisher.steal("root").values()
    world.publisher.rotate("root")
    world.publisher.resign()
    assert world.refresh().problem == ""
    path = names.metadata_path("root", 3)
    world.files[path] = world.files[names.metadata_path("root", 2)]
    resign_with(world.files, path, lambda root: setattr(root, "version", 3), *stolen)
    world.publisher.resign_blindly()
    withstands(world, "signed by 0/1", tmp_path)


def test_another_publisher_under_this_address(world: World, tmp_path: Path) -> None:
    other = World(tmp_path / "other")
    other.publisher.publish()
    world.simulator.serve(world.URL, other.files)
    withstands(world, "signed by 0/1", tmp_path)


def test_another_repository_of_the_same_keys(world: World, tmp_path: Path) -> None:
    """Signed by the right keys, but for another name: what is under the root tells."""
    honest = dict(world.files)
    world.publisher.publish(name="other.example.org")
    withstands(world, "serves 'other.example.org' with the root of", tmp_path)
    world.files.clear()
    world.files.update(honest)
    assert world.refresh().problem == ""


def test_another_name_than_the_wanted_one(new_world: World, tmp_path: Path) -> None:
    anchor = find_anchor("", (), sha256=new_world.anchor().sha256, name="wanted.example.org")
    with pytest.raises(TrustError, match=f"serves '{NAME}' where 'wanted.example.org' is wanted"):
        new_world.refresh(anchor=anchor)


def test_names_that_lead_elsewhere_on_a_disk(new_world: World, tmp_path: Path) -> None:
    """Nothing that a mirror or a publisher says becomes the name of a file."""
    (tmp_path / "roots").mkdir()
    (tmp_path / "evil.root.json").write_bytes(new_world.first_root)
    for url in (
        "http://h/..%2fevil",
        "http://h/../evil",
        "http://h/x/..",
        "file:///tmp/%2e%2e%2fevil",
        "http://../evil/..",
    ):
        assert find_anchor(url, [tmp_path / "roots"]).is_empty
    (tmp_path / "roots" / "link").symlink_to(tmp_path)
    assert find_anchor("http://h/link%2fevil", [tmp_path / "roots"]).is_empty
    signers = new_world.publisher.steal("root").values()
    path = names.metadata_path("root", 2)
    new_world.files[path] = new_world.first_root

    def rename(root: Any) -> None:
        root.version = 2
        root.unrecognized_fields[names.REPOSITORY_FIELD] = "../../../evil"

    resign_with(new_world.files, path, rename, *signers)
    with pytest.raises(TrustError):
        new_world.refresh()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.root.json", "keys", "roots"]


def test_state_that_another_has_replaced_by_a_link(world: World, tmp_path: Path) -> None:
    """A link in the place of the new state's temporary name is not followed."""
    import os

    (tmp_path / "victim").write_bytes(b"mine")
    (world.state / f".trusted.json-{os.getpid()}").symlink_to(tmp_path / "victim")
    world.publisher.publish()
    assert world.refresh().manifest.revision == 2
    assert (tmp_path / "victim").read_bytes() == b"mine"


def test_mirror_with_an_older_state_is_left_for_another(world: World) -> None:
    stale = world.simulator.serve("http://stale.example.org", dict(world.files))
    world.publisher.publish()
    assert world.refresh().manifest.revision == 2
    world.urls = [stale, world.URL]
    world.publisher.publish()
    found = world.refresh()
    assert (found.problem, found.manifest.revision) == ("", 3)


def test_mirror_that_is_stuck_at_what_is_known_is_found_out(world: World) -> None:
    """Nothing that it says is wrong or old to this client; only another mirror can tell that there is more."""
    stuck = world.simulator.serve("http://stuck.example.org", dict(world.files))
    world.publisher.publish()
    world.urls = [stuck, world.URL]

    async def ask() -> list[int]:
        mirrors = Mirrors(Network(world.simulator), world.urls)  # type: ignore[arg-type]
        heads = Heads(mirrors, world.URL, world.state, world.anchor(), now=lambda: world.now_s)
        return [(await heads.current(DEADLINE_S)).manifest.revision for _ in range(6)]

    revisions = trio.run(ask)
    assert 1 in revisions
    assert 2 in revisions


def test_mirror_with_an_expired_state_is_left_for_another(new_world: World) -> None:
    stale = new_world.simulator.serve("http://stale.example.org", dict(new_world.files))
    new_world.publisher.now_s = new_world.now_s = new_world.now_s + 8 * DAY_S
    new_world.publisher.resign()
    new_world.urls = [stale, new_world.URL]
    assert new_world.refresh().problem == ""


@pytest.mark.parametrize("role", SIGNED)
def test_mirrors_that_disagree(world: World, role: str) -> None:
    """One that lies about any file is left for one that does not."""
    world.publisher.publish()
    lies = dict(world.files)
    lies[world.publisher.current(role)] = lies[world.publisher.current(role)].replace(b'"version": 2', b'"version": 7')
    world.urls = [world.simulator.serve("http://liar.example.org", lies), world.URL]
    found = world.refresh()
    assert (found.problem, found.manifest.revision) == ("", 2)


def test_mirror_that_has_not_everything_is_left_for_another(world: World) -> None:
    world.publisher.publish()
    for role in ("snapshot", "targets"):
        part = {path: data for path, data in world.files.items() if path != world.publisher.current(role)}
        world.urls = [world.simulator.serve(f"http://no-{role}.example.org", part), world.URL]
        assert world.refresh().problem == ""


def test_all_mirrors_dead(world: World, tmp_path: Path) -> None:
    def dead(path: str, data: bytes | None) -> bytes | None:
        raise UnreachableError(path, "connection refused")

    world.simulator.serve(world.URL, {}, dead)
    before = world.stored()
    found = world.refresh(deadline_s=0.2)
    assert found.manifest.revision == 1
    assert "connection refused" in found.problem
    assert world.stored() == before


def test_trust_on_first_use_holds_afterwards(new_world: World, tmp_path: Path) -> None:
    anchor = find_anchor("", (), first_use=True)
    assert new_world.refresh(anchor=anchor).trusted.origin == "on first use"
    other = World(tmp_path / "other")
    other.publisher.publish()
    new_world.simulator.serve(new_world.URL, other.files)
    for again in (anchor, find_anchor("", ())):
        found = new_world.refresh(anchor=again)
        assert "signed by 0/1" in found.problem
        assert found.trusted.origin == "on first use"


def test_damaged_state_does_not_become_a_new_first_use(new_world: World) -> None:
    anchor = find_anchor("", (), first_use=True)
    new_world.refresh(anchor=anchor)
    (new_world.state / "trusted.json").write_bytes(b"{")
    with pytest.raises(ConfigError, match="cannot use what was trusted before"):
        new_world.refresh(anchor=anchor)
    assert new_world.refresh().problem == ""


def test_no_pin_no_trust(new_world: World) -> None:
    with pytest.raises(ConfigError, match=r"no root of trust for http.*--root FILE or --root-sha256 HEX"):
        new_world.refresh(anchor=find_anchor("", ()))
    assert not new_world.simulator.requests


def test_first_meeting_with_an_expired_timestamp_is_refused(new_world: World) -> None:
    new_world.now_s += 8 * DAY_S
    with pytest.raises(ExpiredError, match="expired"):
        new_world.refresh()


def _snapshot(
    files: Files, path: str, change: Callable[[Any], None], stolen: dict[str, Any], timestamp_version: int = 0
) -> None:
    """A changed snapshot, and a timestamp that fits it."""
    data = resign_with(files, path, change, stolen["snapshot"])

    def point(timestamp: Any) -> None:
        meta = timestamp.snapshot_meta
        meta.version = int(path.split("/")[1].split(".", maxsplit=1)[0])
        meta.length, meta.hashes = len(data), None
        timestamp.version = timestamp_version or timestamp.version

    resign_with(files, names.TIMESTAMP, point, stolen["timestamp"])


def _sign_chain(world: World, files: Files, role: str, signers: list[Any]) -> None:
    """Metadata of `role` signed by `signers` instead of its own key; what is above is right, so that it is reached."""
    from tuf.api.metadata import MetaFile

    stolen = world.publisher.steal(*SIGNED)
    data = resign_with(files, world.publisher.current(role), lambda signed: None, *signers)
    if role == "targets":

        def list_targets(snapshot: Any) -> None:
            snapshot.meta["targets.json"] = MetaFile.from_data(3, data, ["sha256"])

        data = resign_with(files, world.publisher.current("snapshot"), list_targets, stolen["snapshot"])
    if role != "timestamp":

        def list_snapshot(timestamp: Any) -> None:
            timestamp.snapshot_meta = MetaFile.from_data(timestamp.snapshot_meta.version, data, ["sha256"])

        resign_with(files, names.TIMESTAMP, list_snapshot, stolen["timestamp"])
