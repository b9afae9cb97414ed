"""Real mounts: directly, in a user namespace, through fusermount3 as a plain user; and every way to be refused."""

import errno
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cvfs.errors import MountError
from cvfs.fuse import helper, kernel, mountinfo
from cvfs.fuse.engines import OLDEST_RELEASE, kernel_release
from cvfs.fuse.mountinfo import find_mount
from cvfs.fuse.options import MountOptions
from cvfs.fuse.protocol import bodies, codes, notices, requests
from tests.fuse.static_tree import StaticTree

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not os.access(kernel.DEVICE, os.R_OK | os.W_OK), reason="needs root and /dev/fuse"
)
OPTIONS = MountOptions("software.example.org", allow_other=True)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An empty directory with a name that mountinfo has to escape."""
    path = tmp_path / "mount \\ point\n"
    path.mkdir()
    return path


@contextmanager
def served(descriptor: int) -> Iterator[list[bodies.Request]]:
    """A StaticTree answers `descriptor` until the mount is gone; what was asked."""
    asked: list[bodies.Request] = []
    tree = StaticTree(zero_message=True)

    def serve() -> None:
        while data := receive(descriptor):
            asked.append(requests.decode_request(data))
            answer = tree.answer(data)
            if answer is not None:
                os.write(descriptor, answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield asked
    thread.join(timeout=20)
    assert not thread.is_alive()
    os.close(descriptor)


def receive(descriptor: int) -> bytes:
    """One request; nothing once the mount is gone."""
    while True:
        try:
            return os.read(descriptor, codes.READ_BUFFER_BYTES)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return b""
            if error.errno not in (errno.EINTR, errno.ENOENT):
                raise


def run(*command: str | Path) -> str:
    """A second process: the reader must not share this one's GIL with the server."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def refusal(call: object, *arguments: object, **options: object) -> str:
    """The text of the MountError that `call` raises: one line."""
    with pytest.raises(MountError) as caught:
        call(*arguments, **options)  # type: ignore[operator]
    text = str(caught.value)
    assert "\n" not in text.replace("point\n", "")
    return text


@needs_root
def test_mount_serves_and_is_gone_after_unmount(directory: Path) -> None:
    descriptor = kernel.mount(directory, OPTIONS)
    with served(descriptor):
        assert run("cat", directory / "hello") == "hello, kernel\n"
        mounted = find_mount(directory)
        assert mounted is not None
        assert (mounted.directory, mounted.kind, mounted.source) == (directory, "fuse.cvfs", "software.example.org")
        kernel.unmount(directory)
    assert find_mount(directory) is None
    assert os.listdir(directory) == []


@needs_root
@pytest.mark.parametrize(
    ("suid", "devices", "missing"),
    [(False, False, set()), (True, False, {"nosuid"}), (True, True, {"nosuid", "nodev"})],
)
def test_mount_is_read_only_and_harmless_unless_told(
    directory: Path, suid: bool, devices: bool, missing: set[str]
) -> None:
    options = MountOptions("x", allow_other=suid, suid=suid, dev=devices)
    os.close(kernel.mount_directly(directory, options))
    lines = Path("/proc/self/mounts").read_text().splitlines()
    kernel.unmount(directory)
    settings = set(next(line for line in lines if line.startswith("x ")).split()[3].split(","))
    assert {"ro", "nosuid", "nodev"} - settings == missing
    assert "default_permissions" in settings
    assert ("allow_other" in settings) is suid


@needs_root
def test_descriptor_is_not_inherited(directory: Path) -> None:
    descriptor = kernel.mount(directory, OPTIONS)
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)
    kernel.unmount(directory)


@needs_root
def test_mount_through_the_helper(directory: Path) -> None:
    descriptor = kernel.mount_through_helper(directory, MountOptions("a,b\\c", allow_other=True))
    assert not os.get_inheritable(descriptor)
    with served(descriptor):
        assert run("readlink", directory / "link") == "many/entry-007\n"
        mounted = find_mount(directory)
        assert mounted is not None
        assert (mounted.kind, mounted.source) == ("fuse.cvfs", "a,b\\c")
        kernel.unmount(directory)


