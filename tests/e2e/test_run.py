"""`cvfs run` as a plain user has it: no capability, no way to one, and nothing left when it ends."""

import contextlib
import json
import os
import pty
import select
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from io import FileIO

import pytest

from tests.e2e.host import NAME, PYTHON, ROOT, Server, Store, error_line, kill, run, wait_until
from tests.e2e.plain import GID, UID, Plain

RUN = (sys.executable, "-m", "cvfs", "run")
FORBID = 'echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --inh-caps=-all --ambient-caps=-all -- "$@"'
LOOP = "echo ready; while :; do sleep 9 & wait $!; done"
LOOK = """
import json, os, subprocess, sys
names = ("uid", "euid", "gid", "cwd", "environment", "file", "owner", "root", "repositories", "written")
with open(f"/cvfs/{sys.argv[1]}/hello") as file:
    text, owner = file.read(), os.fstat(file.fileno())
try:
    written = open(f"/cvfs/{sys.argv[1]}/new", "w")
except OSError as error:
    written = error.strerror
values = (os.getuid(), os.geteuid(), os.getgid(), os.getcwd(), dict(os.environ), text, (owner.st_uid, owner.st_gid),
          sorted(os.listdir("/")), sorted(os.listdir("/cvfs")), written)
subprocess.Popen(["setsid", "sleep", "1000"])
print(json.dumps(dict(zip(names, values))))
sys.exit(7)
"""


@pytest.fixture(scope="module")
def served(plain: Plain) -> Iterator[Server]:
    """Two revisions; the first is called v1."""
    store, tree = Store(plain.top / "store"), plain.top / "tree"
    tree.mkdir()
    (tree / "hello").write_text("one\n")
    store.publish(tree)
    run(*PYTHON, "-m", "publisher", "tag", store.path, "v1", cwd=ROOT, env=os.environ | {"CVFS_KEYS": str(store.keys)})
    (tree / "hello").write_text("two\n")
    store.publish(tree)
    with Server(store.path, plain.top) as server:
        yield server


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plain]:
    plain = Plain(tmp_path_factory.mktemp("plain"))
    configured = plain.home / ".config/cvfs/repositories.d"
    configured.mkdir(parents=True)
    yield plain
    plain.close()


@pytest.fixture(autouse=True)
def _nothing_left(plain: Plain) -> Iterator[None]:
    yield
    wait_until(lambda: not plain.left())


@contextlib.contextmanager
def begin(plain: Plain, where: str, script: str) -> "Iterator[subprocess.Popen[bytes]]":
    """A command that has said that it runs. What goes wrong is said at once, not when it would end by itself."""
    with plain.start(*RUN, where, "--", "sh", "-c", script, stdout=subprocess.PIPE) as running:
        try:
            assert hear(running) == b"ready\n"
            yield running
        except BaseException:
            running.kill()
            raise


def hear(running: "subprocess.Popen[bytes]") -> bytes:
    assert running.stdout is not None
    return running.stdout.readline()


def test_a_command_is_who_and_where_it_would_be(plain: Plain, served: Server) -> None:
    outside = sorted(os.listdir("/"))
    outcome = plain(*RUN, served.url, "--", sys.executable, "-c", LOOK, NAME, check=False, MINE="kept")
    assert (outcome.returncode, outcome.stderr) == (7, b"")
    seen = json.loads(outcome.stdout)
    assert (seen["uid"], seen["euid"], seen["gid"], seen["cwd"]) == (UID, UID, GID, str(plain.home))
    expected = plain.environment | {"MINE": "kept"}
    assert {name: seen["environment"].get(name) for name in expected} == expected
    assert seen["environment"].keys() - expected.keys() <= {"LC_CTYPE", "PWD", "OLDPWD", "SHLVL", "_"}
    assert (seen["file"], seen["owner"], seen["written"]) == ("two\n", [UID, GID], "Read-only file system")
    assert (seen["root"], seen["repositories"]) == (sorted({*outside, "cvfs"}), [NAME])
    assert plain.left() == []
    assert list((plain.home / "run").iterdir()) == []


