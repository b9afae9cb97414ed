"""`cvfs doctor`: everything that can be in the way of a mount, put there, is found, with what to do about it."""

import email.utils
import hashlib
import json
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from cvfs.format.manifest import encode_manifest
from cvfs.trust.names import TIMESTAMP
from tests import servers
from tests.e2e.host import PYTHON, Host, Server, kill, run, wait_until
from tests.e2e.zoo import Zoo
from tests.servers import FaultyServer, refusing_port
from tests.small_store import SmallStore
from tests.trust.test_mounts import expire

Findings = dict[str, tuple[str, str]]


def _doctor(host: Host, *arguments: str | Path) -> tuple[int, Findings]:
    """The exit status; state and text by what was tested. Whatever failed says what to do.

    Mounts of other tests, which run at the same time, are left out.
    """
    outcome = host.cvfs("doctor", "--json", *arguments, check=False)
    findings = json.loads(outcome.stdout)["findings"]
    assert all(each["remedy"] for each in findings if each["state"] != "ok")
    assert outcome.returncode == any(each["state"] == "failed" for each in findings)
    own = [each for each in findings if not each["test"].startswith("mount ") or str(host.top) in each["test"]]
    status = int(any(each["state"] == "failed" for each in own))
    return status, {each["test"]: (each["state"], each["says"]) for each in own}


def test_a_healthy_host(auto_host: Host, zoo_server: Server) -> None:
    mount = auto_host.mount(zoo_server.url)
    status, found = _doctor(auto_host, mount)
    assert status == 0
    assert {"device", "mounting", "kernel", "cache", "space", "state", "runtime directory"} < set(found)
    assert found[f"mount {mount}"] == ("ok", "ok")
    assert found["repository"][0] == found["expiry"][0].replace("warning", "ok") == "ok"
    assert found[f"server 127.0.0.1:{zoo_server.port}"] == ("ok", "takes connections")
    assert "ok       device: /dev/fuse can be opened" in auto_host.cvfs("doctor", check=False).stdout.decode()
    auto_host.umount(mount)


def test_a_mount_whose_process_died(auto_host: Host, zoo_server: Server) -> None:
    auto_host.engine = "pyfuse3"
    mount = auto_host.mount(zoo_server.url)
    kill(auto_host.status(mount)["pid"])
    status, found = _doctor(auto_host)
    assert (status, found[f"mount {mount}"][0]) == (1, "failed")
    auto_host.umount(mount)


def test_a_host_without_fuse(auto_host: Host) -> None:
    script = 'mount -t tmpfs none /dev && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", *PYTHON, "-m", "cvfs", "doctor"]
    told = run(*command, check=False, env=auto_host.environment).stdout.decode()
    assert "failed   device: cannot open /dev/fuse: No such file or directory" in told
    assert "-> load the module (modprobe fuse)" in told


def test_directories_that_cannot_be_used(auto_host: Host) -> None:
    auto_host.cache.mkdir(mode=0o777)
    auto_host.cache.chmod(0o777)
    (auto_host.top / "run").mkdir()
    (auto_host.top / "run").chmod(0o777)
    (auto_host.top / "state").touch()
    status, found = _doctor(auto_host)
    assert status == 1
    assert {name for name, (state, _) in found.items() if state == "failed"} == {"cache", "runtime directory", "state"}


def test_servers_names_proxies_and_keys(auto_host: Host, zoo_server: Server) -> None:
    auto_host.environment["CVFS_START_DEADLINE_S"] = "1"
    with refusing_port() as port:
        dead = f"127.0.0.1:{port}"
        cases = (
            (("http://no-such-host.invalid",), "name no-such-host.invalid", ""),
            ((f"http://{dead}",), f"server {dead}", "refused"),
            ((zoo_server.url, "--proxies", f"http://{dead}"), f"proxy {dead}", "refused"),
            ((zoo_server.url.replace("http:", "https:"),), f"TLS 127.0.0.1:{zoo_server.port}", ""),
            ((zoo_server.url, "--root-sha256", "0" * 64), "repository", "root"),
        )
        for arguments, test, said in cases:
            status, found = _doctor(auto_host, *arguments)
            assert (status, found[test][0]) == (1, "failed"), arguments
            assert said in found[test][1]


def test_what_is_trusted_stays_what_it_was(auto_host: Host, tmp_path: Path) -> None:
    """The server has other keys than before: a diagnosis must not be what makes this host believe them."""
    known, other = (_small_store(tmp_path / name) for name in ("known", "other"))
    known.publish({b"known": b"one"})
    for content in (b"two", b"three"):
        other.publish({b"other": content})
    del auto_host.environment["CVFS_ROOT"]
    with FaultyServer(known.path) as server:
        assert auto_host.cvfs("ls", "--root", known.root, server.url).stdout == b"known\n"
        server.directory = other.path
        sha256 = hashlib.sha256(other.root.read_bytes()).hexdigest()
        before = _contents(auto_host.top / "state")
        for which in ((), ("--revision", "1")):
            assert _doctor(auto_host, "--root-sha256", sha256, *which, server.url)[0] == 0
        assert _contents(auto_host.top / "state") == before
        assert auto_host.cvfs("ls", server.url).stdout == b"known\n"