AS_PLAIN_USER = """
import sys, os
from pathlib import Path
from cvfs.fuse import kernel
from cvfs.fuse.options import MountOptions
assert not kernel.can_mount_directly()
directory = Path(sys.argv[1])
descriptor = kernel.mount(directory, MountOptions("plain"))
first = os.read(descriptor, 1 << 17)
print(first[4], flush=True)
os.close(descriptor)
lazy = len(sys.argv) > 2
holder = os.open(directory if lazy else "/", os.O_PATH)
kernel.unmount(directory, lazy=lazy)
print(kernel.find_mount(directory), flush=True)
"""
IN_NAMESPACE = AS_PLAIN_USER.replace("assert not", "assert")


def plain_user_python() -> str | None:
    """A Python that others may run, and that has msgspec; a home directory of root is closed to them."""
    for python in (sys.executable, "/usr/bin/python3"):
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-c", "import msgspec"]
        if shutil.which("setpriv") and subprocess.run(command, capture_output=True, check=False).returncode == 0:
            return python
    return None


@pytest.fixture
def plain_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory of `nobody`, outside pytest's own, which are closed to others."""
    base = Path("/var/tmp") / f"cvfs-test-{os.getpid()}"
    (base / "dev").mkdir(parents=True)
    (base / "mount").mkdir()
    os.chown(base / "mount", 65534, 65534)
    yield base / "mount"
    shutil.rmtree(base)


OPEN_DEVICE = """
set -e
mount -t tmpfs -o dev tmpfs "$1"
mknod -m "$2" "$1/fuse" c 10 229
mount --bind "$1/fuse" /dev/fuse
shift 2
exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
"""


def as_plain_user(directory: Path, *arguments: str, device_mode: str = "666") -> subprocess.CompletedProcess[str]:
    """Mount and unmount as `nobody`, with /dev/fuse as usual, which a mount namespace hides from others."""
    python = plain_user_python()
    if python is None:
        pytest.skip("no Python that a plain user may run with the libraries")
    namespace = ["unshare", "--mount", "--propagation", "private", "sh", "-c", OPEN_DEVICE, "sh"]
    command = [*namespace, directory.parent / "dev", device_mode, python, "-c", AS_PLAIN_USER, directory, *arguments]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(kernel.__file__).parents[2])}
    return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=60, check=False)


@needs_root
@pytest.mark.parametrize("lazy", [[], ["lazy"]])
def test_plain_user_mounts_through_the_helper(plain_directory: Path, lazy: list[str]) -> None:
    done = as_plain_user(plain_directory, *lazy)
    assert (done.stdout.split(), done.stderr) == ([str(int(codes.Opcode.INIT)), "None"], "")


@needs_root
def test_plain_user_is_told_what_the_helper_complains_of(plain_directory: Path) -> None:
    os.chown(plain_directory, 0, 0)
    last = as_plain_user(plain_directory).stderr.splitlines()[-1]
    assert last.startswith(f"cvfs.errors.MountError: cannot mount on {plain_directory}: fusermount3: ")
    assert "no write access to mountpoint" in last


@needs_root
def test_plain_user_is_told_how_to_open_the_device(plain_directory: Path) -> None:
    last = as_plain_user(plain_directory, device_mode="600").stderr.splitlines()[-1]
    assert last.endswith("failed to open /dev/fuse: Permission denied; let users open it (chmod 666 /dev/fuse)")


@needs_root
def test_root_of_a_user_namespace_mounts_by_itself(directory: Path) -> None:
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    root = Path(kernel.__file__).parents[2]
    command = [*unshare, sys.executable, "-c", IN_NAMESPACE, directory]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.split(), done.stderr) == ([str(int(codes.Opcode.INIT)), "None"], "")
    assert find_mount(directory) is None


@needs_root
def test_mounted_twice_is_refused_without_asking_the_hung_mount(directory: Path) -> None:
    descriptor = kernel.mount(directory, OPTIONS)
    text = refusal(kernel.check_mount_point, directory)
    assert text.startswith(f"software.example.org is already mounted on {directory}; unmount it first")
    os.close(descriptor)
    assert "already mounted" in refusal(kernel.check_mount_point, directory)
    kernel.unmount(directory)


