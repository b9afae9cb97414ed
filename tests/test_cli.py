"""cvfs ls, cat and cp, and what all commands have in common: the real command, on a real store."""

import os
import pty
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from cvfs.cli.common import printable
from cvfs.trust.names import TIMESTAMP as HEAD
from tests import servers
from tests.command import Command, wait_until
from tests.servers import FaultyServer
from tests.small_store import MTIME_NS, SmallStore, Tree

ODD = b"new\nline\x1b[1m \xff"
TREE: Tree = {
    b"a/b/hello.txt": b"hello\n",
    b"a/link": "b/hello.txt",
    b"a/up": "../empty",
    b"empty": b"",
    b"out": "/etc/passwd",
    b"loop": "loop",
    b"into": "a/b",
    ODD: b"x" * 100_000,
    b"z/nothing": None,
}
COMMANDS = ("mount", "umount", "status", "ls", "cat", "cp")


@pytest.fixture
def published() -> list[Tree]:
    return [{b"old": b"old"}, TREE]


def test_proxies_are_wanted_as_the_option_has_them(cvfs: Command, store: SmallStore) -> None:
    outcome = cvfs("ls", "--proxies", "127.0.0.1:3128", store.path)
    assert outcome.returncode == 2
    assert b"wanted groups of proxies like http://a:3128|http://b:3128;DIRECT, not '127.0.0.1:3128'" in outcome.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "words",
    [("ls",), ("ls", "-l"), ("cat", ODD), ("cat", "a/b/hello.txt"), ("config", "show"), ("status", "--json")],
)
def test_output_that_cannot_be_written_is_told(
    cvfs: Command, store: SmallStore, words: tuple[str | bytes, ...], unbuffered: str
) -> None:
    cvfs.environment["PYTHONUNBUFFERED"] = unbuffered
    line = [words[0], store.path, *words[1:]] if words[0] in ("ls", "cat") else words
    outcome = cvfs.closed("> /dev/full", *line)
    assert (outcome.returncode, outcome.stderr) == (1, b"cvfs: error: standard output: No space left on device\n")
    assert cvfs.closed("> /dev/full 2>&1", *line).returncode == 1
    process = cvfs.start(*line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    process.stdout.close()
    assert process.communicate()[1] == b""
    assert process.returncode == 141, "as of a program that SIGPIPE ends"


def test_current_directory_that_is_gone(cvfs: Command, store: SmallStore, tmp_path: Path) -> None:
    """It is told where it is needed, and only there."""
    gone = f"cd {tmp_path}/gone && rmdir {tmp_path}/gone && "
    for line, status, told in (
        (cvfs.line("ls", store.path, "--cache", tmp_path / "c"), 0, b""),
        (cvfs.line("ls", store.path, "--cache", "c"), 1, b"cvfs: error: the current directory is gone: go to"),
        (cvfs.line("status", "mnt"), 1, b"cvfs: error: the current directory is gone: go to"),
    ):
        (tmp_path / "gone").mkdir()
        outcome = subprocess.run(
            ["sh", "-c", f'{gone} exec "$@"', "sh", *line],
            check=False,
            env=cvfs.whole_environment,
            capture_output=True,
        )
        assert (outcome.returncode, outcome.stderr[: len(told) or None]) == (status, told)


@pytest.mark.parametrize(
    ("closed", "printed"), [("<&-", b"old\n"), (">&-", b""), ("2>&-", b"old\n"), ("<&- >&- 2>&-", b"")]
)
def test_closed_streams(cvfs: Command, store: SmallStore, closed: str, printed: bytes) -> None:
    outcome = cvfs.closed(closed, "ls", "--revision", "1", store.path)
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, printed, b"")
    outcome = cvfs.closed(closed, "ls", store.path, "none")
    assert (outcome.returncode, outcome.stderr.count(b"\n")) == (1, int("2>" not in closed))


def test_ls_lists_by_name(cvfs: Command, store: SmallStore) -> None:
    assert cvfs.ok("ls", store.path, "a") == b"b\nlink\nup\n"
    assert cvfs.ok("ls", store.path, "-0") == b"\0".join([b"a", b"empty", b"into", b"loop", ODD, b"out", b"z"]) + b"\0"


def test_ls_takes_every_kind_of_address(cvfs: Command, store: SmallStore) -> None:
    with FaultyServer(store.path) as server:
        for url in (server.url, server.url + "/", f"file://{store.path}", os.path.relpath(store.path)):
            assert cvfs.ok("ls", url, "/a//b/./") == b"hello.txt\n"


def test_ls_recursive_prints_paths(cvfs: Command, store: SmallStore) -> None:
    assert cvfs.ok("ls", "-R", store.path, "a") == b"a/b\na/link\na/up\na/b/hello.txt\n"