def test_repositories_by_name_by_tag_and_all(plain: Plain, served: Server) -> None:
    files = plain.home / ".config/cvfs/repositories.d"
    (files / f"{NAME}.toml").write_text(f'url = "{served.url}"\n')
    script = f"cat /a/b/hello /cvfs/{NAME}/hello; grep -c ' fuse.cvfs ' /proc/self/mounts"
    assert plain(*RUN, f"{served.url}@v1:/a/b", NAME, "--", "sh", "-c", script).stdout == b"one\ntwo\n2\n"
    (files / "down.example.org.toml").write_text('url = "http://127.0.0.1:1"\n')
    script = f"cat /cvfs/{NAME}/hello; ls -- /cvfs"
    outcome = plain(*RUN, "--all", "--", "sh", "-c", script)
    assert outcome.stdout == f"two\ndown.example.org\n{NAME}\n".encode()


def test_a_directory_that_is_a_link(plain: Plain, served: Server) -> None:
    """Where it leads to is where it is mounted, and two on one directory are two however they are spelled."""
    (plain.home / "led to").mkdir()
    link = plain.home / "link"
    link.symlink_to("led to")
    script = f"cat '{plain.home}/led to/hello' {link}/hello"
    assert plain(*RUN, f"{served.url}:{link}", "--", "sh", "-c", script).stdout == b"two\n" * 2
    both = (f"{served.url}:{link}", f"{served.url}@v1:{plain.home}/led to")
    assert "two repositories" in error_line(plain(*RUN, *both, "--", "true", check=False))


@pytest.mark.usefixtures("served")
def test_a_store_beside_the_caller(plain: Plain) -> None:
    """Relative paths mean what they mean to the caller, and a user may bring his own directory to mount on."""
    mine = plain.home / "mine"
    mine.mkdir()
    assert plain(*RUN, f"store:{mine}", "--", "cat", "home/mine/hello", directory=plain.top).stdout == b"two\n"
    assert list(mine.iterdir()) == []


def test_a_directory_that_is_relative(plain: Plain, served: Server) -> None:
    """It is what is wrong, not the repository."""
    (plain.home / ".config/cvfs/repositories.d/near.example.org.toml").write_text(f'url = "{served.url}"\n')
    for text in ("near.example.org:mine", "near.example.org@v1:mine", f"{plain.top}/store:mine", "near.example.org:"):
        line = error_line(plain(*RUN, text, "--", "true", check=False))
        wrong = text.rpartition(":")[2]
        assert line == f"cvfs: error: {text}: the directory to mount on has to begin with a slash, not be {wrong!r}"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(plain: Plain, served: Server, closed: str) -> None:
    script = f"{plain_words(served, 'cat', '/sw/hello')} {closed}"
    outcome = plain("sh", "-c", script)
    assert (outcome.stdout, outcome.stderr) == (b"" if " >" in f" {closed}" else b"two\n", b"")


def test_no_code_of_the_directory_runs(plain: Plain, served: Server) -> None:
    directory = plain.home / "modules"
    directory.mkdir()
    for name in ("queue", "getopt", "logging"):
        (directory / f"{name}.py").write_text("raise SystemExit('code of the directory')\n")
    safely = (sys.executable, "-P", *RUN[1:])
    assert plain(*safely, f"{served.url}:/sw", "--", "cat", "/sw/hello", directory=directory).stdout == b"two\n"


def test_signals_to_it_alone_reach_the_command(plain: Plain, served: Server) -> None:
    names = ("TERM", "HUP", "INT", "QUIT", "USR1")
    traps = "".join(f"trap 'echo {name}' {name};" for name in names)
    with begin(plain, f"{served.url}:/sw", f"{traps} trap 'trap - TERM; echo USR2' USR2; {LOOP}") as running:
        for name in (*names, "USR2"):
            running.send_signal(getattr(signal, f"SIG{name}"))
            assert hear(running) == f"{name}\n".encode()
        running.terminate()
        assert running.wait(20) == 128 + signal.SIGTERM
        assert hear(running) == b""


