"""What a mount says of itself in extended attributes that nobody meets who does not ask for them."""

import os
from pathlib import Path

import pytest
from blake3 import blake3

import cvfs
from cvfs.about import NAMES
from tests.e2e.host import NAME, Host, Server, Store, run, wait_until

LARGE = os.urandom(1 << 20) * 12


def _ask(path: Path, name: str) -> str:
    return os.getxattr(path, f"user.cvfs.{name}").decode()


def test_a_mount_says_what_it_shows(mnt: Path, zoo_server: Server, zoo_host: Host) -> None:
    file = mnt / "xattrs/bare"
    for path in (mnt, file):
        assert _ask(path, "revision") == str(zoo_host.status(mnt)["revision"])
        assert _ask(path, "repository") == NAME
        assert _ask(path, "version") == cvfs.__version__
        assert _ask(path, "mirror") == zoo_server.url
        assert len(bytes.fromhex(_ask(path, "root"))) == 32
    assert _ask(file, "content_id") == blake3(file.read_bytes()).hexdigest()
    for name in ("content_id", "nonsense"):
        with pytest.raises(OSError, match="No data"):
            _ask(mnt, name)


def test_how_much_of_a_file_is_cached(host: Host, server: Server, store: Store, tree: Path) -> None:
    (tree / "large").write_bytes(LARGE)
    (tree / "small").write_bytes(b"small")
    (tree / "empty").touch()
    store.publish(tree)
    mount = host.mount(server.url)
    assert [_ask(mount / name, "cached") for name in ("small", "large", "empty")] == ["0%", "0%", "100%"]
    (mount / "small").read_bytes()
    with open(mount / "large", "rb") as file:
        file.read(1)
    wait_until(lambda: _ask(mount / "small", "cached") == "100%")
    wait_until(lambda: _ask(mount / "large", "cached") != "0%")
    (mount / "large").read_bytes()
    wait_until(lambda: _ask(mount / "large", "cached") == "100%")
    host.umount(mount)


def test_nobody_meets_them(mnt: Path, tmp_path: Path) -> None:
    file = mnt / "xattrs/bare"
    assert os.listxattr(file) == os.listxattr(mnt) == []
    run("cp", "-a", file, tmp_path / "copy")
    assert os.listxattr(tmp_path / "copy") == []
    archive, tar = tmp_path / "archive", ("tar", "--xattrs", "--xattrs-include=*")
    run(*tar, "-cf", archive, "-C", mnt, "xattrs")
    assert b"user.cvfs" not in archive.read_bytes()
    assert b"SCHILY.xattr.user." in archive.read_bytes()  # real ones are there
    run(*tar, "-xf", archive, "-C", tmp_path)
    assert os.listxattr(tmp_path / "xattrs/bare") == []
    assert b"user.cvfs.revision=" in run("getfattr", "--absolute-names", "-n", "user.cvfs.revision", file).stdout


@pytest.mark.parametrize("engine", ["channel"])
@pytest.mark.usefixtures("kept_kernel_caches")
def test_what_a_long_listing_asks(host: Host, server: Server, store: Store, tree: Path) -> None:
    """Nothing but what ls(1) wants to know of each file, security.selinux and system.posix_acl_access.

    The kernel caches no extended attributes, and asks no more only where all of them are answered ENOSYS, also the real
    ones. With POSIX_ACL negotiated it asks once for each file instead of twice, but then whoever does not own the files
    pays for it: to read these 200 was 203 GETXATTR instead of none, each time (seen on Linux 6.18).
    """
    for number in range(200):
        (tree / f"file{number}").touch()
    store.publish(tree)
    mount = host.mount(server.url)
    run("ls", "-l", mount)
    before = host.status(mount)["requests"]
    run("ls", "-l", mount)
    after = host.status(mount)["requests"]
    new = {name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name, 0)}
    assert set(new) <= {"GETXATTR"}
    assert new.get("GETXATTR", 0) <= 2 * 200 + 4
    host.umount(mount)


def test_the_document_names_them_all() -> None:
    text = Path(__file__).parents[2].joinpath("docs/semantics.md").read_text()
    assert all(f"`{name.decode()}`" in text for name in NAMES)
