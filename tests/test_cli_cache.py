"""cvfs cache: the real command, while a mount is in use."""

import contextlib
import json
import mmap
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cvfs.cache.shards import count
from tests import kernel_caches
from tests.command import Command, wait_until
from tests.e2e.host import NAME, Server, Store, trust
from tests.e2e.zoo import content

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and /dev/fuse")

MIB = 1 << 20
LARGE = 9 * MIB
SMALL = {f"dir{number % 3}/small{number}": content(20_000 + number) for number in range(60)}
FILES = {**SMALL, "large/one": content(LARGE), "large/two": content(5 * MIB)}


class Scene:
    """A published tree, served and mounted on `mnt` of the host that `cvfs` acts on."""

    def __init__(self, top: Path) -> None:
        self.cvfs, self.mnt = Command(top), top / "mnt"
        self.cvfs.environment |= {"CVFS_ROOT": str(trust().root)}
        self.cache = self.cvfs.cache
        for name, data in FILES.items():
            (top / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            (top / "tree" / name).write_bytes(data)
        self.store = Store(top / "store")
        self.store.publish(top / "tree")
        self.server = Server(self.store.path, top)
        self.mnt.mkdir()
        self.cvfs.ok("mount", self.server.url, self.mnt)

    def remount(self) -> None:
        """Another process, and nothing in the kernel's caches."""
        self.cvfs.ok("umount", self.mnt)
        self.cvfs.ok("mount", self.server.url, self.mnt)

    def read_all(self) -> None:
        for name, data in FILES.items():
            assert (self.mnt / name).read_bytes() == data, name

    def explode_all(self) -> None:
        """Read all, and wait until there is no pack left that is not exploded."""
        self.read_all()
        wait_until(lambda: len(self.files("objects")) == len(SMALL) and not self.files("packs"))

    def info(self) -> dict[str, object]:
        return json.loads(self.cvfs.ok("cache", "info", "--json"))  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Have all files counted without end meanwhile."""
        done = threading.Event()

        def work() -> None:
            while not done.is_set():
                self.info()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def files(self, kind: str) -> list[Path]:
        return sorted(self.cache.glob(f"{kind}/??/*"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    scene = Scene(tmp_path_factory.mktemp("host"))
    yield scene
    scene.cvfs("umount", scene.mnt)
    scene.server.close()
    leftovers = scene.cvfs.leftovers()
    scene.cvfs.clean_up()
    assert not leftovers


def test_info_says_what_is_there(scene: Scene) -> None:
    scene.read_all()
    wait_until(lambda: scene.info()["packs"]["files"])  # type: ignore[index]
    scene.explode_all()
    found = scene.info()
    assert found["directory"] == str(scene.cache)
    size = sum(path.stat().st_blocks * 512 for path in scene.files("objects"))
    assert found["objects"] == {"files": 60, "bytes": size}
    assert found["large"]["files"] == 2  # type: ignore[index]
    assert found["used_bytes"] == sum(found[kind]["bytes"] for kind in ("objects", "large", "blobs"))  # type: ignore[index]
    assert found["hits"] > 0  # type: ignore[operator]
    assert found["misses"] > 0  # type: ignore[operator]
    text = scene.cvfs.ok("cache", "info").decode()
    assert "small files:" in text
    assert "in 60 files" in text

    def mount_says_the_same() -> bool:
        """In the end: what the inode index takes of the limit it has looked up some seconds ago."""
        cache = scene.cvfs.status(scene.mnt)["cache"]
        return all(cache[name] == found[name] for name in ("used_bytes", "limit_bytes"))

    wait_until(mount_says_the_same, timeout_s=60)


def test_limits_are_options_and_variables(scene: Scene) -> None:
    said = json.loads(scene.cvfs.ok("cache", "info", "--json", "--cache-limit", "1 GiB", "--keep-free", "1 MiB"))
    assert said["keep_free_bytes"] == MIB
    assert (1 << 30) - 4 * MIB < said["limit_bytes"] < 1 << 30
    said = json.loads(scene.cvfs.ok("cache", "info", "--json", extra={"CVFS_CACHE_LIMIT": "100 MB"}))
    assert 10**8 - 4 * MIB < said["limit_bytes"] < 10**8


def test_verify_finds_nothing_where_nothing_is_wrong(scene: Scene) -> None:
    scene.explode_all()
    found = json.loads(scene.cvfs.ok("cache", "verify", "--json"))
    assert found["files"] == 62 + len(scene.files("blobs"))
    assert (found["removed"], found["blanked_chunks"], found["unknown"]) == (0, 0, 0)
    assert scene.cvfs.ok("cache", "verify", "--quiet") == b""


Damage = Callable[[Path], None]


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def grown(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def zero_block(path: Path) -> None:
    """As a file system leaves it that journals metadata alone."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 // 4096 * 4096)
        file.write(bytes(4096))


def all_zeros(path: Path) -> None:
    size = path.stat().st_size
    os.truncate(path, 0)
    os.truncate(path, size)


def flipped_bit(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(random.randrange(path.stat().st_size))
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 16]))


