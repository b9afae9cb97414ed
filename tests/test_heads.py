"""cvfs.heads: which revision is current, with mirrors that are away, behind, or not what they were."""

import logging
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from subprocess import PIPE
from typing import TypeVar

import pytest
import trio

from cvfs.errors import ConfigError, FormatError, TransportError, TrustError
from cvfs.format.manifest import encode_manifest
from cvfs.heads import Head, Heads, state_key
from cvfs.mirrors import Mirrors, Network
from cvfs.transport import Transport
from cvfs.trust.anchor import Anchor
from cvfs.trust.names import TIMESTAMP as HEAD
from cvfs.trust.state import FILE
from cvfs.trust.values import root_id
from tests import servers
from tests.servers import FaultyServer
from tests.small_store import SmallStore, Tree

T = TypeVar("T")

DEADLINE_S = 2.0


@pytest.fixture
def published() -> list[Tree]:
    return [{b"one": b"1"}]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def with_mirrors(url: str, use: Callable[[Mirrors], Awaitable[T]]) -> T:
    async def main() -> T:
        with closing(Transport(user_agent="test")) as transport:
            return await use(Mirrors(Network(transport), [url]))

    return trio.run(main)


def heads_of(mirrors: Mirrors, server: FaultyServer, state: Path) -> Heads:
    root = (server.directory.parent / "root.json").read_bytes()
    return Heads(mirrors, server.url, state, Anchor("a test", root, root_id(root)))


def current(server: FaultyServer, state: Path) -> Head:
    """What a process that has just started takes for current."""

    async def ask(mirrors: Mirrors) -> Head:
        heads = heads_of(mirrors, server, state)
        head = await heads.current(DEADLINE_S)
        if not head.problem:
            await heads.accept(head)
        return head

    return with_mirrors(server.url, ask)


def test_head_comes_from_the_mirror_and_is_remembered(server: FaultyServer, state: Path) -> None:
    head = current(server, state)
    assert (head.manifest.revision, head.problem) == (1, "")
    assert [path.name for path in state.iterdir()] == [FILE]
    assert (state / FILE).stat().st_mode & 0o777 == 0o600
    assert current(server, state) == head


def test_head_that_has_not_changed_is_not_sent_again(server: FaultyServer, state: Path) -> None:
    async def ask_twice(mirrors: Mirrors) -> tuple[Head, Head]:
        heads = heads_of(mirrors, server, state)
        await heads.accept(await heads.current(DEADLINE_S))
        return await heads.current(DEADLINE_S), await heads.current(DEADLINE_S)

    first, second = with_mirrors(server.url, ask_twice)
    assert first == second
    assert server.requests[f"/{HEAD}"] == 3
    assert server.sent_bytes[f"/{HEAD}"] < 2 * len((server.directory / HEAD).read_bytes())


def test_new_revision_follows(server: FaultyServer, store: SmallStore, state: Path) -> None:
    current(server, state)
    store.publish({b"two": b"2"})
    assert current(server, state).manifest.revision == 2
    server.misbehave(servers.html)
    assert current(server, state).manifest.revision == 2


@pytest.mark.parametrize(
    "fault", [servers.html, servers.status("503 Busy"), servers.status("404 Not Found"), servers.flip(1)]
)
def test_known_revision_serves_while_the_mirror_has_none(
    server: FaultyServer, state: Path, fault: servers.Fault, caplog: pytest.LogCaptureFixture
) -> None:
    current(server, state)
    server.misbehave(fault, f"/{HEAD}")
    head = current(server, state)
    assert head.manifest.revision == 1
    assert head.problem
    (level,) = [record.levelno for record in caplog.records if record.name == "cvfs.heads"]
    assert level in (logging.WARNING, logging.ERROR)


def test_problem_passes_when_the_mirror_is_back(server: FaultyServer, state: Path) -> None:
    current(server, state)

    async def ask_twice(mirrors: Mirrors) -> list[str]:
        heads = heads_of(mirrors, server, state)
        server.misbehave(servers.html)
        await heads.current(DEADLINE_S)
        problems = [heads.problem]
        server.recover()
        await heads.current(DEADLINE_S)
        return [*problems, heads.problem]

    first, second = with_mirrors(server.url, ask_twice)
    assert "web page" in first
    assert second == ""


