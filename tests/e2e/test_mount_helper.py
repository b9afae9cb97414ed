"""mount.cvfs under the programs that run it: mount(8) with and without fstab, the automounter, systemd."""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.booted import LET_GO, Booted
from tests.e2e.host import NAME, PYTHON, ROOT, Host, Server, Store, run, stopped, trust, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount for others")

_FAILED = 32
"""mount(8): mount failure."""


class Machine:
    """A mount namespace in which `cvfs setup` has been run, and the repository of `url` is configured."""

    def __init__(self, host: Host, url: str) -> None:
        self.host, self.top = host, host.top
        host.environment["CVFS_CONFIG"] = str(host.top / "etc")
        host.cvfs("config", "add", "--root", trust().root, url)
        host.cvfs("setup", "--prefix", host.top / "installed")
        holder = ["unshare", "--mount", "--propagation", "private", "sh", "-c", f"{LET_GO} echo; exec sleep 3600"]
        self._holder = subprocess.Popen(holder, stdout=subprocess.PIPE, env=host.environment)
        assert self._holder.stdout is not None
        self._holder.stdout.readline()
        sbin = os.path.realpath("/sbin")
        (host.top / "over").mkdir()
        self("mount", "-t", "tmpfs", "tmpfs", host.top / "over")
        self("mkdir", host.top / "over/upper", host.top / "over/work")
        self("cp", *(host.top / "installed/sbin").iterdir(), host.top / "over/upper")
        layers = f"lowerdir={sbin},upperdir={host.top}/over/upper,workdir={host.top}/over/work"
        self("mount", "-t", "overlay", "overlay", "-o", layers, sbin)

    def line(self, *words: str | Path) -> list[str | Path]:
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--", *words]

    def __call__(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run a command in it."""
        return run(*self.line(*words), check=check, env=self.host.environment)

    def mounts(self) -> dict[str, tuple[str, set[str]]]:
        """Mount point: source and flags; of file systems of ours."""
        lines = self("cat", "/proc/self/mounts").stdout.decode().splitlines()
        fields = [line.split(" ") for line in lines if " fuse.cvfs " in line]
        return {point: (source, set(flags.split(","))) for source, point, _, flags, *_ in fields}

    def close(self) -> None:
        for point in self.mounts():
            self("umount", "--lazy", point)
        self._holder.kill()
        self._holder.wait()
        assert self._holder.stdout is not None
        self._holder.stdout.close()


@pytest.fixture
def machine(auto_host: Host, store: Store, tree: Path, server: Server) -> Iterator[Machine]:
    (tree / "hello").write_text("hello\n")
    store.publish(tree)
    machine = Machine(auto_host, server.url)
    yield machine
    machine.close()


def test_mount_and_fstab(machine: Machine) -> None:
    point = machine.host.new_directory()
    machine("mount", "-t", "cvfs", NAME, point)
    assert machine("cat", point / "hello").stdout == b"hello\n"
    source, flags = machine.mounts()[str(point)]
    assert source == NAME
    assert {"ro", "nosuid", "nodev"} <= flags
    again = machine("mount", "-t", "cvfs", NAME, point, check=False)
    assert (again.returncode, b"is already mounted on" in again.stderr) == (_FAILED, True)
    changed = machine("mount", "-o", "remount,noexec", point, check=False)
    assert (changed.returncode, changed.stderr.count(b"\n")) == (_FAILED, 1)
    assert b"the options of a mount cannot be changed while it is there" in changed.stderr
    machine("umount", point)
    assert machine("mount", "-f", "-t", "cvfs", NAME, point).stdout == b""
    unknown = machine("mount", "-t", "cvfs", "nowhere.example.org", point, check=False)
    assert (unknown.returncode, unknown.stderr.count(b"\n")) == (_FAILED, 1)
    assert b"neither configured" in unknown.stderr
    assert not machine.mounts()
    _check_fstab(machine, point)


def _check_fstab(machine: Machine, point: Path) -> None:
    words = "user,uid=5,refresh_s=90,_netdev,nofail,x-systemd.automount"
    fstab = machine.top / "fstab"
    fstab.write_text(f"{NAME} {point} cvfs noauto,{words} 0 0\n")
    machine("mount", "-T", fstab, "-a")
    assert not machine.mounts()
    fstab.write_text(f"{NAME} {point} cvfs {words} 0 0\n")
    for _ in range(2):  # what is mounted already is left alone
        machine("mount", "-T", fstab, "-a")
    ((source, flags),) = machine.mounts().values()
    assert source == NAME
    assert "noexec" in flags  # that is what "user" means too
    assert machine("stat", "-c", "%u", point / "hello").stdout == b"5\n"
    machine("umount", point)
    fstab.write_text(f"{NAME} {point} cvfs uid=nobody-here 0 0\n")
    refused = machine("mount", "-T", fstab, point, check=False)
    assert (refused.returncode, b"uid: wanted a user" in refused.stderr) == (_FAILED, True)
    fstab.write_text(f"every {point} cvfs all,refresh_s=90 0 0\n")
    for _ in range(2):
        machine("mount", "-T", fstab, "-a")
    assert [source for source, _ in machine.mounts().values()] == ["every"]
    assert machine("cat", point / NAME / "hello").stdout == b"hello\n"
    machine("umount", point)
    sloppy = machine("mount", "-s", "-t", "cvfs", NAME, point, "-o", "nonsense=1,uid=5")
    assert (sloppy.stderr, machine("stat", "-c", "%u", point / "hello").stdout) == (b"", b"5\n")
    machine("umount", point)


def test_automounter(machine: Machine) -> None:
    top = machine.host.new_directory()
    names = (NAME, "none.example.org")
    (machine.top / "auto.map").write_text("".join(f"{name} -fstype=cvfs :{name}\n" for name in names))
    (machine.top / "auto.master").write_text(f"{top} {machine.top}/auto.map --timeout=1\n")
    with _Automount(machine):
        wait_until(lambda: str(top) in _autofs(machine))
        assert machine("cat", top / NAME / "hello").stdout == b"hello\n"
        assert machine.mounts()[str(top / NAME)][0] == NAME
        assert machine("ls", top / "none.example.org", check=False).returncode != 0
        _wait_for_expiry(machine, top / NAME)
        assert machine("cat", top / NAME / "hello").stdout == b"hello\n"
    assert not machine.mounts()


def _about(machine: Machine, mount: Path) -> dict[str, Any]:
    status = json.loads(machine(*PYTHON, "-m", "cvfs", "status", mount, "--json").stdout)
    about: dict[str, Any] = status["mounts"][0]
    return about


def _wait_for_expiry(machine: Machine, mount: Path) -> None:
    """Nobody uses it. What served it knows of the end only when the automounter is done, and if it then looked at the
    place, it would be mounted again."""
    about = _about(machine, mount)
    server = os.pidfd_open(about["pid"])
    try:
        with stopped(about["worker_pid"]):
            wait_until(lambda: not machine("ls", mount.parent).stdout, 30)
        assert select.select([server], [], [], 30)[0], "it goes on"
        assert not machine.mounts()
    finally:
        os.close(server)


def test_automounter_where_requests_are_not_repeated(machine: Machine) -> None:
    """On a kernel that loses a mount with its worker the automounter makes the next, and nothing is left of it."""
    machine.host.environment |= {"CVFS_NO_RESEND": "1"}
    top = machine.host.new_directory()
    (machine.top / "auto.map").write_text("* -fstype=cvfs :&\n")
    (machine.top / "auto.master").write_text(f"{top} {machine.top}/auto.map --timeout=60\n")
    with _Automount(machine):
        wait_until(lambda: str(top) in _autofs(machine))
        assert machine("cat", top / NAME / "hello").stdout == b"hello\n"
        about = _about(machine, top / NAME)
        server = os.pidfd_open(about["pid"])
        try:
            os.kill(about["worker_pid"], signal.SIGKILL)
            assert select.select([server], [], [], 30)[0], "it goes on"
        finally:
            os.close(server)
        assert machine("cat", top / NAME / "hello").stdout == b"hello\n"
        assert _about(machine, top / NAME)["pid"] != about["pid"]


class _Automount:
    """The automounter, for as long as the context."""

    def __init__(self, machine: Machine) -> None:
        words = ("automount", "-f", "--dont-check-daemon", "-p", machine.top / "pid", machine.top / "auto.master")
        self._process = subprocess.Popen(
            machine.line(*words),
            env=machine.host.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)


def _autofs(machine: Machine) -> list[str]:
    text = machine("cat", "/proc/self/mounts").stdout.decode()
    return re.findall(r"^\S+ (\S+) autofs ", text, re.MULTILINE)


def test_automount_unit(host_of_systemd: Booted) -> None:
    machine = host_of_systemd
    words = "noauto,x-systemd.automount,x-systemd.idle-timeout=1,_netdev,uid=3"
    machine.write("/etc/fstab", f"{NAME} /cvfs/software cvfs {words} 0 0\n")
    machine("systemctl", "daemon-reload")
    machine("systemctl", "start", "cvfs-software.automount")
    assert machine("stat", "-c", "%u", "/cvfs/software/hello").stdout == b"3\n"
    assert machine("systemctl", "is-active", "cvfs-software.mount").stdout == b"active\n"
    wait_until(lambda: b" fuse.cvfs " not in machine("cat", "/proc/self/mounts").stdout, 30)
    assert machine("cat", "/cvfs/software/hello").stdout == b"hello\n"
    machine("systemctl", "stop", "cvfs-software.automount")
    wait_until(lambda: not machine("pgrep", "-f", "cvfs.cli.mount_helper", check=False).stdout)


@pytest.fixture
def host_of_systemd(store: Store, tree: Path, server: Server, tmp_path: Path) -> Iterator[Booted]:
    """Booted, with `cvfs setup` done, and a repository configured."""
    (tree / "hello").write_text("hello\n")
    store.publish(tree)
    cvfs = ("env", f"PYTHONPATH={ROOT}", *PYTHON, "-m", "cvfs")
    with contextlib.closing(Booted(tmp_path)) as machine:
        machine(*cvfs, "setup")
        machine.write("/etc/cvfs/root.json", trust().root.read_text())
        machine(*cvfs, "config", "add", "--root", "/etc/cvfs/root.json", server.url)
        yield machine
