"""Programs that know nothing of cvfs, run on mounts (docs/semantics.md, "Programs")."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.host import Host, Server, Store, run
from tests.e2e.zoo import CAPABILITY, Zoo, look

HELLO_C = '#include "hello.h"\n#include <stdio.h>\nint main(void) { puts(GREETING); return 0; }\n'


@pytest.fixture(scope="module")
def software(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree to work in: a git repository, C sources, programs, a Python package."""
    top = tmp_path_factory.mktemp("software") / "tree"
    _make_git_repository(top / "git")
    _make_programs(top / "bin")
    package = top / "python/greetings"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from greetings.words import HELLO\n")
    (package / "words.py").write_text("HELLO = 'hello from the mount'\n")
    return top


def _make_git_repository(top: Path) -> None:
    (top / "include").mkdir(parents=True)
    (top / "include/hello.h").write_text('#define GREETING "hello, world"\n')
    (top / "hello.c").write_text(HELLO_C)
    git = ("git", "-C", top, "-c", "user.name=A", "-c", "user.email=a@example.org")
    run(*git, "init", "-q", "-b", "main")
    run(*git, "add", ".")
    run(*git, "commit", "-q", "-m", "say hello")
    run(*git, "gc", "-q")


def _make_programs(top: Path) -> None:
    top.mkdir()
    (top / "script").write_text("#!/bin/sh\necho ran $0\n")
    for name, mode in (("cat", 0o755), ("setuid", 0o4755), ("capable", 0o755)):
        shutil.copy(os.path.realpath("/bin/cat"), top / name)
        (top / name).chmod(mode)
    (top / "script").chmod(0o755)
    os.setxattr(top / "capable", "security.capability", CAPABILITY)


@pytest.fixture(scope="module")
def software_store(software: Path) -> Store:
    store = Store(software.parent / "store")
    store.publish(software)
    return store


@pytest.fixture(scope="module")
def soft(zoo_host: Host, software_store: Store) -> Path:
    """The mounted software; the URL is a path here."""
    return zoo_host.mount(software_store.path)


def test_git_finds_nothing_changed(soft: Path) -> None:
    git = ("git", "-c", "safe.directory=*", "-C", soft / "git")
    assert run(*git, "status", "--porcelain").stdout == b""
    assert run(*git, "log", "--format=%s").stdout == b"say hello\n"
    assert b"GREETING" in run(*git, "show", "HEAD:include/hello.h").stdout
    run(*git, "fsck", "--no-progress")


def test_gcc_compiles_from_the_mount_and_what_it_made_runs(soft: Path, tmp_path: Path) -> None:
    run("gcc", f"-I{soft}/git/include", "-o", tmp_path / "hello", soft / "git/hello.c")
    assert run(tmp_path / "hello").stdout == b"hello, world\n"


def test_programs_run_from_the_mount(soft: Path) -> None:
    assert run(soft / "bin/script").stdout == f"ran {soft}/bin/script\n".encode()
    assert run(soft / "bin/cat", soft / "git/hello.c").stdout == HELLO_C.encode()


def test_python_imports_from_the_mount(soft: Path) -> None:
    program = "import greetings; print(greetings.HELLO, greetings.__file__)"
    done = run(sys.executable, "-c", program, env={"PYTHONPATH": str(soft / "python")})
    assert done.stdout == f"hello from the mount {soft}/python/greetings/__init__.py\n".encode()


def test_set_id_bits_and_capabilities_count_only_where_asked_for(
    soft: Path, zoo_host: Host, software_store: Store
) -> None:
    with_suid = zoo_host.mount(software_store.path, "--suid")
    assert _fact(with_suid, "setuid", "Uid") == ["65534", "0", "0", "0"]
    assert _fact(soft, "setuid", "Uid") == ["65534"] * 4
    assert int(*_fact(with_suid, "capable", "CapEff"), 16) == 1 << 10
    assert int(*_fact(soft, "capable", "CapEff"), 16) == 0
    zoo_host.umount(with_suid)


def _fact(mount: Path, program: str, name: str) -> list[str]:
    """What /proc says of a copy of cat(1) on the mount, when the user nobody runs it."""
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    lines = run(*nobody, f"bin/{program}", "/proc/self/status", cwd=mount).stdout.decode().splitlines()
    return next(line.split()[1:] for line in lines if line.startswith(name + ":"))


def test_devices_count_only_where_asked_for(zoo_host: Host, zoo_server: Server) -> None:
    plain = zoo_host.mount(zoo_server.url)
    with pytest.raises(PermissionError):
        os.open(plain / "special/null", os.O_RDONLY)
    zoo_host.umount(plain)


def test_ls_and_find_show_what_stat_says(zoo: Zoo, mnt: Path) -> None:
    listing = ("ls", "-lAn", "--time-style=full-iso", "--quoting-style=c")
    for directory in ("modes", "hard/a", "links", "special", "owners", "names", "empty"):
        # Sizes of directories may differ, and the widths of columns with them.
        hidden = [b"--ignore=" + name for name in _directories_in(zoo.main / directory) if directory == "empty"]
        shown = [run(*listing, *hidden, top / directory).stdout.splitlines()[1:] for top in (zoo.main, mnt)]
        if directory == "hard/a":
            shown = [[line for line in lines if b"outside" not in line] for lines in shown]
        assert shown[0] == shown[1] or directory == "modes"
        assert [line.split()[:1] for line in shown[0]] == [line.split()[:1] for line in shown[1]]
    for kind in "fdlpscb":
        found = [_find(top, "-type", kind) for top in (zoo.main, mnt)]
        assert found[0] == [path for path in found[1] if not path.startswith(b"./times")]