@needs_root
def test_someone_elses_mount_is_refused(directory: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "other", directory], check=True)
    assert refusal(kernel.check_mount_point, directory).endswith("other (tmpfs) is mounted there")
    kernel.unmount(directory)


def test_below_a_dead_mount_is_refused(directory: Path) -> None:
    error = OSError(errno.ENOTCONN, "dead")
    assert "umount -l" in kernel._unusable(directory, error)


def test_a_directory_that_is_not_empty_is_refused(directory: Path) -> None:
    (directory / "file").touch()
    assert "it is not empty" in refusal(kernel.check_mount_point, directory)


def test_what_is_no_directory_is_refused(directory: Path) -> None:
    (directory / "file").touch()
    assert "Not a directory; a directory is needed" in refusal(kernel.check_mount_point, directory / "file")


def test_a_missing_directory_is_refused(directory: Path) -> None:
    text = refusal(kernel.check_mount_point, directory / "missing")
    assert f"make it first (mkdir -p {directory / 'missing'})" in text


@pytest.mark.parametrize(("name", "remedy"), [("missing", "modprobe fuse"), ("not-a-device", "run as root")])
def test_a_device_that_cannot_be_opened_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, remedy: str
) -> None:
    def refuse(path: str, flags: int) -> int:
        raise OSError(errno.EACCES if name == "not-a-device" else errno.ENOENT, "refused")

    monkeypatch.setattr(kernel.os, "open", refuse)
    text = refusal(kernel.open_device)
    assert text.startswith("cannot open /dev/fuse: ")
    assert remedy in text


@needs_root
def test_a_mount_that_the_kernel_refuses_is_explained(directory: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    (directory / "file").touch()
    assert "Not a directory" in refusal(kernel.mount_directly, directory / "file", OPTIONS)
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_rights_and_helper_the_way_out_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "can_mount_directly", lambda: False)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "install fuse3" in refusal(kernel.mount, directory, OPTIONS)


@pytest.mark.parametrize(
    ("script", "complaint"),
    [("echo one >&2; echo two >&2; exit 1", "one"), ("exit 3", "status 3"), ("exit 0", "sent no descriptor")],
)
def test_a_helper_that_fails_is_quoted(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, complaint: str
) -> None:
    program = tmp_path / "bin" / helper.HELPER
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert complaint in refusal(kernel.mount_through_helper, directory, OPTIONS)


