"""What docs/threats.md tells a publisher to do, done with the real commands; and that no key is ever shown."""

import base64
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cvfs.trust.names import TIMESTAMP, metadata_path
from publisher.store import directory
from tests.command import ROOT, Command

DOCUMENT = (ROOT / "docs/threats.md").read_text()
NAME = "threats.example.org"


class Repository:
    """A store, its keys beside it, and a client that has met it; commands as a user types them."""

    def __init__(self, top: Path) -> None:
        self.top, self.store, self.keys = top, top / "store", top / "keys"
        self.tree = top / "tree"
        self.tree.mkdir()
        self.client = Command(top)
        self.seen = ""

    def run(self, *arguments: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "CVFS_KEYS": str(self.keys),
            "XDG_CACHE_HOME": str(self.top / "c"),
        }
        line = [sys.executable, "-bb", "-m", "publisher", *map(str, arguments)]
        done = subprocess.run(
            line,
            env=env | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
        self.seen += done.stdout + done.stderr
        return done

    def ok(self, *arguments: str | Path, **environment: str) -> str:
        done = self.run(*arguments, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def publish(self, content: str, *options: str | Path, **environment: str) -> None:
        (self.tree / "file").write_text(content)
        self.ok("publish", self.store, self.tree, "--quiet", *options, **environment)

    def read(self, *options: str | Path) -> str:
        """What the client, which holds the first root it ever saw, reads."""
        return self.client.ok("cat", *options, self.store, "file").decode()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A store with one revision and its keys, to be copied: to make them takes longer."""
    repository = Repository(tmp_path_factory.mktemp("made"))
    repository.ok("init", repository.store, "--name", NAME)
    repository.publish("one")
    return repository


@pytest.fixture
def repository(made: Repository, tmp_path: Path) -> Iterator[Repository]:
    repository = Repository(tmp_path)
    for part in ("store", "keys", "tree"):
        shutil.copytree(made.top / part, tmp_path / part, dirs_exist_ok=True)
    assert repository.read("--root", repository.keys / "root.json") == "one"
    yield repository
    for path in (*repository.keys.glob("*.pem"), *tmp_path.glob("*.pem")):
        for line in path.read_text().splitlines():
            assert "-----" in line or line not in repository.seen, f"{path} was shown"


def commands(heading: str) -> list[list[str]]:
    """The commands that the document gives in the paragraph that begins with `heading`."""
    start = DOCUMENT.index(heading)
    part = re.split(r"\n(?:\*\*|## )", DOCUMENT[start + 2 :])[0]
    return [shlex.split(line) for line in re.findall(r"^    ((?:cvfs-publisher|mv) .*)$", part, re.MULTILINE)]


def follow_document(repository: Repository, heading: str, **meaning: str | Path) -> list[list[str]]:
    """Do what the document says there; words in capitals mean what `meaning` says."""
    found = commands(heading)
    words = {"STORE": repository.store, "TREE": repository.tree, "NAME": NAME, **meaning}
    for program, *arguments in found:
        replaced = [words.get(word.replace("-", "_").removesuffix(".pem"), word) for word in arguments]
        if program == "mv":
            shutil.move(*(str(word).replace("STORE", str(repository.store)) for word in replaced))
        else:
            repository.ok(*replaced)
    assert found
    return found


KEY_RECIPES = (
    ("**Timestamp key lost**", ("timestamp",)),
    ("**Snapshot key lost.**", ("snapshot",)),
    ("**Targets key lost.**", ("targets",)),
    ("**Timestamp or snapshot key stolen.**", ()),
    ("**Targets key stolen.**", ()),
    ("**The only root key stolen, and you have it too.**", ()),
)


@pytest.mark.parametrize(("heading", "lost"), KEY_RECIPES, ids=[heading.strip("*.") for heading, _ in KEY_RECIPES])
def test_what_the_document_says_to_do(repository: Repository, heading: str, lost: tuple[str, ...]) -> None:
    """The root key is kept elsewhere; the client holds the first root it ever saw, and follows."""
    before = {path.name: path.read_bytes() for path in repository.keys.glob("*.pem")}
    root_key = (repository.keys / "root.pem").rename(repository.top / "root-key.pem")
    for role in lost:
        (repository.keys / f"{role}.pem").unlink()
    (repository.tree / "file").write_text("two")
    found = follow_document(repository, heading, ROOT_KEY=root_key)
    repository.publish("three")
    assert repository.read() == "three"
    for role in {command[4] for command in found if command[1:3] == ["key", "rotate"]}:
        place = root_key if role == "root" else repository.keys / f"{role}.pem"
        assert place.read_bytes() != before[f"{role}.pem"]
    assert not list(repository.top.rglob("*.new.pem"))


def test_every_key_has_a_recipe_for_loss_and_for_theft() -> None:
    part = DOCUMENT[DOCUMENT.index("## When a key is lost or stolen") : DOCUMENT.index("## What is not covered")]
    told = re.findall(r"^\*\*(.+?)\*\*", part, re.MULTILINE)
    for role in ("Timestamp", "Snapshot", "Targets", "root"):
        for fate in ("lost", "stolen"):
            assert any(role.lower() in line.lower() and fate in line for line in told), (role, fate)


def test_one_of_several_root_keys(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    a, b, gone, new = (tmp_path / f"{name}.pem" for name in ("a", "b", "gone", "new"))
    named = [word for path in (a, b, gone) for word in ("--root-key", path)]
    repository.ok("init", repository.store, "--name", NAME, *named, "--root-threshold", "2")
    repository.publish("one")
    assert repository.read("--root", repository.keys / "root.json") == "one"
    listed = repository.ok("key", "list", repository.store, *named)
    key_id = next(line.split()[0] for line in listed.splitlines() if str(gone) in line)
    gone.unlink()
    follow_document(repository, "**One of several root keys lost or stolen**", A=a, B=b, NEW=new, ID=key_id)
    listed = repository.ok("key", "list", repository.store, "--root-key", a, "--root-key", b, "--root-key", new)
    assert key_id not in listed
    assert "root:       2 of 3 keys must sign" in listed
    repository.publish("two")
    assert repository.read() == "two"


def test_a_stolen_root_key_and_a_thief_who_was_first(repository: Repository, tmp_path: Path) -> None:
    """A client that the thief has got follows the thief, until it is given a new root; then nothing of it is left."""
    ours = tmp_path / "ours"
    shutil.copytree(repository.store, ours)
    stolen = tmp_path / "stolen-keys"
    shutil.copytree(repository.keys, stolen)
    for role in ("root", "targets"):
        repository.ok("key", "rotate", repository.store, role, "--keys", stolen)
    repository.publish("evil", "--keys", stolen, "--state", tmp_path / "thief")
    assert repository.read() == "evil"
    shutil.rmtree(repository.store)
    shutil.move(ours, repository.store)
    repository.ok("key", "rotate", repository.store, "root")
    repository.publish("two")
    assert "cannot trust what" in repository.client("cat", repository.store, "file").stderr.decode()
    new = tmp_path / "new-keys"
    repository.publish("three")
    follow_document(repository, "**The only root key stolen, and the thief was first**", NEW_KEYS=new)
    assert repository.read("--root", new / "root.json") == "three"
    assert repository.read() == "three"


def test_every_role_rotates_and_old_roots_follow(repository: Repository) -> None:
    for role in ("root", "targets", "snapshot", "timestamp", "root"):
        repository.ok("key", "rotate", repository.store, role)
    repository.publish("two")
    assert repository.read() == "two"
    assert (repository.store / metadata_path("root", 6)).exists()


def test_every_day(repository: Repository, tmp_path: Path) -> None:
    """The host with the timer has the timestamp key and the root alone."""
    timer = tmp_path / "timer"
    timer.mkdir()
    for name in ("timestamp.pem", "root.json"):
        (repository.keys / name).rename(timer / name)
    before = (repository.store / TIMESTAMP).read_bytes()
    repository.ok("resign", repository.store, "--keys", timer, "--days", "30")
    assert (repository.store / TIMESTAMP).read_bytes() != before
    assert repository.read() == "one"
    assert (
        "the targets key is not here"
        in repository.run("publish", repository.store, repository.tree, "--keys", timer).stderr
    )
    (timer / "root.json").rename(repository.keys / "root.json")
    repository.ok("key", "renew-root", repository.store)
    assert repository.read() == "one"


def test_a_root_key_that_is_kept_elsewhere_and_a_threshold(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    one, two, three = (tmp_path / f"{name}.pem" for name in ("one", "two", "three"))
    both = ("--root-key", one, "--root-key", two)
    repository.ok("init", repository.store, "--name", "a.b", *both, "--root-threshold", "2")
    assert not (repository.keys / "root.pem").exists()
    repository.publish("one")
    assert repository.read("--root", repository.keys / "root.json") == "one"
    alone = repository.run("key", "rotate", repository.store, "timestamp", "--root-key", one)
    assert "wants 2 of 2 root keys, and they are not all here" in alone.stderr
    repository.ok("key", "rotate", repository.store, "timestamp", *both)
    repository.ok("key", "add-root", repository.store, three, *both)
    listed = repository.ok("key", "list", repository.store, *both)
    key_id = next(line.split()[0] for line in listed.splitlines() if str(two) in line)
    repository.ok("key", "remove-root", repository.store, key_id, "--root-key", one, "--root-key", three)
    repository.publish("two")
    assert repository.read() == "two"
    assert "0 root keys have an id" in repository.run("key", "remove-root", repository.store, "abcdef99").stderr


def test_keys_are_files_of_their_owner_outside_of_the_store(repository: Repository) -> None:
    for path in repository.keys.glob("*.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(repository.keys.stat().st_mode) == 0o700
    assert not list(repository.store.rglob("*.pem"))
    inside = repository.run("init", repository.top / "s2", "--name", "a.b", "--keys", repository.top / "s2/keys")
    assert "is inside the store" in inside.stderr
    (repository.keys / "targets.pem").chmod(0o644)
    assert "others can read the key" in repository.run("publish", repository.store, repository.tree).stderr


def test_a_root_key_is_not_put_where_its_medium_should_be(repository: Repository, tmp_path: Path) -> None:
    away = tmp_path / "media/safe/root.pem"
    for words in (
        ("init", tmp_path / "other", "--name", "a.b", "--keys", tmp_path / "others", "--root-key", away),
        ("key", "add-root", repository.store, away),
    ):
        refused = repository.run(*words)
        assert f"cannot write the key {away}: No such file or directory" in refused.stderr
        assert not (tmp_path / "media").exists()


def test_passphrase(tmp_path: Path) -> None:
    repository, secret = Repository(tmp_path), "correct horse battery"
    repository.ok("init", repository.store, "--name", "a.b", "--passphrase", CVFS_KEY_PASSPHRASE=secret)
    for role in ("root", "targets", "snapshot"):
        assert b"ENCRYPTED" in (repository.keys / f"{role}.pem").read_bytes()
    without = repository.run("publish", repository.store, repository.tree)
    assert "is protected by a passphrase: set CVFS_KEY_PASSPHRASE" in without.stderr
    wrong = repository.run("publish", repository.store, repository.tree, CVFS_KEY_PASSPHRASE="wrong horse")
    assert "the passphrase is wrong" in wrong.stderr
    repository.publish("one", CVFS_KEY_PASSPHRASE=secret)
    repository.ok("resign", repository.store)
    assert secret not in repository.seen
    assert "wrong horse" not in repository.seen
    assert repository.read("--root", repository.keys / "root.json") == "one"


def test_a_key_in_place_of_a_protected_one_is_protected(tmp_path: Path) -> None:
    repository, secret = Repository(tmp_path), {"CVFS_KEY_PASSPHRASE": "open sesame"}
    repository.ok("init", repository.store, "--name", "a.b", "--passphrase", **secret)
    for role in ("root", "targets", "snapshot", "timestamp"):
        before = (repository.keys / f"{role}.pem").read_bytes()
        repository.ok("key", "rotate", repository.store, role, **secret)
        after = (repository.keys / f"{role}.pem").read_bytes()
        assert before != after
        assert (b"ENCRYPTED" in after) is (b"ENCRYPTED" in before) is (role != "timestamp")
    repository.publish("one", **secret)


@pytest.mark.parametrize("encode", [lambda data: data.decode(), lambda data: base64.b64encode(data).decode()])
def test_keys_from_the_environment(repository: Repository, tmp_path: Path, encode: Any) -> None:
    keys = {
        f"CVFS_{role.upper()}_KEY": encode((repository.keys / f"{role}.pem").read_bytes())
        for role in ("targets", "snapshot", "timestamp")
    }
    nowhere = {"CVFS_KEYS": str(tmp_path / "nowhere")}
    unknown = repository.run("publish", repository.store, repository.tree, **keys, **nowhere)
    assert "no root.json in" in unknown.stderr
    sha256 = re.search(r"SHA-256: +([0-9a-f]{64})", repository.ok("key", "list", repository.store))
    assert sha256
    repository.publish("two", **keys, **nowhere, CVFS_ROOT_SHA256=sha256[1])
    assert repository.read() == "two"
    garbled = {**keys, "CVFS_TARGETS_KEY": "MC4CAQAwBQYDK2VwBCIEIGarbled"}
    failed = repository.run(
        "publish", repository.store, repository.tree, **garbled, **nowhere, CVFS_ROOT_SHA256=sha256[1]
    )
    assert failed.returncode == 1
    assert "Garbled" not in failed.stderr
    assert not any(value in repository.seen for value in keys.values())


def test_a_dry_run_needs_no_keys(repository: Repository, tmp_path: Path) -> None:
    (repository.tree / "file").write_text("two")
    repository.ok("publish", repository.store, repository.tree, "--dry-run", CVFS_KEYS=str(tmp_path / "nowhere"))
    assert repository.read() == "one"


def test_nothing_is_signed_on_top_of_a_head_that_is_not_ours(repository: Repository, tmp_path: Path) -> None:
    """Whoever can write to the store must not have it signed by whoever publishes next."""
    other = Repository.__new__(Repository)
    (tmp_path / "other").mkdir()
    Repository.__init__(other, tmp_path / "other")
    other.ok("init", other.store, "--name", "threats.example.org")
    other.publish("evil")
    subprocess.run(["rm", "-r", repository.store], check=True)
    subprocess.run(["cp", "-a", other.store, repository.store], check=True)
    for command in (("publish", repository.store, repository.tree), ("resign", repository.store)):
        assert "is not signed as it should be" in repository.run(*command).stderr


_DIE = """
import os, sys
from publisher.store import directory
steps = int(sys.argv.pop(1))
real = directory.DirectoryStore._write
def write(self, relative, *arguments, **options):
    global steps
    if relative.startswith("metadata/"):
        steps -= 1
        if steps < 0:
            os._exit(9)
    return real(self, relative, *arguments, **options)
directory.DirectoryStore._write = write
from publisher.cli import main
main()
"""


@pytest.mark.parametrize(
    ("command", "steps"),
    [
        (("publish", "STORE", "TREE", "--quiet"), 3),
        (("key", "rotate", "STORE", "targets"), 4),
        (("resign", "STORE"), 1),
    ],
)
def test_killed_before_any_step(repository: Repository, command: tuple[str, ...], steps: int) -> None:
    """At no point does a client lose anything, nor the publisher the way back."""
    assert hasattr(directory.DirectoryStore, "_write")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "CVFS_KEYS": str(repository.keys)}
    words = {"STORE": str(repository.store), "TREE": str(repository.tree)}
    for step in range(steps):
        (repository.tree / "file").write_text(f"new {step}")
        before = repository.read()
        line = [sys.executable, "-c", _DIE, str(step), *(words.get(word, word) for word in command)]
        killed = subprocess.run(line, env=env, capture_output=True, text=True, check=False, timeout=60)
        assert killed.returncode == 9, killed.stderr
        assert repository.read() == before
        fresh = ("--state-dir", repository.top / f"fresh{step}", "--root", repository.keys / "root.json")
        assert repository.read(*fresh) == before
        repository.publish(f"after {step}")
        assert repository.read() == f"after {step}"