def _directories_in(top: Path) -> list[bytes]:
    return [entry.name for entry in os.scandir(os.fsencode(top)) if entry.is_dir(follow_symlinks=False)]


def test_find_by_inode_and_links(zoo: Zoo, mnt: Path) -> None:
    names = _find(mnt, "-samefile", "hard/a/file")
    assert names == [b"./hard/a/file", b"./hard/b/file", b"./hard/c/another name"]
    assert _find(mnt / "hard", "-type", "f", "-links", "+1") == [
        path for path in _find(zoo.main / "hard", "-type", "f", "-links", "+1") if b"outside" not in path
    ]


def _find(top: Path, *expression: str) -> list[bytes]:
    return sorted(run("find", ".", *expression, "-print0", cwd=top).stdout.split(b"\0")[:-1])


def test_du_counts_what_is_stored(mnt: Path) -> None:
    assert _du(mnt / "sparse/hole") == 0
    assert _du(mnt / "sparse/hole", "--apparent-size") == 64 << 20
    assert _du(mnt / "sizes/4097") == 9 * 512
    # A file of several names counts once.
    assert _du(mnt / "hard", "--apparent-size") < 6 << 20


def _du(path: Path, *options: str) -> int:
    return int(run("du", "-s", "-B1", *options, path).stdout.split()[0])


def test_df_shows_the_repository(zoo: Zoo, mnt: Path, zoo_server: Server) -> None:
    columns = ("--output=source,fstype,size,avail,pcent,itotal,iavail", "-B1")
    source, kind, size, free, percent, entries, free_entries = run("df", *columns, mnt).stdout.splitlines()[1].split()
    assert source.decode() == zoo_server.url.rstrip("/")
    assert kind == b"fuse.cvfs"
    assert (free, percent, free_entries) == (b"0", b"100%", b"0")
    total = sum(facts.size for facts in look(mnt).facts.values() if facts.mode & 0o170000 == 0o100000)
    assert 0 <= int(size) - total < 4096
    assert int(entries) == len(look(mnt).facts)


def test_tar_brings_everything_back(mnt: Path, tmp_path: Path) -> None:
    """Into another place, and there it looks as on the mount. tar leaves out sockets, and that two fifos are one."""
    tar = ("tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--format=posix", "--exclude=./sparse")
    (tmp_path / "copy").mkdir()
    with open(tmp_path / "archive", "wb") as archive:
        command = [*tar, "--exclude=./times", "-C", mnt, "-c", "."]
        packing = subprocess.run(command, stdout=archive, stderr=subprocess.PIPE, check=True)
    assert all(b"socket ignored" in line for line in packing.stderr.splitlines())
    run(*tar, "-C", tmp_path / "copy", "-xpf", tmp_path / "archive")
    wanted, got = look(mnt), look(tmp_path / "copy")
    left_out = (b"times", b"sparse", b"special/socket", b"hard/a/fifo", b"hard/b/fifo")
    kept = {path: facts for path, facts in wanted.facts.items() if path and not path.startswith(left_out)}
    assert {path: (got.facts[path], facts) for path, facts in kept.items() if got.facts[path] != facts} == {}
    assert got.links == {names for names in wanted.links if b"hard/a/fifo" not in names}


def test_rsync_sees_no_difference(zoo: Zoo, mnt: Path) -> None:
    differences = run(
        *("rsync", "-aHAX", "--numeric-ids", "--dry-run", "-i", "--delete", "--exclude=/times", "--exclude=/sparse"),
        *("--checksum", f"{mnt}/", f"{zoo.main}/"),
    ).stdout.splitlines()
    # The root has another time: a directory was published into it later.
    assert [line for line in differences if not line.endswith(b" ./")] == []


def test_diff_sees_no_difference(zoo: Zoo, mnt: Path) -> None:
    for directory in ("names", "sizes", "empty"):
        assert run("diff", "-r", "--no-dereference", zoo.main / directory, mnt / directory).stdout == b""


def test_cp_keeps_everything(mnt: Path, tmp_path: Path) -> None:
    run("cp", "-a", mnt / "hard", mnt / "xattrs", mnt / "links", tmp_path)
    wanted, got = look(mnt), look(tmp_path)
    copied = {path: facts for path, facts in got.facts.items() if path.startswith((b"hard/", b"xattrs/", b"links/"))}
    assert len(copied) >= 30
    assert {path: facts for path, facts in copied.items() if wanted.facts[path] != facts} == {}


def test_cp_of_a_sparse_file_is_sparse(mnt: Path, tmp_path: Path) -> None:
    run("cp", "--sparse=auto", mnt / "sparse/hole", tmp_path)
    assert os.stat(tmp_path / "hole").st_size == 64 << 20
    assert os.stat(tmp_path / "hole").st_blocks == 0