def anothers(path: Path) -> None:
    shutil.copyfile(max(path.parents[1].glob("*/*")), path)


DAMAGES = (truncated, emptied, grown, zero_block, all_zeros, flipped_bit, anothers)


def damage_all(scene: Scene) -> int:
    """Damage of every kind in every kind of file; how many were damaged."""
    damaged = [path for kind in ("objects", "packs", "blobs") for path in scene.files(kind)[:-1]]
    for number, path in enumerate(damaged):
        DAMAGES[number % len(DAMAGES)](path)
    return len(damaged)


def test_verify_removes_what_is_damaged(scene: Scene) -> None:
    scene.explode_all()
    damaged = damage_all(scene)
    outcome = scene.cvfs("cache", "verify", "--json")
    assert outcome.returncode == 1
    found = json.loads(outcome.stdout)
    assert found["removed"] == damaged
    assert json.loads(scene.cvfs.ok("cache", "verify", "--json"))["removed"] == 0
    scene.remount()
    scene.read_all()


def test_verify_blanks_out_damaged_pieces_of_large_files(scene: Scene) -> None:
    scene.remount()
    scene.read_all()
    [largest] = [path for path in scene.files("large") if path.stat().st_size == LARGE]
    with largest.open("r+b") as file:
        for offset in (0, LARGE - 4096):
            file.seek(offset)
            file.write(b"x" * 4096)
    outcome = scene.cvfs("cache", "verify", "--json")
    found = json.loads(outcome.stdout)
    assert (outcome.returncode, found["blanked_chunks"], found["removed"], found["unknown"]) == (1, 2, 0, 0)
    assert json.loads(scene.cvfs.ok("cache", "verify", "--json"))["blanked_chunks"] == 0, "missing is not damaged"
    scene.remount()
    before = len(scene.server.requests())
    scene.read_all()
    assert 1 <= len(scene.server.requests()) - before <= 2


@pytest.mark.parametrize("are_files", [True, False])
def test_damage_without_verify_reaches_no_reader(scene: Scene, are_files: bool) -> None:
    """Also that of the large files, the ledger, pins and locks."""
    scene.cvfs.ok("cache", "wipe", "--yes")
    scene.remount()
    scene.read_all()
    if are_files:
        scene.explode_all()
    scene.cvfs.ok("umount", scene.mnt)
    damage_all(scene)
    for path in scene.files("large"):
        zero_block(path)
    for name in ("usage", "usage.counting", "locks"):
        (scene.cache / name).write_bytes(bytes(100))
    scene.cvfs.ok("mount", scene.server.url, scene.mnt)
    scene.read_all()
    # A small file whose pack is in memory again was not looked at: what is wrong with it is found now.
    scene.cvfs("cache", "verify", "--quiet")
    assert scene.cvfs.ok("cache", "verify", "--quiet") == b""
    scene.remount()
    scene.read_all()


