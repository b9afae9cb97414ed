"""What the commands print, and their options."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cvfs import __version__
from publisher.cli.group import cli
from publisher.maintenance.check import CheckReport
from publisher.publishing.threads import Threads
from tests.publisher.stores import Store, command, environment, error_line, run
from tests.trees import File, Link, Symlink, make_tree


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    make_tree(tmp_path / "tree", {b"a": File(data=b"a"), b"d/b": File(data=b"b" * 5000), b"d/l": Symlink()})
    return tmp_path / "tree"


def _json(*arguments: str | Path) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def test_closed_streams(store: Store, tree: Path) -> None:
    line = command("publish", store.path, tree, "--state", tree.with_name("state"))
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        outcome = subprocess.run(
            ["sh", "-c", f'exec "$@" {closed}', "sh", *line],
            env=environment(),
            capture_output=True,
            check=False,
            timeout=30,
        )
        assert (outcome.returncode, outcome.stderr) == (0, b""), outcome
        assert bool(outcome.stdout) == (" >" not in f" {closed}")


def test_from_nothing_to_two_revisions(tmp_path: Path, tree: Path) -> None:
    path, state = tmp_path / "new/store", ("--state", tmp_path / "state")
    made = run("init", path, "--name", "a.example.org").stdout
    assert made.startswith(f"Made {path}: repository a.example.org, revision 0, empty\n")
    first = run("publish", path, tree, *state)
    assert first.stdout.startswith("Published revision 1 of a.example.org\n")
    assert "3 new, 0 changed, 0 removed, 0 unchanged" in first.stdout
    assert first.stderr == ""
    again = run("publish", path, tree, *state)
    assert again.stdout.startswith("Nothing has changed: a.example.org stays at revision 1\n")
    (tree / "a").write_bytes(b"other")
    (tree / "d/l").unlink()
    (tree / "new").touch()
    assert "1 new, 1 changed, 1 removed, 1 unchanged" in run("publish", path, tree, *state).stdout


def test_json_counts_everything(store: Store, tree: Path) -> None:
    report = _json("publish", store.path, tree, "--state", store.state, "--message", "first")
    assert report["changes"] == {"new": 3, "changed": 0, "removed": 0, "unchanged": 0, "directories": 2}
    assert report["tree"] == {"files": 3, "directories": 1, "bytes": 5001}
    assert report["read"] == {"files": 2, "bytes": 5001}
    assert store.manifest.message == "first"
    log = json.loads(run("log", store.path, "--json").stdout)
    assert [(revision["revision"], revision["message"]) for revision in log["revisions"]] == [(1, "first"), (0, "")]


def test_a_dry_run_tells_the_same_and_changes_nothing(tmp_path: Path, store: Store, tree: Path) -> None:
    blobs, head = store.blobs(), store.manifest
    dry = _json("publish", store.path, tree, "--state", store.state, "--dry-run")
    assert (store.blobs(), store.manifest) == (blobs, head)
    real = _json("publish", store.path, tree, "--state", store.state)
    for key in ("root", "changes", "tree", "read", "stored", "saved"):
        assert dry[key] == real[key]
    assert (dry["published"], dry["dry_run"], real["published"]) == (False, True, True)


def test_exclude_means_what_it_means_in_a_gitignore(tmp_path: Path, store: Store) -> None:
    paths = [b"keep.c", b"drop.o", b"build/x", b"sub/build/y", b"sub/keep.o", b"top", b"sub/top", b"\xff.o"]
    tree = {path: File(data=path) for path in paths}
    make_tree(tmp_path / "tree", {**tree, b"sub/linked": Link(b"drop.o")})
    excludes = ["--exclude", "*.o", "--exclude", "build/", "--exclude", "/top", "--exclude", "!keep.o"]
    result = run("publish", store.path, tmp_path / "tree", *excludes, "--state", store.state)
    assert result.returncode == 0, result
    entries = {record.path: record.entry for record in store.records()}
    assert sorted(entries) == [b"", b"keep.c", b"sub", b"sub/keep.o", b"sub/linked", b"sub/top"]
    assert entries[b""].nlink == 3
    assert entries[b"sub"].nlink == 2
    assert entries[b"sub/linked"].nlink == 1


@pytest.mark.parametrize(
    ("message", "said"), [("m" * 4097, "a message of 4097 characters: at most 4096"), ("\udcff", "not text in UTF-8")]
)
def test_a_message_that_no_client_would_take(store: Store, tree: Path, message: str, said: str) -> None:
    for arguments in (("publish", store.path, tree), ("rollback", store.path, "0")):
        assert said in error_line(run(*arguments, "-m", message, "--state", store.state))
        assert len(store.blobs()) == 2, "nothing was done before"
    assert run("publish", store.path, tree, "-m", "m" * 4096, "--state", store.state).returncode == 0
    for arguments in (("publish", store.path, tree), ("rollback", store.path, "0")):
        assert said in error_line(run(*arguments, "-m", message, "--state", store.state))
    assert store.manifest.message == "m" * 4096


def test_log_and_diff_write_no_line_feeds_and_no_escape_sequences(store: Store, tree: Path) -> None:
    for name in ("a\nb", "a\\nb", "\x1b[31m", "\udcff", "plain \u00e9"):
        (tree / name).touch()
    message = "red \x1b[31m\nand \u202eturned"
    assert run("publish", store.path, tree, "-m", message, "--state", store.state).returncode == 0
    newest = run("log", store.path).stdout.splitlines()[0]
    assert newest.endswith(r"red \x1b[31m\nand \u202eturned")
    assert _json("log", store.path)["revisions"][0]["message"] == message
    lines = run("diff", store.path, "0").stdout.splitlines()
    for shown in (r"a\nb", r"a\\nb", r"\x1b[31m", r"\xff", "plain \u00e9"):
        assert f"A /{shown}" in lines
    paths = {each["path"] for each in _json("diff", store.path, "0")["differences"]}
    assert {"a\nb", "a\\nb", "\x1b[31m", "\udcff"} <= paths


def test_no_more_threads_than_processors_that_may_be_used(
    store: Store, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(_store: object, workers: int, *, has_all: bool) -> CheckReport:
        started.append(workers)
        return CheckReport("", 0, 0, 0, 0, [])

    started: list[int] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {5})
    monkeypatch.setattr("publisher.maintenance.check.check", record)
    monkeypatch.setattr(Threads, "start", lambda _stack, packers: started.append(packers) or 1 / 0)
    monkeypatch.setenv("CVFS_KEYS", str(store.keys.directory))
    assert CliRunner().invoke(cli, ["check", str(store.path)]).exit_code == 0
    CliRunner().invoke(cli, ["publish", str(store.path), str(tree), "--state", str(store.state)])
    assert started == [1, 1]


def test_quiet_says_nothing(store: Store, tree: Path) -> None:
    result = run("publish", store.path, tree, "--quiet", "--state", store.state)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert store.manifest.revision == 1


def test_source_date_epoch_makes_data_equal_to_the_last_byte(tmp_path: Path, tree: Path) -> None:
    """But not what is signed: that is valid from when it is signed."""
    epoch, found = str(int(time.time()) - 3600), []
    for name in ("one", "two"):
        path = tmp_path / name
        if name == "two":  # the same keys, but for another repository
            (tmp_path / "two-keys").mkdir()
            for key in (tmp_path / "one-keys").glob("*.pem"):
                shutil.copy2(key, tmp_path / "two-keys")
        run("init", path, "--name", "a.b", SOURCE_DATE_EPOCH=epoch)
        run("publish", path, tree, "--state", tmp_path / f"{name}-state", SOURCE_DATE_EPOCH=epoch)
        data = path / "data"
        found.append({str(p.relative_to(data)): p.read_bytes() for p in data.rglob("*") if p.is_file()})
    assert found[0] == found[1]
    assert len(found[0]) > 3


def test_a_date_long_ago_signs_nothing_that_has_expired(tmp_path: Path, tree: Path, store: Store) -> None:
    refused = run("init", tmp_path / "old", "--name", "a.b", SOURCE_DATE_EPOCH="1234567890")
    assert refused.returncode != 0
    assert "SOURCE_DATE_EPOCH is too long ago" in refused.stderr
    assert not (tmp_path / "old").exists()
    run("publish", store.path, tree, "--state", store.state, SOURCE_DATE_EPOCH="1234567890")
    assert store.manifest.revision == 1
    expires = json.loads((store.path / "metadata/timestamp.json").read_bytes())["signed"]["expires"]
    assert expires > time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def test_state_is_kept_in_the_users_cache(tmp_path: Path, store: Store, tree: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root's is /var/cache")
    run("publish", store.path, tree, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert list((tmp_path / "cache/cvfs-publisher").iterdir())


def test_check_finds_what_is_missing_or_wrong(store: Store, tree: Path) -> None:
    run("publish", store.path, tree, "--state", store.state)
    assert run("check", store.path).returncode == 0
    [location] = {record.content.locations[0].pack for record in store.records() if record.entry.content_id}
    pack = store.path / f"data/{location.id.hex()[:2]}/{location.id.hex()[2:]}"
    right = pack.read_bytes()
    for wrong in (right[:-1], right[:-1] + bytes([right[-1] ^ 1]), None):
        pack.unlink() if wrong is None else pack.write_bytes(wrong)
        result = run("check", store.path)
        assert result.returncode == 1
        assert pack.name in result.stderr
    report = json.loads(run("check", store.path, "--json").stdout)
    assert (len(report["errors"]), report["packs"]) == (1, 1)


def test_check_of_all_finds_what_older_revisions_lack(store: Store, tree: Path) -> None:
    run("publish", store.path, tree, "--state", store.state)
    before = store.blobs()
    (tree / "a").write_bytes(b"other")
    run("publish", store.path, tree, "--state", store.state)
    assert "revision 2 and 2 before: 2 packs" in run("check", store.path, "--all").stdout
    run("publish", store.path, tree / "d", "--state", store.state)
    for name in before:
        path = store.path / name
        right = path.read_bytes()
        path.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
        done = run("check", store.path, "--all")
        assert (done.returncode, path.name in done.stderr) == (1, True), done
        path.write_bytes(right)
    assert run("check", store.path, "--all").returncode == 0


@pytest.mark.parametrize("command", ["init", "publish", "serve", "log", "check"])
def test_help_has_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.returncode == 0
    assert f"cvfs-publisher {command} " in result.stdout.split("Example", 1)[1]


def test_version() -> None:
    assert __version__ in run("--version").stdout


@pytest.mark.parametrize(
    ("epoch", "told"),
    [
        ("abc", "not a number"),
        ("-5", "not a number"),
        ("9" * 11, "to come"),
        ("0" * 20 + "9" * 10, "not a number"),
        ("0" * 5000, "not a number"),
    ],
)
def test_dates_that_are_none(store: Store, tree: Path, epoch: str, told: str) -> None:
    refused = run("publish", store.path, tree, "--state", store.state, SOURCE_DATE_EPOCH=epoch)
    assert told in error_line(refused)
    assert told in error_line(run("init", store.path.with_name("other"), "--name", "a.b", SOURCE_DATE_EPOCH=epoch))
    assert store.manifest.revision == 0


def test_a_clock_that_has_gone_back_is_told(store: Store, tree: Path) -> None:
    store.publish(tree, published_s=int(time.time()) + 10 * 86_400)
    keys = ("--keys", store.keys.directory)
    for words in (
        ("publish", store.path, tree),
        ("remove", store.path, "a", *keys),
        ("rollback", store.path, "1", *keys),
    ):
        done = run(*words, "--state", store.state)
        assert done.returncode == 0
        assert done.stderr.startswith("cvfs-publisher: warning: revision ")
        assert "it is wrong, or was then" in done.stderr


@pytest.mark.parametrize("words", [("gc", "--keep", "1"), ("tag", "v1"), ("log",), ("init", "--name", "a.b")])
def test_store_that_is_a_variable_which_is_not_set(words: tuple[str, ...]) -> None:
    refused = run(words[0], "", *words[1:])
    assert (refused.returncode, "it is empty" in refused.stderr) == (2, True)


@pytest.mark.parametrize("words", [("{store}", "{tree}", "--at", ""), ("{store}", ""), ("", "{tree}")])
def test_variable_that_is_not_set_publishes_nothing(store: Store, tree: Path, words: tuple[str, ...]) -> None:
    """`--at ""` would replace the whole repository, and an empty TREE be the current directory."""
    refused = run("publish", *(word.format(store=store.path, tree=tree) for word in words), "--state", store.state)
    assert (refused.returncode, "it is empty" in refused.stderr) == (2, True)
    assert store.manifest.revision == 0
