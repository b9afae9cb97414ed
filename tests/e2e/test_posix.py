"""What system calls do on a mount (docs/semantics.md): refusals, permissions, locks, seeking, mapping, watching."""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.host import Host, Server, Store, run
from tests.e2e.zoo import MIB, NAMES, SIZES, content

FILE, BIG = "sizes/4095", f"sizes/{SIZES[-1]}"

WRITES: dict[str, Callable[[Path], object]] = {
    "open for writing": lambda top: os.open(top / FILE, os.O_WRONLY),
    "open for both": lambda top: os.open(top / FILE, os.O_RDWR),
    "open and truncate": lambda top: os.open(top / FILE, os.O_RDONLY | os.O_TRUNC),
    "open and append": lambda top: os.open(top / FILE, os.O_WRONLY | os.O_APPEND),
    "create": lambda top: os.open(top / "new", os.O_WRONLY | os.O_CREAT, 0o644),
    "create for reading": lambda top: os.open(top / "new", os.O_RDONLY | os.O_CREAT, 0o644),
    "create a nameless file": lambda top: os.open(top, os.O_RDWR | os.O_TMPFILE, 0o644),
    "mkdir": lambda top: os.mkdir(top / "new"),
    "rmdir": lambda top: os.rmdir(top / "empty/directory"),
    "unlink": lambda top: os.unlink(top / FILE),
    "rename": lambda top: os.rename(top / FILE, top / "sizes/other"),
    "link": lambda top: os.link(top / FILE, top / "sizes/other"),
    "symlink": lambda top: os.symlink("target", top / "new"),
    "mknod": lambda top: os.mknod(top / "new", 0o100644),
    "mkfifo": lambda top: os.mkfifo(top / "new"),
    "chmod": lambda top: os.chmod(top / FILE, 0o600),
    "chown": lambda top: os.chown(top / FILE, 1, 1),
    "chown of a link": lambda top: os.lchown(top / "links/self", 1, 1),
    "utime": lambda top: os.utime(top / FILE),
    "truncate": lambda top: os.truncate(top / FILE, 0),
    "setxattr": lambda top: os.setxattr(top / FILE, "user.new", b""),
    "removexattr": lambda top: os.removexattr(top / "xattrs/file", "user.text"),
}


@pytest.mark.parametrize("what", WRITES)
def test_writes_are_refused_with_erofs(mnt: Path, what: str) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number says more than a text
        WRITES[what](mnt)
    assert caught.value.errno == errno.EROFS


def test_what_is_open_for_reading_cannot_be_written(mnt: Path) -> None:
    with open(mnt / FILE, "rb", buffering=0) as file:
        for write in (lambda: os.write(file.fileno(), b"x"), lambda: os.ftruncate(file.fileno(), 0)):
            with pytest.raises(OSError, match=r"Bad file descriptor|Invalid argument"):
                write()
        with pytest.raises(OSError, match=r"Read-only file system"):
            os.fchmod(file.fileno(), 0o600)


def test_the_mount_is_read_only_to_statvfs(mnt: Path) -> None:
    facts = os.statvfs(mnt)
    assert facts.f_flag & os.ST_RDONLY
    assert facts.f_namemax == 255
    assert not facts.f_flag & os.ST_NOSUID


def test_access_says_what_open_does(mnt: Path) -> None:
    assert os.access(mnt / FILE, os.R_OK)
    assert not os.access(mnt / FILE, os.W_OK)
    assert os.access(mnt / "modes/0755", os.X_OK)
    assert not os.access(mnt / "modes/0644", os.X_OK)


def test_modes_are_enforced_by_the_kernel(mnt: Path) -> None:
    """As another user: what the mode gives others is allowed, all else is EACCES; 0700 directories are closed."""
    program = (
        "import os, errno\n"
        "def ask(action, *arguments):\n"
        "    try:\n"
        "        action(*arguments)\n"
        "        return 'ok'\n"
        "    except OSError as error:\n"
        "        return errno.errorcode[error.errno]\n"
        "print(ask(os.listdir, 'modes/d0755'), ask(os.listdir, 'modes/d0000'), ask(os.listdir, 'modes/d0111'),\n"
        "      ask(os.stat, 'modes/d0111/absent'), ask(os.stat, 'modes/d0644/absent'),\n"
        "      ask(os.open, 'modes/0644', 0), ask(os.open, 'modes/0007', 0), ask(os.open, 'modes/0111', 0),\n"
        "      os.access('modes/0111', os.R_OK), os.access('modes/0111', os.X_OK), os.access('modes/0644', os.R_OK))\n"
    )
    # The interpreter may be where only root can go: fork, change user, go on.
    switch = f"import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n{program}"
    done = run(sys.executable, "-c", switch, cwd=mnt).stdout.decode().split()
    assert done[:5] == ["ok", "EACCES", "EACCES", "ENOENT", "EACCES"]
    assert done[5:] == ["ok", "ok", "EACCES", "False", "True", "True"]


