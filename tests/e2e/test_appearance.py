"""What a mount shows otherwise than it was published: owners, and variables in symbolic links."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.host import Host, Server, Store

MACHINE = os.uname().machine
LINKS = {
    "arch": ("lib-$(ARCH)", f"lib-{MACHINE}"),
    "chosen": ("$(COMPILER:-none)/$(NOT_SET)x", "gcc13/x"),
    "default": ("$(NOT_SET:-lib/any)", "lib/any"),
    "plain": ("$ARCH/$(", "$ARCH/$("),
}


@pytest.fixture(scope="module")
def mnt(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Mounted with an owner, a map of groups, and a variable."""
    top = tmp_path_factory.mktemp("appearance")
    tree = top / "tree"
    (tree / f"lib-{MACHINE}").mkdir(parents=True)
    (tree / f"lib-{MACHINE}/x").write_text("found")
    for name, (target, _) in LINKS.items():
        (tree / name).symlink_to(target)
    for name, gid in (("mapped", 1000), ("other", 1001)):
        (tree / name).write_text(name)
        (tree / name).chmod(0o640)
        os.chown(tree / name, 1234, gid)
    store = Store(top / "store")
    store.publish(tree)
    (top / "gids").write_text("1000 2000\n* 65534\n")
    host = Host(top / "host", engine)
    host.top.mkdir()
    with Server(store.path, top) as server:
        yield host.mount(server.url, "--uid", "7", "--gid-map", top / "gids", "--variable", "COMPILER=gcc13")
        host.close()


def test_owners_are_those_of_the_settings(mnt: Path) -> None:
    listed = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(mnt)}
    assert {(status.st_uid, status.st_gid) for name, status in listed.items() if name != "mapped"} == {(7, 65534)}
    assert (listed["mapped"].st_uid, listed["mapped"].st_gid) == (7, 2000)
    for path in (mnt / "mapped", mnt / "arch", mnt):
        assert os.lstat(path).st_uid == 7
    assert _readable_by(mnt / "mapped", 7, 1)
    assert _readable_by(mnt / "mapped", 5, 2000)
    assert not _readable_by(mnt / "mapped", 1234, 1000)


def _readable_by(path: Path, uid: int, gid: int) -> bool:
    directory = os.open(path.parent, os.O_RDONLY)  # pytest's own are closed to others
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
        try:
            os.close(os.open(path.name, os.O_RDONLY, dir_fd=directory))
        except OSError:
            os._exit(1)
        os._exit(0)
    os.close(directory)
    return os.waitpid(pid, 0)[1] == 0


def test_variables_in_links_are_resolved(mnt: Path) -> None:
    for name, (_, shown) in LINKS.items():
        assert os.readlink(mnt / name) == shown
        assert os.lstat(mnt / name).st_size == len(shown)
    sizes = {entry.name: entry.stat(follow_symlinks=False).st_size for entry in os.scandir(mnt)}
    assert {name: sizes[name] for name in LINKS} == {name: len(shown) for name, (_, shown) in LINKS.items()}
    assert (mnt / "arch/x").read_text() == "found"