@pytest.mark.parametrize(
    ("damage", "marker"), [(truncated, b""), (zero_block, b"\0\0"), ("older", b"\xff\xfe"), ("gone", b"0\n")]
)
def test_what_is_not_content_is_begun_anew(scene: Scene, damage: Damage | str, marker: bytes) -> None:
    """The index and the marker of the layout: torn, or written by another version."""
    scene.cvfs.ok("umount", scene.mnt)
    [index] = [path for path in (scene.cache / "index").iterdir() if ".broken-" not in path.name]
    if damage == "gone":
        shutil.rmtree(index)
    for path in index.glob("*"):
        if damage == "older":
            path.write_bytes(b"cvfs-old" + path.read_bytes()[8:])
        elif path.stat().st_size:
            damage(path)  # type: ignore[operator]
    (scene.cache / "CVFS-CACHE").write_bytes(marker)
    assert scene.cvfs("mount", scene.server.url, scene.mnt).returncode == 0
    scene.read_all()
    assert (scene.cache / "CVFS-CACHE").read_bytes() == b"1\n"


def test_gc_shrinks_and_wipe_empties_while_files_are_read(scene: Scene) -> None:
    scene.read_all()
    with contextlib.ExitStack() as held:
        files = {name: held.enter_context((scene.mnt / name).open("rb")) for name in SMALL}
        assert scene.cvfs.ok("cache", "gc") == b"0 bytes freed, %s left\n" % terminal_size(scene).encode()
        scene.cvfs.ok("cache", "gc", "--to", "3 MiB", "--quiet")
        assert 0 < used(scene) <= 3 * MIB
        assert scene.cvfs("cache", "wipe").returncode != 0, "nobody was there to confirm it"
        assert used(scene) > 0
        assert b"freed" in scene.cvfs.ok("cache", "wipe", "--yes")
        assert used(scene) == 0
        for name, file in files.items():
            assert file.read() == SMALL[name]
    scene.remount()
    scene.read_all()
    assert used(scene) > LARGE


@pytest.mark.parametrize("are_files", [True, False])
def test_what_users_have_open_stays(scene: Scene, are_files: bool) -> None:
    """By a descriptor, or mapped and closed; also in packs, and also if the server is gone by then."""
    scene.cvfs.ok("cache", "wipe", "--yes")
    scene.remount()
    scene.read_all()
    if are_files:
        scene.explode_all()
    kernel_caches.drop()
    opened, mapped, large = "dir0/small0", "dir1/small1", "large/two"
    with contextlib.ExitStack() as held:
        files = {name: held.enter_context((scene.mnt / name).open("rb")) for name in (opened, large)}
        with (scene.mnt / mapped).open("rb") as file:
            files[mapped] = held.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        assert "in use" in scene.cvfs.refused("cache", "gc", "--to", "0")
        assert [path.stat().st_size for path in scene.files("large")] == [len(FILES[large])]
        assert len(scene.files("objects")) == (2 if are_files else 0)
        kernel_caches.drop()
        scene.server.close()
        try:
            assert {name: file.read() for name, file in files.items()} == {name: FILES[name] for name in files}
        finally:
            scene.server = Server(scene.store.path, scene.mnt.parent, scene.server.port)
    wait_until(lambda: scene.cvfs("cache", "gc", "--to", "0") and not scene.files("objects") + scene.files("packs"))


