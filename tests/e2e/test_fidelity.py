"""What is mounted is what was published (docs/semantics.md): each statement by itself, against literal values."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.e2e.host import Store, run
from tests.e2e.zoo import (
    CAPABILITY,
    DEEP,
    GIB,
    MODES,
    NAMES,
    OWNERS,
    SIZES,
    SPARSE_BYTES,
    SPARSE_DATA,
    SPARSE_END,
    TIMES_NS,
    XATTRS,
    Zoo,
    content,
    look,
)


def test_everything_is_as_it_was_published(zoo: Zoo, mnt: Path) -> None:
    wanted, timed, got = look(zoo.main), look(zoo.timed), look(mnt)
    # Publishing `times` beside the rest changed the root: one directory more, and the time at which it came.
    root = wanted.facts[b""]
    wanted.facts[b""] = root._replace(nlink=root.nlink + 1, mtime_ns=got.facts[b""].mtime_ns)
    wanted.facts.update({b"times/" + path if path else b"times": facts for path, facts in timed.facts.items()})
    assert got.facts.keys() == wanted.facts.keys()
    assert {path: (got.facts[path], facts) for path, facts in wanted.facts.items() if got.facts[path] != facts} == {}
    assert got.links == wanted.links


def test_names_are_bytes(mnt: Path) -> None:
    top = os.fsencode(mnt / "names")
    assert os.listdir(top) == sorted(NAMES)
    for name in NAMES:
        with open(top + b"/" + name, "rb") as file:
            assert file.read() == b"content of " + name


def test_names_that_are_not_there(mnt: Path) -> None:
    for name in (b"n" * 254, b"N" * 255, b"\xfe" * 255, "É".encode(), b"new", b"absent\xff"):
        with pytest.raises(FileNotFoundError):
            os.lstat(os.fsencode(mnt / "names") + b"/" + name)
    with pytest.raises(OSError, match="File name too long"):
        os.lstat(mnt / "names" / ("n" * 256))
    with pytest.raises(NotADirectoryError):
        os.lstat(mnt / "sizes/1/below a file")


def test_modes_with_set_id_and_sticky_bits(mnt: Path) -> None:
    for mode in MODES:
        assert stat.S_IMODE(os.lstat(mnt / f"modes/{mode:04o}").st_mode) == mode
        assert stat.S_IMODE(os.lstat(mnt / f"modes/d{mode:04o}").st_mode) == mode


def test_owners_up_to_the_last(mnt: Path) -> None:
    for owner in OWNERS:
        status = os.lstat(mnt / f"owners/{owner}")
        assert (status.st_uid, status.st_gid) == (owner, (1 << 32) - 2 - owner)


def test_times_before_1970_and_after_2106_to_the_nanosecond(mnt: Path) -> None:
    for mtime_ns in TIMES_NS:
        assert os.lstat(mnt / f"times/{mtime_ns}").st_mtime_ns == mtime_ns
    assert os.lstat(mnt / "times/link").st_mtime_ns == -5
    assert os.lstat(mnt / "times/directory").st_mtime_ns == 1 << 62


def test_atime_and_ctime_are_the_mtime(mnt: Path) -> None:
    (mnt / "sizes/4095").read_bytes()
    status = os.lstat(mnt / "sizes/4095")
    assert status.st_atime_ns == status.st_ctime_ns == status.st_mtime_ns


def test_symbolic_links_say_what_was_published(mnt: Path) -> None:
    links = mnt / "links"
    assert os.readlink(links / "dangling") == "nowhere"
    assert os.readlink(os.fsencode(links / "bytes")) == b"\xff\n\xfe"
    assert os.readlink(links / "long") == "../" * 1361 + "x" * 12
    assert os.lstat(links / "long").st_size == len(os.readlink(links / "long")) == 4095
    assert (os.lstat(links / "dangling").st_uid, os.lstat(links / "dangling").st_gid) == (12, 34)


def test_symbolic_links_are_followed_by_the_kernel(mnt: Path) -> None:
    links = mnt / "links"
    assert (links / "relative").read_bytes() == content(1)
    assert os.path.samefile(links / "root", "/")
    assert os.path.samefile(links / "up", mnt)
    with pytest.raises(FileNotFoundError):
        os.stat(links / "dangling")
    for name in ("self", "one", "two"):
        with pytest.raises(OSError, match="Too many levels of symbolic links"):
            os.stat(links / name)


def test_hard_links_are_one_inode_across_directories(mnt: Path) -> None:
    groups = {
        3: ["a/file", "b/file", "c/another name"],
        2: ["a/empty", "b/empty"],
    }
    for count, names in groups.items():
        statuses = [os.lstat(mnt / "hard" / name) for name in names]
        assert {status.st_nlink for status in statuses} == {count}
        assert len({status.st_ino for status in statuses}) == 1
    for first, second in (("a/symlink", "c/symlink"), ("a/fifo", "b/fifo"), ("a/large", "c/large")):
        one, other = os.lstat(mnt / "hard" / first), os.lstat(mnt / "hard" / second)
        assert (one.st_ino, one.st_nlink) == (other.st_ino, 2)


def test_a_link_whose_other_name_was_not_published_counts_one(zoo: Zoo, mnt: Path) -> None:
    assert os.lstat(zoo.main / "hard/a/outside").st_nlink == 2
    assert os.lstat(mnt / "hard/a/outside").st_nlink == 1


def test_what_is_no_hard_link_has_an_inode_of_its_own(mnt: Path) -> None:
    """Equal content is stored once, but is not one file."""
    large, same = os.lstat(mnt / "sizes" / str(SIZES[-1])), os.lstat(mnt / "sizes/same")
    assert large.st_ino != same.st_ino
    numbers = [entry.inode() for entry in os.scandir(mnt / "names")]
    assert len(set(numbers)) == len(NAMES)


def test_listing_and_stat_agree_on_inodes_and_types(mnt: Path) -> None:
    for directory in ("", "special", "links", "hard/a", "empty", "modes"):
        for entry in os.scandir(mnt / directory):
            status = os.lstat(entry.path)
            assert entry.inode() == status.st_ino
            assert entry.is_dir(follow_symlinks=False) == stat.S_ISDIR(status.st_mode)
            assert entry.is_symlink() == stat.S_ISLNK(status.st_mode)


def test_empty_files_and_directories(mnt: Path) -> None:
    assert (mnt / "empty/file").read_bytes() == b""
    assert os.listdir(mnt / "empty/directory") == [] == os.listdir(mnt / "empty/nested/empty")


def test_link_counts_of_directories(mnt: Path) -> None:
    assert os.lstat(mnt / "empty").st_nlink == 4
    assert os.lstat(mnt / "empty/nested").st_nlink == 3
    assert os.lstat(mnt / "empty/directory").st_nlink == 2


def test_xattrs_of_files_and_directories(mnt: Path) -> None:
    for name in ("file", "directory"):
        path = os.fsencode(mnt / "xattrs" / name)
        assert {os.fsencode(key): os.getxattr(path, key) for key in os.listxattr(path)} == XATTRS
    assert os.listxattr(mnt / "xattrs/bare") == []
    assert os.getxattr(mnt / "xattrs/link", "trusted.of-a-link", follow_symlinks=False) == b"yes"


def test_xattrs_that_are_not_there(mnt: Path) -> None:
    for name in (b"user.absent", b"user.tex", b"user.text\xff", b"system.posix_acl_access", b"security.selinux"):
        with pytest.raises(OSError, match=r"No data available|Operation not supported"):
            os.getxattr(mnt / "xattrs/file", name)


def test_getxattr_tells_the_size_before_the_value(mnt: Path) -> None:
    shown = run("getfattr", "--absolute-names", "-d", "-m-", "-ehex", mnt / "xattrs/file").stdout
    assert b"user.binary=0x" + bytes(range(256)).hex().encode() in shown


def test_file_capabilities_are_seen(mnt: Path) -> None:
    assert os.getxattr(mnt / "xattrs/capable", "security.capability") == CAPABILITY
    assert b"cap_net_bind_service=ep" in run("getcap", mnt / "xattrs/capable").stdout


def test_fifos_sockets_and_devices(mnt: Path) -> None:
    special = mnt / "special"
    assert stat.S_ISFIFO(os.lstat(special / "fifo").st_mode)
    assert stat.S_ISSOCK(os.lstat(special / "socket").st_mode)
    char, block = os.lstat(special / "char"), os.lstat(special / "block")
    assert stat.S_ISCHR(char.st_mode)
    assert char.st_rdev == os.makedev(4095, (1 << 20) - 1)
    assert stat.S_ISBLK(block.st_mode)
    assert block.st_rdev == os.makedev(259, 77_777)


def test_a_fifo_carries_bytes(mnt: Path) -> None:
    """Also on a read-only mount: what is in a fifo is not in the file system."""
    descriptor = os.open(mnt / "special/fifo", os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(descriptor, b"through")
        assert os.read(descriptor, 100) == b"through"
    finally:
        os.close(descriptor)


def test_a_device_is_one_where_devices_count(mnt: Path) -> None:
    with open(mnt / "special/null", "r+b", buffering=0) as null:
        assert null.write(b"gone") == 4
        assert null.read(1) == b""


@pytest.mark.parametrize("size", SIZES)
def test_contents_on_both_sides_of_every_border(mnt: Path, size: int) -> None:
    path = mnt / "sizes" / str(size)
    assert path.read_bytes() == content(size)
    assert os.lstat(path).st_size == size


def test_reads_at_any_offset(mnt: Path) -> None:
    size = SIZES[-1]
    data = content(size)
    with open(mnt / f"sizes/{size}", "rb", buffering=0) as file:
        for offset in (0, 1, 4095, (4 << 20) - 1, 4 << 20, size - 5000, size - 1, size, size + 1, 1 << 40):
            for length in (1, 4096, 200_001):
                assert os.pread(file.fileno(), length, offset) == data[offset : offset + length]


def test_a_sparse_file_beyond_4_gib(mnt: Path) -> None:
    with open(mnt / "sparse/file", "rb", buffering=0) as file:
        assert os.fstat(file.fileno()).st_size == SPARSE_BYTES
        for offset, data in (SPARSE_DATA | {SPARSE_BYTES - len(SPARSE_END): SPARSE_END}).items():
            start = max(offset - 10, 0)
            wanted = bytes(offset - start) + data
            assert os.pread(file.fileno(), len(wanted), start) == wanted
        assert os.pread(file.fileno(), 100_000, 3 * GIB + 17) == bytes(100_000)
        assert os.pread(file.fileno(), 100, SPARSE_BYTES) == b""


def test_blocks_count_what_is_stored(mnt: Path) -> None:
    assert os.lstat(mnt / "sparse/hole").st_blocks == 0 == os.lstat(mnt / "empty/file").st_blocks
    # Zeros are left out chunk by chunk, not byte by byte.
    assert 0 < os.lstat(mnt / "sparse/file").st_blocks * 512 < 64 << 20
    for size in SIZES:
        assert os.lstat(mnt / f"sizes/{size}").st_blocks == -(-size // 512)


def test_a_path_of_four_thousand_bytes(mnt: Path) -> None:
    """Too long to be named together with the mount point, so from inside."""
    top = os.open(mnt, os.O_RDONLY)
    try:
        assert len(DEEP) > 3_900
        with open(os.open(DEEP, os.O_RDONLY, dir_fd=top), "rb") as file:
            assert file.read() == b"deep down"
        with pytest.raises(FileNotFoundError):
            os.stat(DEEP + b"r", dir_fd=top)
    finally:
        os.close(top)


def test_a_time_that_64_bits_do_not_hold_is_refused(tree: Path, store: Store) -> None:
    """ext4 goes on to 2446, tmpfs for ever; the format ends in 2262."""
    (tree / "file").touch()
    subprocess.run(["touch", "-d", "2300-01-01", tree / "file"], check=True)
    if os.lstat(tree / "file").st_mtime < 9e9:
        pytest.skip("this file system cannot have such a time either")
    with pytest.raises(AssertionError, match=r"after 2262.*/file"):
        store.publish(tree)