def test_another_user_is_kept_out_without_allow_other(zoo_host: Host, zoo_server: Server) -> None:
    private = zoo_host.mount(zoo_server.url, "--no-allow-other")
    outcome = run("setpriv", "--reuid=65534", "--clear-groups", "ls", ".", cwd=private, check=False)
    assert b"Permission denied" in outcome.stderr
    zoo_host.umount(private)


def test_o_direct_reads(mnt: Path) -> None:
    descriptor = os.open(mnt / BIG, os.O_RDONLY | os.O_DIRECT)
    try:
        buffer = mmap.mmap(-1, MIB)
        for offset in (0, MIB, 8 * MIB):
            assert os.preadv(descriptor, [buffer], offset) == MIB
            assert buffer[:] == content(SIZES[-1])[offset : offset + MIB]
        assert os.preadv(descriptor, [buffer], 9 * MIB) == 5
    finally:
        os.close(descriptor)


def test_sendfile_and_splice(mnt: Path, tmp_path: Path) -> None:
    data = content(SIZES[-1])
    with open(mnt / BIG, "rb") as source, open(tmp_path / "copy", "w+b") as target:
        assert os.sendfile(target.fileno(), source.fileno(), 0, MIB) == MIB
        target.seek(0)
        assert target.read() == data[:MIB]
    reader, writer = os.pipe()
    with open(mnt / BIG, "rb") as source:
        moved = os.splice(source.fileno(), writer, 65536, offset_src=4 * MIB)
        assert os.read(reader, 65536) == data[4 * MIB : 4 * MIB + moved]
    os.close(reader)
    os.close(writer)


def test_copy_file_range_is_left_to_the_kernel(mnt: Path, tmp_path: Path) -> None:
    """Between file systems of two kinds, Linux refuses it since 5.19, and cp(1) copies in another way."""
    with open(mnt / FILE, "rb") as source, open(tmp_path / "copy", "wb") as target, contextlib.suppress(OSError):
        assert os.copy_file_range(source.fileno(), target.fileno(), 4095) == 4095
    run("cp", "--reflink=auto", mnt / FILE, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content(4095)


def test_mapped_files(mnt: Path) -> None:
    data = content(SIZES[-1])
    with open(mnt / BIG, "rb") as file:
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as shared:
            assert shared[:] == data
        with mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as private:
            private[5 * MIB] ^= 0xFF
            assert private[5 * MIB] != data[5 * MIB]
        with pytest.raises(PermissionError):
            mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        assert os.pread(file.fileno(), 1, 5 * MIB) == data[5 * MIB : 5 * MIB + 1]


def test_seeking_for_holes_never_hides_data(mnt: Path) -> None:
    """A file system may call all of a file data; what it calls a hole must be one."""
    with open(mnt / "sparse/hole", "rb", buffering=0) as file:
        assert file.seek(0, os.SEEK_HOLE) in (0, 64 * MIB)
    with open(mnt / BIG, "rb", buffering=0) as file:
        assert file.seek(0, os.SEEK_DATA) == 0
        assert file.seek(0, os.SEEK_HOLE) == SIZES[-1]
        with pytest.raises(OSError, match=r"No such device or address"):
            file.seek(SIZES[-1], os.SEEK_DATA)
    with open(mnt / "sparse/file", "rb", buffering=0) as file:
        for offset in (0, 4 << 30, (4 << 30) + 123_456_789):
            assert file.seek(offset, os.SEEK_DATA) == offset


def test_locks_are_kept_on_this_host(mnt: Path) -> None:
    """flock and fcntl locks work between the processes of a host, as on any read-only local file system."""
    held = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1], 'rb')\n"
        "for lock in (fcntl.flock, fcntl.lockf):\n"
        "    try:\n"
        "        lock(file, fcntl.LOCK_SH | fcntl.LOCK_NB); print('got it')\n"
        "    except BlockingIOError:\n"
        "        print('held')\n"
    )
    with open(mnt / FILE, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run(sys.executable, "-c", held, mnt / FILE).stdout.split(b"\n")[0] == b"held"
        fcntl.flock(file, fcntl.LOCK_UN)
        assert run(sys.executable, "-c", held, mnt / FILE).stdout == b"got it\ngot it\n"
        with pytest.raises(OSError, match=r"Bad file descriptor"):
            fcntl.lockf(file, fcntl.LOCK_EX)


def test_inotify_sees_what_this_host_does(mnt: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    watcher = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(watcher, os.fsencode(mnt / "sizes"), 0x20) == 1  # IN_OPEN
    (mnt / FILE).read_bytes()
    assert select.select([watcher], [], [], 5)[0]
    assert b"4095" in os.read(watcher, 4096)
    os.close(watcher)


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_ushort),
        ("d_type", ctypes.c_ubyte),
        ("d_name", ctypes.c_char * 256),
    )