def test_ls_long_says_what_stat_would(cvfs: Command, store: SmallStore) -> None:
    date = b"2023-11-14 22:13"
    lines = cvfs.ok("ls", "-l", store.path, "a", extra={"TZ": "UTC"}).splitlines()
    assert lines[0].split(None, 5) == [b"drwxr-xr-x", b"1", b"0", b"0", b"0", date + b" b"]
    assert lines[1].split(None, 5) == [b"lrwxrwxrwx", b"1", b"0", b"0", b"11", date + b" link -> b/hello.txt"]


def test_ls_of_a_link_with_and_without_slash(cvfs: Command, store: SmallStore) -> None:
    assert cvfs.ok("ls", store.path, "into") == b"hello.txt\n"
    assert cvfs.ok("ls", "-l", store.path, "into").endswith(b" into -> a/b\n")
    assert cvfs.ok("ls", "-d", store.path, "a") == b"a\n"


def test_names_are_escaped_on_a_terminal_only(cvfs: Command, store: SmallStore) -> None:
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal:
        cvfs.start("ls", store.path, stdout=theirs).wait()
        os.close(theirs)
        shown = terminal.read(65536)
    assert rb"new\nline\x1b[1m \xff" in shown
    assert b"\x1b" not in shown


def test_escaping_is_unambiguous() -> None:
    names = [b"a\nb", b"a\\nb", b"\xff", b"\\xff", "ä".encode(), b"\x85", "\x85".encode(), "\u202e".encode(), b" "]
    shown = [printable(name, escape=True) for name in names]
    assert len(set(shown)) == len(names)
    assert all(line.decode().isprintable() for line in shown)
    assert [printable(name, escape=False) for name in names] == names


def test_cat_writes_what_links_lead_to(cvfs: Command, store: SmallStore) -> None:
    assert cvfs.ok("cat", store.path, "a/link", "into/../b/hello.txt", "a/up", os.fsdecode(ODD)) == (
        b"hello\n" * 2 + b"x" * 100_000
    )


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("nothing", "No such file or directory: 'nothing'"),
        ("empty/x", "Not a directory: 'empty/x'"),
        ("a", "Is a directory: 'a'"),
        ("loop", "Too many levels of symbolic links: 'loop'"),
        ("out", "No such file or directory: 'out (a symbolic link leads out of the repository, to /etc/passwd)'"),
    ],
)
def test_cat_says_why_not(cvfs: Command, store: SmallStore, path: str, why: str) -> None:
    assert cvfs.refused("cat", store.path, path) == why


def test_older_revision_is_read(cvfs: Command, store: SmallStore) -> None:
    assert cvfs.ok("ls", store.path, "--revision", "1") == b"old\n"
    assert cvfs.ok("cat", store.path, "old", "--revision", "1") == b"old"
    assert "has no revision 3" in cvfs.refused("ls", store.path, "--revision", "3")


def test_what_was_read_once_is_read_without_a_server(cvfs: Command, store: SmallStore) -> None:
    with FaultyServer(store.path) as server:
        assert cvfs.ok("cat", server.url, "a/link") == b"hello\n"
    outcome = cvfs("cat", server.url, "a/link")
    assert (outcome.returncode, outcome.stdout) == (0, b"hello\n")
    (warning,) = outcome.stderr.decode().splitlines()
    assert "going on with revision 2, known before" in warning


def test_wrong_bytes_are_never_written(cvfs: Command, store: SmallStore) -> None:
    with FaultyServer(store.path) as server:
        cvfs.ok("ls", server.url)
        server.misbehave(servers.flip(0))
        server.misbehave(servers.behave, f"/{HEAD}")
        outcome = cvfs("cat", server.url, os.fsdecode(ODD))
    assert (outcome.returncode, outcome.stdout) == (1, b"")
    assert b"cvfs: error: wrong bytes from http://" in outcome.stderr


def test_cp_makes_an_equal_tree(cvfs: Command, store: SmallStore) -> None:
    target = cvfs.top / "copy"
    cvfs.ok("cp", "-r", store.path, "/", target)
    names = cvfs.ok("ls", "-R", "-0", store.path).split(b"\0")[:-1]
    found = [path.relative_to(target) for path in target.rglob("*")]
    assert sorted(os.fsencode(path) for path in found) == sorted(names)
    assert (target / os.fsdecode(ODD)).read_bytes() == TREE[ODD]
    assert os.readlink(target / "a/link") == "b/hello.txt"
    for path in (target, *target.rglob("*")):
        status = os.lstat(path)
        assert status.st_mtime_ns == MTIME_NS
        assert (
            stat.S_IMODE(status.st_mode)
            == {stat.S_IFDIR: 0o755, stat.S_IFREG: 0o644, stat.S_IFLNK: 0o777}[stat.S_IFMT(status.st_mode)]
        )