def test_what_is_open_stays_also_where_it_is_most_of_the_cache(scene: Scene) -> None:
    """All else has what is left of the limit, if not for long."""
    limit = 16 * MIB
    scene.cvfs.ok("umount", scene.mnt)
    scene.cvfs.ok("cache", "wipe", "--yes")
    scene.cvfs.ok("mount", scene.server.url, scene.mnt, "--cache-limit", str(limit))
    held, others = "large/one", [name for name in FILES if name != "large/one"]
    assert limit // 2 < len(FILES[held]) < limit - 4 * MIB, "the index takes its part"
    with (scene.mnt / held).open("rb") as file:
        assert file.read() == FILES[held]
        wait_until(lambda: any(path.stat().st_blocks * 512 >= LARGE for path in scene.files("large")))
        [cached] = [path for path in scene.files("large") if path.stat().st_size == LARGE]
        os.utime(cached, (time.time() - 3600,) * 2)  # what was used least recently
        for _ in range(3):
            kernel_caches.drop()
            assert all((scene.mnt / name).read_bytes() == FILES[name] for name in others)
        assert "in use" in scene.cvfs.refused("cache", "gc", "--to", "4 MiB", "--cache-limit", "16 MiB")
        assert sum(count(scene.cache)) <= limit
        kernel_caches.drop()
        scene.server.close()
        try:
            file.seek(0)
            assert file.read() == FILES[held]
        finally:
            scene.server = Server(scene.store.path, scene.mnt.parent, scene.server.port)
    scene.remount()


def used(scene: Scene) -> int:
    return scene.info()["used_bytes"]  # type: ignore[return-value]


def terminal_size(scene: Scene) -> str:
    from cvfs.terminal import show_size

    return show_size(used(scene))


def test_gc_refuses_what_it_does_not_understand_or_cannot_do(scene: Scene) -> None:
    assert "--to" in scene.cvfs.refused("cache", "gc", "--to", "much")
    assert "cannot" in scene.cvfs.refused("cache", "gc", "--cache", "/dev/null/x")


def test_pinned_paths_come_and_stay(scene: Scene) -> None:
    scene.cvfs.ok("cache", "wipe", "--yes")
    assert b"1 file, 9.0 MiB are pinned" in scene.cvfs.ok("cache", "pin", scene.server.url, "large/one")
    scene.cvfs.ok("cache", "pin", scene.mnt / "dir1", "--quiet")
    pins = scene.info()["pins"]
    assert [(pin["repository"], pin["path"]) for pin in pins] == [(NAME, "dir1"), (NAME, "large/one")]  # type: ignore[attr-defined]
    scene.remount()
    scene.read_all()
    assert "pinned" in scene.cvfs.refused("cache", "gc", "--to", "0")
    assert len(scene.files("objects")) == 20
    assert len(scene.files("large")) == 1
    scene.cvfs.ok("umount", scene.mnt)
    scene.server.close()
    try:
        scene.cvfs("mount", scene.server.url, scene.mnt)
        assert all((scene.mnt / name).read_bytes() == data for name, data in FILES.items() if name.startswith("dir1/"))
        assert (scene.mnt / "large/one").read_bytes() == FILES["large/one"]
        with pytest.raises(OSError, match="Input/output"):
            (scene.mnt / "dir2/small2").read_bytes()
    finally:
        scene.server = Server(scene.store.path, scene.mnt.parent, scene.server.port)
    assert "at most" in scene.cvfs.refused("cache", "pin", scene.server.url, "--cache-limit", "12 MB")
    scene.cvfs.ok("cache", "unpin", scene.server.url, "large/one")
    scene.cvfs.ok("cache", "unpin", scene.mnt / "dir1")
    assert "not pinned" in scene.cvfs.refused("cache", "unpin", scene.mnt / "dir1")
    scene.cvfs.ok("cache", "gc", "--to", "300 KiB")
    assert not scene.files("large")


@pytest.mark.parametrize("limit", [13 * MIB, 8 * MIB])
def test_limit_of_a_mount_is_kept(scene: Scene, limit: int) -> None:
    """As the disk has it, beside the index; also while somebody counts again and again. Nothing is served uncached, not
    even of a file that is larger than the cache: it is too large to stay because it is open."""
    scene.cvfs.ok("umount", scene.mnt)
    scene.cvfs.ok("cache", "wipe", "--yes")
    scene.cvfs.ok("mount", scene.server.url, scene.mnt, "--cache-limit", str(limit))
    with scene.counting():
        for _ in range(2):
            scene.read_all()
            wait_until(lambda: sum(count(scene.cache)) <= limit)
    assert scene.cvfs.status(scene.mnt)["fetcher"]["uncached"] == 0, scene.cvfs.log()
    scene.remount()