def test_a_helper_that_hangs_is_ended(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / helper.HELPER
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(helper, "HELPER_DEADLINE_S", 0.1)
    assert "did not end within 0.1 s" in refusal(kernel.mount_through_helper, directory, OPTIONS)


def test_unmounting_nothing_is_refused(directory: Path) -> None:
    assert refusal(kernel.unmount, directory).endswith("nothing is mounted there")


@needs_root
def test_a_busy_mount_is_refused_unless_lazy(directory: Path) -> None:
    descriptor = kernel.mount(directory, OPTIONS)
    with served(descriptor):
        holder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        assert "processes use it" in refusal(kernel.unmount, directory)
        kernel.unmount(directory, lazy=True)
        assert find_mount(directory) is None
        os.close(holder)


READ_AHEAD = """
import os, sys
big = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(big, 0, 0, os.POSIX_FADV_WILLNEED)
os.read(big, 10)
"""


@needs_root
def test_read_ahead_makes_reads_of_1_mib(directory: Path) -> None:
    descriptor = kernel.mount(directory, OPTIONS)
    with served(descriptor) as asked:
        run("stat", directory)
        assert kernel.set_read_ahead(directory, 1024)
        run(sys.executable, "-c", READ_AHEAD, directory / "big")
        kernel.unmount(directory)
    sizes = [requests.decode_read(one.data).size for one in asked if one.opcode == codes.Opcode.READ]
    assert max(sizes) == 1 << 20


def test_read_ahead_of_no_mount_is_refused(directory: Path) -> None:
    assert refusal(kernel.set_read_ahead, directory, 1024).endswith("nothing is mounted there")


@needs_root
def test_read_ahead_that_is_not_permitted_changes_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = mountinfo.MountInfo("no:device", directory, "fuse.cvfs", "x")
    monkeypatch.setattr(kernel, "find_mount", lambda _: mounted)
    assert kernel.set_read_ahead(directory, 1024) is False


@needs_root
def test_a_cloned_descriptor_serves_too(directory: Path) -> None:
    descriptor = kernel.mount(directory, OPTIONS)
    first = os.read(descriptor, codes.READ_BUFFER_BYTES)
    tree = StaticTree(zero_message=True)
    os.write(descriptor, tree.answer(first) or b"")
    clone = kernel.clone_device(descriptor)
    with served(clone):
        assert run("cat", directory / "hello") == "hello, kernel\n"
        kernel.unmount(directory)
    os.close(descriptor)


@needs_root
def test_a_clone_of_no_connection_is_refused() -> None:
    descriptor = kernel.open_device()
    assert refusal(kernel.clone_device, descriptor).startswith("cannot open one more channel")
    os.close(descriptor)


@needs_root
def test_after_resend_a_request_comes_again_with_the_bit(directory: Path) -> None:
    descriptor = kernel.mount(directory, OPTIONS)
    tree = StaticTree(zero_message=True)
    os.write(descriptor, tree.answer(os.read(descriptor, codes.READ_BUFFER_BYTES)) or b"")
    reader = subprocess.Popen(["stat", "-c", "%s", directory / "hello"], stdout=subprocess.PIPE, text=True)
    lost = requests.decode_request(os.read(descriptor, codes.READ_BUFFER_BYTES))
    os.write(descriptor, notices.encode_resend())
    again = requests.decode_request(os.read(descriptor, codes.READ_BUFFER_BYTES))
    assert (again.opcode, again.unique) == (lost.opcode, lost.unique | codes.RESENT_BIT)
    os.write(descriptor, tree.answer(again.data) or b"")
    with served(descriptor):
        assert reader.communicate(timeout=20)[0] == "14\n"
        kernel.unmount(directory)


def test_find_mount_knows_the_topmost_and_other_spellings(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = find_mount(Path("/"))
    assert root is not None
    monkeypatch.chdir("/")
    assert find_mount(Path("proc/../proc/.")) == find_mount(Path("/proc"))
    monkeypatch.chdir("/proc/sys")
    assert find_mount(Path("..")) == find_mount(Path("/proc"))
    link = directory / "link"
    link.symlink_to("/proc")
    assert find_mount(link) == find_mount(Path("/proc"))
    assert find_mount(directory) is None
    assert find_mount(directory / "missing") is None


def test_mountinfo_lines() -> None:
    text = (
        b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime shared:1 master:2 - ext3 /dev/root rw,errors=continue\n"
        b"37 35 0:45 / /a\\134b\\012 ro - fuse.cvfs software.example.org rw\n"
    )
    assert mountinfo.parse_mounts(text) == [
        mountinfo.MountInfo("98:0", Path("/mnt 2"), "ext3", "/dev/root"),
        mountinfo.MountInfo("0:45", Path("/a\\b\n"), "fuse.cvfs", "software.example.org"),
    ]


def test_kernel_release() -> None:
    assert kernel_release() >= OLDEST_RELEASE
    assert ".".join(map(str, kernel_release())) == re.match(r"\d+\.\d+", os.uname().release)[0]


@needs_root
def test_root_node_is_a_directory_before_the_first_answer(directory: Path) -> None:
    """rootmode is what the kernel takes the root for until it is asked; a wrong one would hang or fail the mount."""
    descriptor = kernel.mount(directory, OPTIONS)
    with served(descriptor):
        assert stat.S_ISDIR(int(run("stat", "-c", "%f", directory), 16))
        kernel.unmount(directory)


def test_links_are_followed_up_to_what_is_named_as_an_end(tmp_path: Path) -> None:
    """Below it they are those of what is mounted there, if it is a mount."""
    end = tmp_path / "mount"
    (end / "real").mkdir(parents=True)
    (end / "current").symlink_to("real")
    (tmp_path / "link").symlink_to("mount")
    assert mountinfo.resolve(tmp_path / "link/current/a/..") == end / "real"
    assert mountinfo.resolve(tmp_path / "link/current/a", [end]) == end / "current/a"
    assert mountinfo.resolve(tmp_path / "link", [end]) == end
    assert mountinfo.resolve(tmp_path / "link/../x", [end / "real"]) == tmp_path / "x"