def test_nothing_is_left_of_what_is_killed(plain: Plain, served: Server) -> None:
    with begin(plain, f"{served.url}:/sw", f"setsid sleep 1000 & {LOOP}") as running:
        assert len(plain.left()) > 4
        kill(running.pid)
        assert running.wait(20) == -signal.SIGKILL
    wait_until(lambda: not plain.left())


def test_on_a_terminal(plain: Plain, served: Server) -> None:
    """Ctrl-C reaches the command, and once; a shell with job control leaves the terminal to who called."""
    here, there = pty.openpty()
    count = "trap 'n=$((n+1)); echo got' INT; trap 'exit $((40+n))' TERM; tty > /dev/null && " + LOOP
    script = f"""{plain_words(served, "bash", "-ic", "sleep 0; exit 3")}; echo was $?; read line; echo $line
    exec {plain_words(served, "sh", "-c", count)}"""
    running = plain.start("setsid", "--ctty", "sh", "-c", script, stdin=there, stdout=there, stderr=there)
    os.close(there)
    with os.fdopen(here, "r+b", buffering=0) as terminal:
        expect(terminal, b"was 3\r\n")
        terminal.write(b"typed\n")
        expect(terminal, b"typed\r\ntyped\r\nready\r\n")
        terminal.write(b"\x03")
        expect(terminal, b"got\r\n")
        running.terminate()
        assert running.wait(20) == 41


def plain_words(server: Server, *command: str) -> str:
    return shlex.join([*RUN, f"{server.url}:/sw", "--", *command])


def expect(terminal: FileIO, wanted: bytes) -> None:
    seen = b""
    while wanted not in seen:
        assert select.select([terminal], [], [], 20)[0], seen
        seen += terminal.read(4096) or b""


def test_what_cannot_be_run(plain: Plain, served: Server) -> None:
    for command, status in (("none-such", 127), ("/etc/passwd", 126)):
        outcome = plain(*RUN, f"{served.url}:/sw", "--", command, check=False)
        assert (outcome.returncode, error_line(outcome).count(command)) == (status, 1)


def test_repositories_that_cannot_be_had(plain: Plain, served: Server) -> None:
    outcome = plain(*RUN, "http://127.0.0.1:1:/sw", "--", "echo", "ran", check=False, CVFS_START_DEADLINE_S="1")
    assert (outcome.returncode, outcome.stdout) == (1, b"")
    assert "refused" in error_line(outcome)
    outcome = plain(*RUN, "--root-sha256", "0" * 64, served.url, "--", "echo", "ran", check=False)
    assert (outcome.returncode, outcome.stdout) == (1, b"")
    assert "root" in error_line(outcome)
    assert plain.left() == []


def test_a_signal_ends_it_while_it_waits_for_a_server(plain: Plain) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        running = plain.start(*RUN, f"http://127.0.0.1:{silent.getsockname()[1]}:/sw", "--", "true")
        silent.settimeout(20)
        silent.accept()[0].close()
        with silent.accept()[0]:  # asked again: nothing has failed yet
            running.terminate()
            assert running.wait(5) == 128 + signal.SIGTERM


def test_a_host_that_forbids_namespaces(plain: Plain, served: Server) -> None:
    ids = (f"--map-user={UID}", f"--map-group={GID}", "--keep-caps")
    words = ("unshare", "--user", *ids, "sh", "-euc", FORBID, "sh", *RUN, f"{served.url}:/sw", "--", "true")
    line = error_line(plain(*words, check=False))
    assert "sysctl user.max_user_namespaces=10000" in line


def test_wrong_usage(plain: Plain) -> None:
    for words in (("URL", "true"), ("--all",), ("--all", "URL", "--", "true"), ("--", "true"), ("URL", "--")):
        outcome = plain(*RUN, *words, check=False)
        assert (outcome.returncode, outcome.stdout) == (2, b"")