def _small_store(top: Path) -> SmallStore:
    top.mkdir()
    return SmallStore(top / "store")


def _contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_addresses_that_are_none(auto_host: Host) -> None:
    for wrong in ("http://h:99999", f"http://{'x' * 70}.example.org", "http://a..b"):
        status, found = _doctor(auto_host, wrong)
        assert (status, {name for name, (state, _) in found.items() if state == "failed"}) == (1, {"address"}), wrong


def test_the_proxy_of_the_environment_is_the_way(auto_host: Host, zoo: Zoo) -> None:
    """Where nothing else leads out, the servers' names are not even known."""
    with FaultyServer(zoo.store.path) as proxy:
        auto_host.environment |= {"http_proxy": f"127.0.0.1:{proxy.port}", "no_proxy": ""}
        status, found = _doctor(auto_host, "http://mirror.invalid")
        assert status == 0, found
        assert found[f"proxy 127.0.0.1:{proxy.port}"] == ("ok", "takes connections")
        assert not [name for name in found if "mirror.invalid" in name]
        assert found["repository"][0] == "ok"
    auto_host.environment["CVFS_START_DEADLINE_S"] = "1"
    status, found = _doctor(auto_host, "http://mirror.invalid")
    assert (status, found[f"proxy 127.0.0.1:{proxy.port}"][0]) == (1, "failed")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_does_not_know_this_client(auto_host: Host, zoo: Zoo, tmp_path: Path, scheme: str) -> None:
    """Also where the repository can be had without it, or by what is known already."""
    auto_host.environment["CVFS_START_DEADLINE_S"] = "1"
    with FaultyServer(zoo.store.path) as proxy:

        def ask_who(exchange: servers.Exchange) -> None:
            if "proxy-authorization" in exchange.headers:
                servers.behave(exchange)
            else:
                exchange.answer("407 Proxy Authentication Required")

        proxy.misbehave(ask_who)
        way = (f"{scheme}://mirror.invalid", "--proxies", proxy.url)
        status, found = _doctor(auto_host, *way)
        state, says = found[f"proxy 127.0.0.1:{proxy.port}"]
        assert (status, state, says.partition(":")[0]) == (1, "failed", "refuses this client")
        assert "407" in says
        known = tmp_path / "credentials.toml"
        known.write_text(f'["{proxy.url}"]\nuser = "node"\npassword = "word"\n')
        known.chmod(0o600)
        found = _doctor(auto_host, *way, "--credentials", known)[1]
        assert found[f"proxy 127.0.0.1:{proxy.port}"] == ("ok", "takes connections")
        assert (scheme == "https") or (found["repository"][0] == "ok")


@pytest.mark.parametrize("by_proxy", [False, True])
def test_a_clock_that_is_not_that_of_the_server(auto_host: Host, zoo: Zoo, by_proxy: bool) -> None:
    with FaultyServer(zoo.store.path) as server:
        host = "mirror.invalid" if by_proxy else f"127.0.0.1:{server.port}"
        auto_host.environment |= {"http_proxy": server.url if by_proxy else "", "no_proxy": ""}
        asked = f"http://{host}/{TIMESTAMP}" if by_proxy else f"/{TIMESTAMP}"
        for ahead_s, age_s, state, said in (
            (0, 0, "ok", "as late"),
            (7200, 0, "warning", "ahead of"),
            (-7200, 0, "warning", "behind"),
            (7200, 7200, "ok", "as late"),
        ):
            date = email.utils.formatdate(time.time() - ahead_s, usegmt=True)
            answer = servers.status("200 OK", extra=f"Date: {date}\r\nAge: {age_s}\r\n")
            server.misbehave(answer, asked, times=1)
            status, found = _doctor(auto_host, f"http://{host}")
            assert (status, found[f"clock by 127.0.0.1:{server.port}"][0]) == (0, state)
            assert said in found[f"clock by 127.0.0.1:{server.port}"][1]


def test_a_configuration_that_is_wrong(auto_host: Host, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("cash = '/x'\n")
    auto_host.environment["CVFS_CONFIG"] = str(tmp_path)
    status, found = _doctor(auto_host)
    assert status == 1
    assert "config.toml" in found["configuration"][1]


def test_what_has_expired_and_a_clock_that_is_behind(auto_host: Host, tmp_path: Path) -> None:
    store = SmallStore(tmp_path / "store")
    manifest = store.publish({b"file": b"content"})
    auto_host.environment["CVFS_ROOT"] = str(store.root)
    assert _doctor(auto_host, store.path)[0] == 0
    later = encode_manifest(replace(manifest, revision=2, published_s=int(time.time()) + 3600))
    store.revision = 2
    store.sign(store.put(later), later)
    status, found = _doctor(auto_host, store.path)
    assert (status, found["clock"][0]) == (1, "failed")
    expire(store, 3)
    # As the newest that is known, or if it has not been seen in time, as what is not accepted any more.
    wait_until(
        lambda: "expired" in str([each for each in _doctor(auto_host, store.path)[1].values() if each[0] == "failed"])
    )
