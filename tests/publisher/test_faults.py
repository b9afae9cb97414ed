"""Publishes that cannot go on: the old revision stays whole, the user learns why in one line, the next one succeeds."""

import errno
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from cvfs.errors import ConfigError, PublishError, StoreError
from cvfs.format.blob import blob_path
from cvfs.trust.names import TIMESTAMP
from publisher.maintenance.rollback import rollback
from publisher.publishing import new_tree
from publisher.publishing import publish as publish_module
from publisher.repository.create import create
from publisher.signing.keys import Keys
from publisher.source import small_files as read_module
from publisher.source.large_files import LargeReader
from publisher.source.scanned import Unread
from publisher.source.tree import SourceTree
from publisher.state import index as index_module
from publisher.state.database import Tables
from publisher.state.index import open_index
from publisher.store import DirectoryStore, open_store
from tests.cache.disks import fill, needs_root, small_disk
from tests.publisher.stores import NAME, NOW_S, Store, command, environment, error_line, run
from tests.trees import Directory, File, make_tree, snapshot

MANY = {b"%02d/%03d" % (i % 20, i): File(data=random.Random(i).randbytes(i * 11)) for i in range(1500)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    make_tree(tmp_path / "tree", {b"a": File(data=b"a"), b"d/b": File(data=b"b" * 5000)})
    return tmp_path / "tree"


def test_killed_at_any_moment_loses_nothing(tmp_path: Path, store: Store, tree: Path) -> None:
    store.publish(tree)
    before, head = store.snapshot(), store.manifest
    make_tree(tree / "many", MANY)
    arguments = command("publish", store.path, tree, "--state", store.state, "--quiet")
    chance = random.Random(1)
    took_s = _time_to_publish(tmp_path / "other", tree)
    killed = 0
    for _ in range(25):
        with subprocess.Popen(arguments, env=environment()) as process:
            time.sleep(chance.uniform(0, 0.9 * took_s))  # A moment of no significance, not a wait for something.
            process.kill()
        killed += process.returncode == -signal.SIGKILL
        if store.manifest != head:
            break
        assert store.snapshot() == before
    assert killed
    (store.path / ".publisher/incoming/1-2-3").write_bytes(b"half")
    assert run("publish", store.path, tree, "--state", store.state).returncode == 0
    assert store.manifest.revision == head.revision + 1
    assert store.snapshot() == snapshot(tree, count_links=True)
    assert list((store.path / ".publisher/incoming").iterdir()) == []


def _time_to_publish(place: Path, tree: Path) -> float:
    """Seconds, for the whole process."""
    other = Store(place)
    started = time.monotonic()
    assert run("publish", other.path, tree, "--state", other.state).returncode == 0
    return time.monotonic() - started


@pytest.mark.parametrize("failure", ["unreadable", "interrupted", "killed"])
def test_what_a_failed_publish_has_read_is_not_read_again(
    store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    make_tree(tree / "m", MANY)
    make_tree(tree / "z", {b"last/%d" % i: File(data=b"%d" % i * 3000) for i in range(300)})
    with monkeypatch.context() as patch:
        if failure == "killed":
            _die_when_saved(patch, store, tree)
        else:
            _fail_at_the_last_file(patch, failure)
            with pytest.raises((PublishError, KeyboardInterrupt)):
                store.publish(tree)
    again = store.publish(tree)
    assert again.counts.files_read < 1500, "of 1802: what was in flight"
    assert store.snapshot() == snapshot(tree, count_links=True)


def _fail_at_the_last_file(patch: pytest.MonkeyPatch, failure: str) -> None:
    def read_once(source: SourceTree, file: Unread) -> object:
        if file.path == b"z/last/99":
            if failure == "interrupted":
                raise KeyboardInterrupt
            raise source.error(file.path, PermissionError(errno.EACCES, "Permission denied"))
        return original(source, file)

    original = read_module._read_once
    patch.setattr(read_module, "_read_once", read_once)


def _die_when_saved(patch: pytest.MonkeyPatch, store: Store, tree: Path) -> None:
    """A publish in a process of its own that is killed at its last file, and saves its index often."""
    child = os.fork()
    if not child:
        patch.setattr(index_module, "_SAVE_S", 0.0)
        patch.setattr(SourceTree, "changed", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        patch.setattr(read_module, "_read_once", _unless_last(read_module._read_once))
        store.publish(tree)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def _unless_last(function):  # type: ignore[no-untyped-def]
    return lambda source, file: None if file.path == b"z/last/99" else function(source, file)


def test_an_index_that_cannot_be_saved_costs_only_time(
    store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its disk is full, say: what was put since the last save has gone, and the publish goes on."""

    def commit(session: object) -> None:
        commits.append(session)
        if len(commits) % 2:
            raise lmdb.DiskError("No space left on device")
        original(session)

    commits: list[object] = []
    original = Tables.commit
    make_tree(tree / "m", MANY)
    make_tree(tree / "n", MANY)
    with monkeypatch.context() as patch:
        patch.setattr(index_module, "_SAVE_S", 0.0)
        patch.setattr(Tables, "commit", commit)
        assert store.publish(tree).is_published
    assert len(commits) > 3
    assert store.snapshot() == snapshot(tree, count_links=True)
    assert not store.publish(tree).is_published
    assert store.snapshot() == snapshot(tree, count_links=True)


def test_state_that_is_broken_again_and_again_is_one_line(
    store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count(*_: object) -> int:
        raise lmdb.CorruptedError("broken")

    monkeypatch.setattr(Tables, "count", count)
    with pytest.raises(StoreError, match=r"cannot keep state in .*broken.*--state DIR"):
        store.publish(tree)


@pytest.mark.parametrize("moment", ["opened", "written"])
@pytest.mark.parametrize("error", [lmdb.MemoryError, lmdb.DiskError, lmdb.MapFullError, lmdb.Error])
def test_memory_or_a_disk_that_fails_costs_no_index(
    store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch, moment: str, error: type[Exception]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error("it fails")

    store.publish(tree)
    make_tree(tree, {b"new": File(data=b"new")})
    with monkeypatch.context() as patch:
        patch.setattr(*((lmdb, "open") if moment == "opened" else (Tables, "put")), fail)
        with pytest.raises(StoreError, match=r"cannot keep state in .*it fails.*--state DIR"):
            store.publish(tree)
    assert store.publish(tree).counts.files_read == 1


def test_published_is_published_whatever_happens_to_the_state(
    store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def set_covered(*_: object) -> None:
        raise lmdb.DiskError("No space left on device")

    warnings: list[str] = []
    monkeypatch.setattr(Path, "write_bytes", refuse)
    monkeypatch.setattr(index_module.Index, "set_covered", set_covered)
    opened = open_store(str(store.path))
    monkeypatch.setattr(new_tree, "update_index", lambda *_: None)
    watch = publish_module.Watch(warn=warnings.append)
    report = publish_module.publish(opened, str(tree), store.state, publish_module.Options(), NOW_S, watch, store.keys)
    assert (report.is_published, report.changes.new) == (True, 2)
    [line] = warnings
    assert line.startswith("revision 1 is published, but this host cannot remember it")
    assert "No space left on device" in line
    made = rollback(opened, store.keys, store.state, 0, "", NOW_S, warnings.append)
    assert made is not None
    assert warnings[1].startswith("revision 2 is published, but")
    assert store.manifest.revision == 2


def test_state_that_another_publisher_uses(store: Store, tree: Path, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    with open_index(store.state, lambda _: True, None):
        line = error_line(run("publish", other.path, tree, "--no-wait", "--state", store.state))
        assert "another publisher uses the state" in line
        assert "--state" in line
        arguments = command("publish", other.path, tree, "--state", store.state)
        waiting = subprocess.Popen(
            arguments, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert waiting.stderr is not None
        assert "waiting for it" in waiting.stderr.readline()
    waiting.communicate(timeout=60)
    assert waiting.returncode == 0


def test_init_that_was_killed_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DirectoryStore, "write_head", die)
        with pytest.raises(KeyboardInterrupt):
            Store(tmp_path / "store")
    store = Store(tmp_path / "store")
    assert store.manifest.revision == 0
    with pytest.raises(ConfigError, match="belong to a repository already"):
        create(str(tmp_path / "other"), NAME, NOW_S, store.keys)


def test_init_that_is_killed_again_and_again_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each at another time, so that each makes another root."""

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    head, kept, metadata = (DirectoryStore, "write_head"), (Keys, "keep_root"), (DirectoryStore, "replace_metadata")
    for now_s, (owner, name) in enumerate((head, kept, head, metadata, kept, metadata, head), NOW_S):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, die)
            with pytest.raises(KeyboardInterrupt):
                create(str(tmp_path / "store"), NAME, now_s, Keys(tmp_path / "store-keys"))
    assert Store(tmp_path / "store").manifest.revision == 0


def test_init_makes_nothing_of_a_store_that_has_lost_its_head(store: Store, tree: Path) -> None:
    store.publish(tree)
    head = (store.path / TIMESTAMP).read_bytes()
    (store.path / TIMESTAMP).unlink()
    for keys in (store.keys, Keys(store.path.with_name("others"))):
        with pytest.raises(StoreError, match="has lost its metadata/timestamp"):
            create(str(store.path), NAME, NOW_S, keys)
    (store.path / TIMESTAMP).write_bytes(head)
    assert store.manifest.revision == 1


def test_killed_just_before_the_head_moves(store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publish_module, "advance", die)
        with pytest.raises(KeyboardInterrupt):
            store.publish(tree)
    assert store.manifest.revision == 0
    again = store.publish(tree)
    assert again.is_published
    assert (again.counts.packs, again.counts.files_read) == (0, 0)  # They are there already, and known.
    assert store.snapshot() == snapshot(tree, count_links=True)


@needs_root
@pytest.mark.parametrize("size_kib", [160, 600, 2000, 3500])
def test_disk_full(tmp_path: Path, size_kib: int) -> None:
    tree, disk = tmp_path / "tree", tmp_path / "disk"
    make_tree(tree, {b"small": File(data=b"x")})
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "tmpfs", disk], check=True)
    try:
        store = Store(disk / "store")
        store.state = tmp_path / "state"
        store.publish(tree)
        before = store.snapshot()
        make_tree(tree, {b"f%d" % i: File(data=os.urandom(400_000)) for i in range(12)})
        line = error_line(run("publish", store.path, tree, "--state", store.state))
        assert "No space left on device" in line
        assert store.snapshot() == before
        assert list((store.path / ".publisher/incoming").iterdir()) == []
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        assert store.publish(tree).is_published
        assert store.snapshot() == snapshot(tree, count_links=True)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_address_space_that_is_limited(store: Store, tree: Path) -> None:
    """As on hosts where many work: 6 GB, which is less than the index would have."""
    line = command("publish", store.path, tree, "--state", store.state)
    limited = ["sh", "-c", 'ulimit -v 6000000 && exec "$@"', "sh", *line]
    done = subprocess.run(limited, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert store.manifest.revision == 1


@needs_root
def test_state_on_a_full_disk_is_one_line(tmp_path: Path, store: Store, tree: Path) -> None:
    with small_disk(tmp_path / "disk", "300k") as disk:
        filler = fill(disk)
        line = error_line(run("publish", store.path, tree, "--state", disk / "state"))
        assert line.startswith("cannot keep state in ")
        assert line.endswith("No space left on device (choose with --state DIR)")
        filler.unlink()
        assert run("publish", store.path, tree, "--state", disk / "state").returncode == 0


@pytest.mark.parametrize("what", ["file", "directory"])
def test_unreadable_is_named(tmp_path: Path, store: Store, what: str) -> None:
    name = "a\nb" if what == "file" else "closed"
    node = File(data=b"", mode=0o000) if what == "file" else Directory(mode=0o000)
    make_tree(tmp_path / "tree", {b"x/1": File(data=b"1"), b"x/" + name.encode(): node})
    publish = command("publish", store.path, tmp_path / "tree", "--state", store.state)
    if os.geteuid() == 0:
        publish = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *publish]
    result = subprocess.run(publish, env=environment(), capture_output=True, text=True, check=False, timeout=60)
    line = error_line(result)
    assert line.startswith("cannot read ")
    assert line.endswith("Permission denied (let the publisher's user read it, or leave it out with --exclude)")
    assert repr(name)[1:-1] in line
    assert store.manifest.revision == 0


@pytest.mark.parametrize("size", [1000, 6 << 20])
def test_a_file_that_keeps_changing_is_an_error(store: Store, tree: Path, size: int) -> None:
    file = tree / "log"
    file.write_bytes(b"0" * size)
    with (
        _touching(file, times=99),
        pytest.raises(PublishError, match=r"changed while it was read: .*/log \(publish again"),
    ):
        store.publish(tree)
    assert store.manifest.revision == 0


@pytest.mark.parametrize("size", [1000, 6 << 20])
def test_a_file_that_changes_once_is_read_again(store: Store, tree: Path, size: int) -> None:
    file = tree / "log"
    file.write_bytes(b"0" * size)
    with _touching(file, times=1):
        store.publish(tree)
    assert store.snapshot() == snapshot(tree, count_links=True)


class _touching:  # noqa: N801
    """Writes to a file whenever it is about to be read, so many times."""

    def __init__(self, file: Path, times: int) -> None:
        self._file, self._times = os.fsencode(file.name), times
        self._full = file
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> None:
        self._patch.setattr(read_module, "_read_once", self._before(read_module._read_once))
        self._patch.setattr(LargeReader, "_finish", self._before(LargeReader._finish))

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def _before(self, function):  # type: ignore[no-untyped-def]
        def call(*arguments):  # type: ignore[no-untyped-def]
            is_ours = isinstance(arguments[0], LargeReader) or arguments[1].path == self._file
            if is_ours and self._times:
                self._times -= 1
                with open(self._full, "r+b") as file:
                    file.write(b"%d" % self._times)
                os.utime(self._full, ns=(self._times, self._times))
            return function(*arguments)

        return call


def test_a_file_that_disappears_is_named(store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = SourceTree.walk

    def walk(source: SourceTree) -> Iterator[object]:
        for directory in original(source):
            (tree / "a").unlink(missing_ok=True)
            yield directory

    monkeypatch.setattr(SourceTree, "walk", walk)
    with pytest.raises(PublishError, match=r"cannot read .*/tree/a: No such file or directory \(publish again"):
        store.publish(tree)
    assert store.manifest.revision == 0


@pytest.mark.parametrize("moment", ["listed", "scanned"])
@pytest.mark.parametrize("size", [1000, 6 << 20])
def test_a_directory_that_becomes_a_symbolic_link_leads_nowhere(
    store: Store, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, size: int
) -> None:
    """Whoever owns the tree would have files published that only the publisher may read."""
    make_tree(tree / "up", {b"in/secret": File(data=b"1" * size)})
    make_tree(tmp_path / "etc", {b"in/secret": File(data=b"2" * size)})

    def swap() -> None:
        if not (tree / "up").is_symlink():
            (tree / "up").rename(tmp_path / "away")
            (tree / "up").symlink_to(tmp_path / "etc")

    original = SourceTree.open_directory

    def open_directory(source: SourceTree, path: bytes) -> int:
        if path == b"up/in":
            swap()
        return original(source, path)

    def wait_until_settled(status: os.stat_result) -> int:
        if status.st_size == size:
            swap()
        return 0

    if moment == "listed":
        monkeypatch.setattr(SourceTree, "open_directory", open_directory)
    else:
        monkeypatch.setattr(read_module, "wait_until_settled", wait_until_settled)
        monkeypatch.setattr("publisher.source.large_files.wait_until_settled", wait_until_settled)
    with pytest.raises(PublishError, match=r"changed while it was read: .*up/in"):
        store.publish(tree)
    assert (tree / "up").is_symlink()
    assert store.manifest.revision == 0


def test_two_publishers_one_waits(store: Store, tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    make_tree(other, {b"c": File(data=b"c")})
    opened = open_store(str(store.path))
    with opened.lock(None):
        line = error_line(run("publish", store.path, tree, "--no-wait", "--state", store.state))
        assert "another publisher is at work" in line
        arguments = command("publish", store.path, other, "--at", "other", "--state", tmp_path / "state2")
        waiting = subprocess.Popen(
            arguments, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert waiting.stderr is not None
        assert "waiting for it" in waiting.stderr.readline()
        assert store.manifest.revision == 0
    waiting.communicate(timeout=60)
    assert waiting.returncode == 0
    assert store.manifest.revision == 1


def test_many_publishers_at_once_lose_nothing(store: Store, tmp_path: Path) -> None:
    running = []
    for number in range(4):
        top = tmp_path / f"tree{number}"
        make_tree(top, {b"%d/%d" % (number, i): File(data=os.urandom(2000)) for i in range(40)})
        arguments = command("publish", store.path, top, "--at", f"at/{number}", "--state", store.state, "--quiet")
        running.append(subprocess.Popen(arguments, env=environment(), stderr=subprocess.DEVNULL))
    assert [process.wait(60) for process in running] == [0] * 4
    assert store.manifest.revision == 4
    found = store.snapshot()
    for number in range(4):
        for path, facts in snapshot(tmp_path / f"tree{number}", count_links=True).items():
            assert found[(b"at/%d/%s" % (number, path)).rstrip(b"/")] == facts


def test_the_head_moves_only_from_what_it_was(store: Store, tree: Path) -> None:
    opened = open_store(str(store.path))
    with pytest.raises(StoreError, match="another publisher"):
        opened.swap_head(b"something else", b"new")
    assert store.manifest.revision == 0


def _garbage(path: Path) -> None:
    path.write_bytes(os.urandom(50_000))


def _half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _scrambled_behind(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8192:] = random.Random(3).randbytes(len(data) - 8192)
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [_garbage, _half, Path.unlink, _scrambled_behind])
def test_a_damaged_or_lost_index_is_made_again(store: Store, tree: Path, damage) -> None:  # type: ignore[no-untyped-def]
    make_tree(tree / "many", MANY)
    store.publish(tree)
    before = store.manifest
    damage(store.state / "index/data.mdb")
    result = run("publish", store.path, tree, "--state", store.state, "--json")
    assert result.returncode == 0, result
    report = json.loads(result.stdout)
    assert (report["published"], report["stored"]["packs"]) == (False, 0)
    assert store.manifest == before
    assert store.publish(tree).counts.files_read == 0


def test_an_index_of_a_store_that_was_made_anew(tmp_path: Path, store: Store, tree: Path) -> None:
    store.publish(tree)
    subprocess.run(["rm", "-r", store.path, store.keys.directory], check=True)
    again = Store(store.path)
    again.publish(tree)
    assert again.snapshot() == snapshot(tree, count_links=True)


def test_a_pack_that_is_gone_or_cut_short_is_made_again(store: Store, tree: Path) -> None:
    store.publish(tree)
    [location] = {record.content.locations[0].pack for record in store.records() if record.entry.content_id}
    pack = store.path / f"data/{location.id.hex()[:2]}/{location.id.hex()[2:]}"
    os.truncate(pack, 3)
    store.publish(tree)
    assert store.snapshot() == snapshot(tree, count_links=True)


def test_a_lost_pack_is_made_again_in_a_new_revision(store: Store, tree: Path) -> None:
    """As others lie in it: revision 1 packed `a` beside `b`, which has changed since, so there is no such pack now."""
    make_tree(tree, {b"other": File(data=os.urandom(3000))})
    store.publish(tree)
    before = store.snapshot()
    [pack] = {record.content.locations[0].pack for record in store.records() if record.entry.content_id}
    (tree / "d/b").write_bytes(os.urandom(4000))
    store.publish(tree)
    (store.path / blob_path(pack.id)).unlink()
    told = store.publish(tree, is_dry_run=True)
    assert (told.is_published, told.is_repair) == (False, True)
    done = run("publish", store.path, tree, "--state", store.state)
    assert done.stdout.startswith("Published revision 3 of"), done
    assert "packs that the store had lost are made again" in done.stdout
    assert store.snapshot() == snapshot(tree, count_links=True) != before
    assert not store.publish(tree).is_published
    assert run("check", store.path).returncode == 0


def test_pages_that_are_lost_or_broken_are_made_again(store: Store, tree: Path, tmp_path: Path) -> None:
    """If all of the tree is published: its parent need not be read then."""
    make_tree(tree / "many", MANY)
    store.publish(tree)
    for breaks in (Path.unlink, lambda path: path.write_bytes(bytes(path.stat().st_size))):
        breaks(store.path / blob_path(store.manifest.root.id))
        store.state = tmp_path / f"state{store.manifest.revision}"
        make_tree(tree, {b"new%d" % store.manifest.revision: File(data=b"new")})
        refused = run("publish", store.path, tree, "--at", "x", "--state", store.state)
        assert blob_path(store.manifest.root.id) in error_line(refused)
        done = run("publish", store.path, tree, "--state", store.state)
        assert done.returncode == 0, done.stderr
        assert "revision" in done.stderr
        assert "is damaged" in done.stderr
        assert run("check", store.path).returncode == 0
        assert store.snapshot() == snapshot(tree, count_links=True)
    assert store.manifest.revision == 3


def test_a_pack_that_only_others_have_lost_makes_no_revision(store: Store, tree: Path, tmp_path: Path) -> None:
    """The index knows places that the newest revision does not name."""
    first = os.urandom(3000)
    make_tree(tree, {b"other": File(data=first)})
    store.publish(tree)
    packs = {record.content.locations[0].pack for record in store.records() if record.entry.content_id}
    store.publish(tmp_path / "tree/d")
    for pack in packs - {record.content.locations[0].pack for record in store.records() if record.entry.content_id}:
        (store.path / blob_path(pack.id)).unlink()
    assert not store.publish(tmp_path / "tree/d").is_published


def test_a_user_mistake_is_one_line(tmp_path: Path, store: Store, tree: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("")
    mistakes = {
        ("publish", tmp_path / "none", tree): "not a store",
        ("publish", tmp_path / "file", tree): "not a store",
        ("publish", tree, tree): "not a store",
        ("publish", store.path, tmp_path / "file"): "not a directory",
        ("publish", store.path, tmp_path / "none"): "No such file",
        ("publish", store.path, tmp_path): "inside the tree",
        ("publish", store.path, tree, "--at", "a/../b"): "not a path",
        ("publish", store.path, tree, "--at", "x" * 300): "not a path",
        ("publish", store.path, tree, "--state", tmp_path / "file/x"): "Not a directory",
        ("publish", store.path, tree, "--state", tree / "x"): "inside the tree",
        ("init", store.path, "--name", "a.b"): "already a store",
        ("init", tmp_path / "full", "--name", "a.b"): "not empty",
        ("init", tmp_path / "file", "--name", "a.b"): "cannot make",
        ("init", tmp_path / "new", "--name", "A B"): "not a repository name",
    }
    for arguments, message in mistakes.items():
        assert message in error_line(run(*arguments)), arguments
    assert run("publish", store.path).returncode == 2
    assert run("nonsense").returncode == 2


def test_a_head_that_is_not_ours(store: Store, tree: Path) -> None:
    head = store.path / TIMESTAMP
    for data in (b"", b"<html>", b"{}", head.read_bytes().replace(b'"version": 1', b'"version": 2'), b"x" * 100_000):
        head.write_bytes(data)
        line = error_line(run("publish", store.path, tree))
        assert "is not signed as it should be" in line or "is larger than" in line


def test_ctrl_c_is_one_line_too(store: Store, tree: Path) -> None:
    os.mkfifo(tree / "unread")
    opened = open_store(str(store.path))
    with opened.lock(None):
        process = subprocess.Popen(
            command("publish", store.path, tree), env=environment(), stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        assert "waiting" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.split() == ["cvfs-publisher:", "error:", "interrupted"]