def test_directories_can_be_sought_in(mnt: Path) -> None:
    """telldir, seekdir and rewinddir: each position leads to the same names again, in any order."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.opendir.restype = ctypes.c_void_p
    libc.readdir.restype = ctypes.POINTER(_Dirent)
    libc.telldir.restype = ctypes.c_long
    for name in ("opendir", "readdir", "telldir", "seekdir", "rewinddir", "closedir"):
        getattr(libc, name).argtypes = [ctypes.c_char_p if name == "opendir" else ctypes.c_void_p]
    libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
    stream = libc.opendir(os.fsencode(mnt / "names"))
    names, places = [], []
    while True:
        places.append(libc.telldir(stream))
        entry = libc.readdir(stream)
        if not entry:
            break
        names.append(bytes(entry.contents.d_name))
    assert sorted(names) == sorted([*NAMES, b".", b".."])
    for number in (5, 0, 100, len(names) - 1, 1, 2, 50):
        libc.seekdir(stream, places[number])
        assert bytes(libc.readdir(stream).contents.d_name) == names[number]
    libc.rewinddir(stream)
    assert bytes(libc.readdir(stream).contents.d_name) == names[0]
    libc.closedir(stream)


def test_listing_while_listing(mnt: Path) -> None:
    """Two handles of one directory do not disturb each other."""
    with os.scandir(mnt / "modes") as one, os.scandir(mnt / "modes") as other:
        first = [entry.name for _, entry in zip(range(20), one, strict=False)]
        assert [entry.name for entry in other][:20] == first
        assert len(first) + len(list(one)) == len(os.listdir(mnt / "modes"))


def test_statx(mnt: Path) -> None:
    shown = run("stat", "--printf=%F|%s|%h|%W|%y", mnt / FILE).stdout.split(b"|")
    assert shown[:3] == [b"regular file", b"4095", b"1"]
    assert shown[3] in (b"0", b"-")


def test_dot_and_dot_dot(mnt: Path) -> None:
    assert os.path.samefile(mnt / "empty/nested/..", mnt / "empty")
    assert os.path.samefile(mnt / "empty/.", mnt / "empty")
    inner = {name: inode for name, inode in _raw_listing(mnt / "empty/nested").items() if name in (b".", b"..")}
    assert inner[b"."] == os.stat(mnt / "empty/nested").st_ino
    assert inner[b".."] == os.stat(mnt / "empty").st_ino


def _raw_listing(directory: Path) -> dict[bytes, int]:
    lines = run("ls", "-ai", "--zero", directory).stdout.split(b"\0")[:-1]
    return {line.split(maxsplit=1)[1]: int(line.split()[0]) for line in lines}


def test_open_by_handle_and_o_path(mnt: Path) -> None:
    descriptor = os.open(mnt / FILE, os.O_PATH)
    try:
        with open(f"/proc/self/fd/{descriptor}", "rb") as file:
            assert file.read() == content(4095)
    finally:
        os.close(descriptor)


def test_kinds_are_told_apart(mnt: Path) -> None:
    with pytest.raises(IsADirectoryError):
        (mnt / "empty").read_bytes()
    with pytest.raises(NotADirectoryError):
        os.listdir(mnt / FILE)
    with pytest.raises(OSError, match=r"Invalid argument"):
        os.readlink(mnt / FILE)
    with pytest.raises(OSError, match=r"Too many levels of symbolic links"):
        os.open(mnt / "links/self", os.O_RDONLY)
    with pytest.raises(OSError, match=r"Too many levels of symbolic links"):
        os.open(mnt / "links/relative", os.O_RDONLY | os.O_NOFOLLOW)


def test_many_readers_at_once(mnt: Path) -> None:
    """Of the same cold file and of others, in processes of their own."""
    readers = [subprocess.Popen(["sha256sum", mnt / BIG], stdout=subprocess.PIPE) for _ in range(8)]
    readers += [subprocess.Popen(["sha256sum", mnt / "hard/a/large"], stdout=subprocess.PIPE) for _ in range(4)]
    sums = [reader.communicate(timeout=60)[0].split()[0] for reader in readers]
    assert len(set(sums[:8])) == len(set(sums[8:])) == 1
    assert all(reader.returncode == 0 for reader in readers)


def test_a_mount_does_not_follow_a_later_revision_by_halves(host: Host, store: Store, tree: Path) -> None:
    """A mount shows one revision, whole, until it next looks for a newer one; mounted anew, it shows that, whole."""
    (tree / "file").write_text("one")
    store.publish(tree)
    mount = host.mount(store.path)
    (tree / "file").write_text("second")
    (tree / "other").write_text("new")
    store.publish(tree)
    assert (mount / "file").read_text() == "one"
    assert os.listdir(mount) == ["file"]
    host.remount(mount, store.path)
    assert (mount / "file").read_text() == "second"
    assert (mount / "other").read_text() == "new"
