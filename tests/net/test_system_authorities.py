"""HTTPS with the authorities of the system: those of SSL_CERT_FILE, without any option."""

import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import Command
from tests.servers import FaultyServer, make_authority, make_certificate
from tests.small_store import SmallStore


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    """Its certificate is signed by the authority in authority.pem."""
    (tmp_path / "store").mkdir()
    store = SmallStore(tmp_path / "store")
    store.publish({b"file": b"content"})
    authority = make_authority()
    (tmp_path / "authority.pem").write_bytes(authority.pem)
    (tmp_path / "server.pem").write_bytes(make_certificate("127.0.0.1", authority))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    with FaultyServer(store.path, context) as server:
        yield server


@pytest.fixture
def cvfs(tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path)
    command.environment.pop("SSL_CERT_FILE", None)
    (tmp_path / "mnt").mkdir()
    yield command
    leftovers = command.leftovers()
    command.clean_up()
    assert not leftovers


def test_authority_of_ssl_cert_file(cvfs: Command, server: FaultyServer, tmp_path: Path) -> None:
    mnt = tmp_path / "mnt"
    assert "certificate not accepted" in cvfs.refused("mount", server.url, mnt)
    system = {"SSL_CERT_FILE": str(tmp_path / "authority.pem")}
    assert cvfs.ok("cat", server.url, "file", extra=system) == b"content"
    cvfs.ok("mount", server.url, mnt, extra=system)
    assert (mnt / "file").read_bytes() == b"content"
    assert cvfs.status(mnt)["state"] == "ok"
    cvfs.ok("umount", mnt)
    findings = json.loads(cvfs("doctor", server.url, "--json", extra=system).stdout)["findings"]
    assert [each["state"] for each in findings if each["test"].startswith("TLS ")] == ["ok"]


def test_authority_of_an_option_is_believed_alone(cvfs: Command, server: FaultyServer, tmp_path: Path) -> None:
    """`--ca` stands instead of the system's authorities, not beside them."""
    (tmp_path / "other.pem").write_bytes(make_authority().pem)
    system = {"SSL_CERT_FILE": str(tmp_path / "authority.pem")}
    assert cvfs("cat", server.url, "file", "--ca", tmp_path / "other.pem", extra=system).returncode == 1
    assert cvfs.ok("cat", server.url, "file", "--ca", tmp_path / "authority.pem") == b"content"
