"""Keys and passphrases: never on a terminal or in a log, in an error, in what ps shows, or in a file for others."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cvfs.cli.group import cli as client_cli
from publisher.cli.group import cli as publisher_cli
from tests.command import ROOT

SECRET = "correct horse battery staple"
PEM = "PRIVATE KEY-----"


class Session:
    """Commands of the publisher, typed at a terminal by somebody with the loosest umask there is."""

    def __init__(self, top: Path) -> None:
        self.top, self.shown, self.command_lines = top, "", set[bytes]()
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "CVFS_KEYS": str(top / "keys"),
            "XDG_CACHE_HOME": str(top / "cache"),
        }

    def type(self, *arguments: str | Path, answers: int = 0, answer: str = SECRET, status: int = 0) -> str:
        """Run a command and give `answer` to its first `answers` prompts; what it has shown."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-bb", "-m", "publisher", *map(str, arguments)],
            env=self.environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            umask=0,
        )
        os.close(theirs)
        text = self._talk(ours, process.pid, answers, answer)
        assert process.wait(30) == status, text[-2000:]
        self.shown += text
        return text

    def _talk(self, terminal: int, pid: int, answers: int, answer: str) -> str:
        text, deadline = "", time.monotonic() + 30
        while time.monotonic() < deadline:
            self.command_lines.add(Path(f"/proc/{pid}/cmdline").read_bytes())
            if not select.select([terminal], [], [], 0.1)[0]:
                continue
            try:
                text += os.read(terminal, 4096).decode()
            except OSError:  # the other side has closed it
                break
            if re.search(r"(Passphrase|Repeat)[^\n]*: $", text):
                assert answers, f"asked too often: {text[-2000:]}"
                answers -= 1
                os.write(terminal, answer.encode() + b"\n")
        os.close(terminal)
        return text

    def secrets(self) -> set[str]:
        """The passphrase, and each line of each private key."""
        found = {SECRET}
        for path in self.top.rglob("*.pem"):
            found.update(line for line in path.read_text().splitlines() if "-----" not in line)
        return found


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A store that was made, signed, and given new keys, all with passphrases."""
    session = Session(tmp_path_factory.mktemp("secrets"))
    (session.top / "tree").mkdir()
    (session.top / "tree/file").write_text("one")
    store, tree, other = session.top / "store", session.top / "tree", session.top / "second-root.pem"
    session.type("init", store, "--name", "a.b", "--passphrase", answers=2)
    session.type("publish", store, tree, answers=1)
    session.type("tag", store, "v1", answers=1)
    session.type("key", "add-root", store, other, "--passphrase", answers=3)
    session.type("key", "rotate", store, "targets", "--passphrase", answers=3)
    wrong = session.type("publish", store, tree, "--at", "b", answers=1, answer="wrong", status=1)
    assert "the passphrase is wrong" in wrong
    assert "wrong\r\n" not in wrong.replace("is wrong\r\n", "")
    session.environment["CVFS_TARGETS_KEY"] = "-----BEGIN " + PEM + "\nMC4CAQAwBQYDK2VwBCIEIGarbled\n"
    assert "Garbled" not in session.type("publish", store, tree, "--at", "c", status=1)
    del session.environment["CVFS_TARGETS_KEY"]
    return session


def test_nothing_is_shown_or_logged(session: Session) -> None:
    """Of what was typed, of the keys that were made; not in any error either."""
    assert "Passphrase" in session.shown
    assert len(session.secrets()) > 5
    for secret in session.secrets():
        assert secret not in session.shown
    assert "PRIVATE KEY" not in session.shown
    assert "Traceback" not in session.shown


def test_nothing_is_in_a_command_line(session: Session) -> None:
    """What ps(1) shows to all users."""
    lines = b"\n".join(session.command_lines).decode()
    assert "publish" in lines
    for secret in session.secrets():
        assert secret not in lines


def test_no_option_takes_a_secret() -> None:
    """So that nobody can put one into a command line: options name files, and prompts or the environment the rest."""
    options = {
        f"{command.name} {name}": parameter
        for command in _commands(publisher_cli)
        for parameter in command.params
        for name in parameter.opts
        if re.search("pass|secret|token|key|cred", name)
    }
    assert "init --passphrase" in options
    for name, option in options.items():
        is_name_of_file = isinstance(option.type, click.Path) or name == "remove-root key_id"
        assert is_name_of_file or getattr(option, "is_flag", False), name
    for command in _commands(client_cli):
        assert not [name for one in command.params for name in one.opts if re.search("pass|secret|token", name)]


def test_no_file_for_others_has_a_key(session: Session) -> None:
    """Whatever the umask: keys are files of their owner alone from the moment they are made, and nowhere else."""
    private = [path for path in session.top.rglob("*") if path.is_file() and PEM.encode() in path.read_bytes()]
    assert {path.name for path in private} == {
        "root.pem",
        "targets.pem",
        "snapshot.pem",
        "timestamp.pem",
        "second-root.pem",
    }
    for path in private:
        assert path.stat().st_mode & 0o777 == 0o600
    assert (session.top / "keys").stat().st_mode & 0o777 == 0o700
    secrets = [secret.encode() for secret in session.secrets()]
    for path in session.top.rglob("*"):
        if path.is_file() and path not in private:
            assert not any(secret in path.read_bytes() for secret in secrets), path


def test_keys_are_protected_by_what_was_typed(session: Session) -> None:
    """All but the timestamp's, which a timer has to use."""
    protected = {path.name for path in session.top.rglob("*.pem") if "ENCRYPTED" in path.read_text()}
    assert protected == {"root.pem", "targets.pem", "snapshot.pem", "second-root.pem"}


def _commands(group: click.Group) -> Iterator[click.Command]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from _commands(command)
        else:
            yield command