def test_cp_goes_into_a_directory(cvfs: Command, store: SmallStore) -> None:
    target = cvfs.top / "into"
    target.mkdir()
    cvfs.ok("cp", store.path, "a/link", target)
    cvfs.ok("cp", "-r", store.path, "a", target)
    assert (target / "hello.txt").read_bytes() == b"hello\n"
    assert (target / "a/b/hello.txt").read_bytes() == b"hello\n"
    cvfs.ok("cp", store.path, "empty", target / "hello.txt")
    assert (target / "hello.txt").read_bytes() == b""


def test_cp_says_why_not(cvfs: Command, store: SmallStore) -> None:
    assert cvfs.refused("cp", store.path, "a", cvfs.top / "x") == "a is a directory: copy it with all below it by -r"
    missing = cvfs.top / "missing/x"
    assert cvfs.refused("cp", store.path, "empty", missing) == f"No such file or directory: '{missing}'"
    (cvfs.top / "file").touch()
    assert "File exists" in cvfs.refused("cp", "-r", store.path, "a", cvfs.top / "file")


def test_cp_does_not_write_through_links(cvfs: Command, store: SmallStore) -> None:
    target, elsewhere = cvfs.top / "copy", cvfs.top / "elsewhere"
    elsewhere.mkdir()
    target.mkdir()
    (target / "a").symlink_to(elsewhere)
    (target / "empty").symlink_to(elsewhere / "hit")
    assert "File exists" in cvfs.refused("cp", "-r", store.path, "/", target)
    cvfs.ok("cp", store.path, "empty", target)
    assert not list(elsewhere.iterdir())
    assert not (target / "empty").is_symlink()


def test_cp_that_fails_leaves_no_half_file(cvfs: Command, store: SmallStore) -> None:
    with FaultyServer(store.path) as server:
        cvfs.ok("ls", server.url)
        server.misbehave(servers.flip(0))
        server.misbehave(servers.behave, f"/{HEAD}")
        outcome = cvfs("cp", "-r", server.url, "/", cvfs.top / "copy")
    assert outcome.returncode == 1
    assert b"Traceback" not in outcome.stderr
    assert not [
        path
        for path in (cvfs.top / "copy").rglob("*")
        if path.is_file() and path.lstat().st_size and not path.is_symlink()
    ]
    assert not list((cvfs.top / "copy").rglob(".cvfs-*"))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(cvfs: Command, name: str) -> None:
    assert f"Example: cvfs {name}".encode() in cvfs.ok(name, "--help")


def test_help_and_version_import_nothing_heavy(cvfs: Command) -> None:
    cvfs.ok("--version")
    outcome = cvfs("--help", extra={"PYTHONPROFILEIMPORTTIME": "1"})
    assert b"Use software from" in outcome.stdout
    heavy = {b"trio", b"requests", b"pyfuse3", b"msgspec", b"rich", b"tuf"}
    assert not heavy & {line.rpartition(b"|")[2].strip() for line in outcome.stderr.splitlines()}


@pytest.mark.parametrize(
    "arguments", [("ls",), ("nonsense",), ("ls", "--nonsense", "x"), ("ls", "x", "--revision", "-1")]
)
def test_wrong_usage_is_status_2(cvfs: Command, arguments: tuple[str, ...]) -> None:
    outcome = cvfs(*arguments)
    assert (outcome.returncode, outcome.stdout) == (2, b"")
    assert b"Traceback" not in outcome.stderr


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("nowhere", "'nowhere' is neither configured, nor an address (http://...), nor a directory"),
        ("ftp://host/x", "it must begin with http://, https:// or file://"),
        ("http://us er@host", "it contains a blank"),
        ("file:///nowhere", "no repository at file:///nowhere: it has no metadata/timestamp.json"),
        ("http://127.0.0.1:1", "connection refused"),
    ],
)
def test_address_that_cannot_be_used(cvfs: Command, url: str, why: str) -> None:
    assert why in cvfs.refused("ls", "--trust-on-first-use", url)


def test_cache_of_others_is_refused(cvfs: Command, store: SmallStore) -> None:
    cvfs.cache.mkdir()
    cvfs.cache.chmod(0o777)
    assert "others may write to the cache" in cvfs.refused("ls", store.path)
    cvfs.cache.chmod(0o700)
    os.chown(cvfs.cache, 12345, 12345)
    assert "belongs to uid 12345" in cvfs.refused("ls", store.path)


def test_reader_that_leaves_is_no_error(cvfs: Command, store: SmallStore) -> None:
    store.publish({b"file-%d" % number: b"" for number in range(20_000)})
    with cvfs.start("ls", store.path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"file-0\n"
        process.stdout.close()
        assert process.stderr.read() == b""


def test_interrupt_is_clean(cvfs: Command, store: SmallStore) -> None:
    with FaultyServer(store.path) as server:
        server.misbehave(servers.hang)
        with cvfs.start("ls", server.url, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            wait_until(lambda: server.requests)
            process.send_signal(signal.SIGINT)
            output, complaint = process.communicate(timeout=10)
    assert (process.returncode, output, complaint.strip()) == (130, b"", b"cvfs: error: interrupted")