def test_without_a_known_revision_it_is_said_what_is_there(server: FaultyServer, state: Path) -> None:
    server.misbehave(servers.html)
    with pytest.raises(TrustError, match="serves a web page"):
        current(server, state)
    server.misbehave(servers.status("404 Not Found"))
    with pytest.raises(ConfigError, match="no repository at http"):
        current(server, state)
    server.misbehave(servers.status("500 Oops"))
    with pytest.raises(TransportError, match="HTTP 500"):
        current(server, state)
    assert not state.exists()


def by_sha256(sha256: str, state: Path, *urls: str) -> Head:
    """The first head of a client that has only the SHA-256 of the root."""

    async def main() -> Head:
        with closing(Transport(user_agent="test")) as transport:
            mirrors = Mirrors(Network(transport), urls)
            return await Heads(mirrors, urls[0], state, Anchor("a test", None, sha256)).current(8.0)

    return trio.run(main)


def no_page(exchange: servers.Exchange) -> None:
    """A server of programs in the browser: for what it does not have, it has the page in which all begins."""
    (servers.html if exchange.body is None else servers.behave)(exchange)


@pytest.mark.parametrize("fault", [servers.html, no_page])
def test_a_page_for_every_path_is_no_root(
    server: FaultyServer, store: SmallStore, state: Path, tmp_path: Path, fault: servers.Fault
) -> None:
    server.misbehave(fault)
    with pytest.raises(TrustError, match=r"it serves a web page \(HTML or XML\) instead of metadata/[12]\.root\.json"):
        by_sha256("0" * 64, state, server.url)
    assert server.requests.total() <= 4  # once more, past what may be a proxy's
    with FaultyServer(store.path) as other:
        sha256 = root_id((server.directory.parent / "root.json").read_bytes())
        server.misbehave(servers.html)
        assert by_sha256(sha256, state, server.url, other.url).manifest.revision == 1


def test_a_root_is_looked_for_by_its_version(server: FaultyServer, state: Path) -> None:
    """What has the same answer to everything ends the search, also if that could be a root."""
    root = (server.directory / "metadata/1.root.json").read_bytes()
    server.misbehave(lambda exchange: exchange.answer(body=root))
    with pytest.raises(TrustError, match=r"has version 1 of the root as metadata/2\.root\.json"):
        by_sha256("0" * 64, state, server.url)
    server.misbehave(lambda exchange: exchange.answer(body=b"{}"))
    with pytest.raises(TrustError, match=r"not a root\.json"):
        by_sha256("0" * 64, state, server.url)


def test_unknown_format_is_named(server: FaultyServer, store: SmallStore, state: Path) -> None:
    data = encode_manifest(store.publish({})).replace(b'"format": 1', b'"format": 9')
    store.sign(store.put(data), data)
    with pytest.raises(FormatError, match="format version 9; this cvfs reads version 1"):
        current(server, state)


def test_damaged_memory_is_none(server: FaultyServer, state: Path) -> None:
    current(server, state)
    (state / FILE).write_bytes(b"{")
    assert current(server, state) == current(server, state)
    server.misbehave(servers.html)
    (state / FILE).write_bytes(b"{")
    with pytest.raises(TrustError):
        current(server, state)


def test_state_that_cannot_be_written_is_no_obstacle(server: FaultyServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert current(server, tmp_path / "file" / "state").manifest.revision == 1


def test_a_process_that_hangs_while_it_remembers_holds_up_no_other(
    server: FaultyServer, state: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cvfs.trust.state._LOCK_DEADLINE_S", 0.2)
    state.mkdir(mode=0o700)
    with subprocess.Popen(["flock", state, "sh", "-c", "echo held; read end"], stdin=PIPE, stdout=PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        assert current(server, state).manifest.revision == 1
        holder.communicate(b"end\n")
    assert "cannot remember what is trusted" in caplog.text
    assert not (state / FILE).exists()
    current(server, state)
    assert (state / FILE).exists()


def test_each_address_has_a_state_of_its_own() -> None:
    keys = {state_key(url) for url in ("http://a/b", "http://a/b/c", "http://a-b", "https://a/b", "file:///")}
    assert len(keys) == 5
    assert all("/" not in key and key.isascii() and not key.startswith(".") for key in keys)
