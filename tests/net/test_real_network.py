"""Mounts over a real network: nginx as mirrors, Squid as proxies, cables that are pulled (tests/net/lab.py)."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import wait_until
from tests.net.lab import NEEDED, Client, Lab, Service, lab
from tests.servers import make_certificate
from tests.small_store import SmallStore

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse") or any(shutil.which(tool) is None for tool in NEEDED),
    reason=f"needs root, /dev/fuse, {', '.join(NEEDED)}",
)

FILES = 40
SECONDS = 12.0
"""What "within seconds" means on a busy machine: the breaker's five, and a refresh."""

AT_ONCE_S = 0.5
CONNECT = ("--connect-deadline", "1", "--known-deadline", "2")


def content(number: int) -> bytes:
    return b"%d\n" % number * 2000


class Site:
    """Two mirrors, two proxies and hosts; `new_file` is a file that no host has read."""

    def __init__(self, made: Lab, store: SmallStore, top: Path) -> None:
        self.lab, self.store, self.top = made, store, top
        self.mirrors = [made.nginx(name, store.path) for name in ("m1", "m2")]
        self.proxies = [made.squid(name) for name in ("p1", "p2")]
        self._next = 0
        self._clients = 0

    def client(self) -> Client:
        self._clients += 1
        name = f"c{self._clients}"
        top = self.top / name
        top.mkdir()
        shutil.copy(self.store.root, top / "root.json")
        return Client(top, self.lab.node(name))

    def url(self, mirror: int) -> str:
        return f"http://{self.mirrors[mirror].node.ipv4}"

    def proxy(self, number: int) -> str:
        return f"http://{self.proxies[number].node.ipv4}:3128"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="cvfs-lab-") as name:
        top = Path(name)
        top.chmod(0o755)  # squid gives its rights up
        (top / "store").mkdir()
        store = SmallStore(top / "store")
        store.publish({b"f%d" % number: content(number) for number in range(FILES)})
        with lab(top) as made:
            yield Site(made, store, top)


@pytest.fixture
def client(site: Site) -> Iterator[Client]:
    made = site.client()
    yield made
    made.node.let_through()
    made.node.plug_in()
    for mount in made.mounts():
        made.ok("umount", "--lazy", mount)
    wait_until(lambda: not made.processes(), 20)
    made.clean_up()


@pytest.fixture
def all_up(site: Site) -> Iterator[Site]:
    yield site
    for service in (*site.mirrors, *site.proxies):
        if service.process is None:
            service.start()


def read(mnt: Path, number: int) -> float:
    """Read a file, which must be right; the seconds it took."""
    started = time.monotonic()
    assert (mnt / f"f{number}").read_bytes() == content(number)
    return time.monotonic() - started


def fail(mnt: Path, number: int) -> float:
    """Read a file, which must fail; the seconds it took."""
    started = time.monotonic()
    with pytest.raises(OSError, match=r"Input/output error|timed out"):
        (mnt / f"f{number}").read_bytes()
    return time.monotonic() - started


def mirror_requests(mirror: Service, of: str = "") -> list[str]:
    return [line for line in mirror.requests() if of in line]


def test_sample_configurations_serve_many_hosts_with_one_request(site: Site) -> None:
    """One proxy, two hosts with empty caches: the mirror gives each pack once, and news are asked for by the proxy."""
    mirror, proxies = site.mirrors[0], ("--proxies", site.proxy(0))
    first, second = site.client(), site.client()
    mnt = first.mount(site.url(0), first.top / "mnt", *proxies, *CONNECT)
    for number in range(FILES):
        read(mnt, number)
    asked = len(mirror_requests(mirror, "/data/"))
    assert asked >= FILES
    assert all(line.startswith(site.proxies[0].node.ipv4) for line in mirror.requests())
    again = second.mount(site.url(0), second.top / "mnt", *proxies, *CONNECT)
    for number in range(FILES):
        read(again, number)
    assert len(mirror_requests(mirror, "/data/")) == asked
    assert sum("_HIT/200" in line for line in site.proxies[0].requests() if "/data/" in line) >= FILES
    network = second.network(again)
    assert (network["mirror"], network["proxy"]) == (site.url(0), site.proxy(0))
    for host in (first, second):
        host.ok("umount", host.top / "mnt")


def test_proxies_stand_in_for_each_other_and_nobody_goes_past_them(all_up: Site, client: Client) -> None:
    site, groups = all_up, f"{all_up.proxy(0)}|{all_up.proxy(1)}"
    mnt = client.mount(
        site.url(0), client.top / "mnt", "--proxies", groups, *CONNECT, "--deadline", "3", "--refresh", "1"
    )
    read(mnt, 0)
    used = next(proxy for proxy in site.proxies if proxy.node.ipv4 in client.network(mnt)["proxy"])
    (other,) = (proxy for proxy in site.proxies if proxy is not used)
    used.stop()
    assert read(mnt, 1) < 3
    assert other.node.ipv4 in client.network(mnt)["proxy"]
    other.stop()
    assert fail(mnt, 3) < 3 + 1
    wait_until(lambda: client.status(mnt)["state"] == "offline", SECONDS)
    assert not mirror_requests(site.mirrors[0], f"{client.node.ipv4} ")
    used.start()
    wait_until(lambda: client.status(mnt)["state"] == "ok", SECONDS)
    read(mnt, 4)


def test_direct_is_the_last_resort_where_it_is_listed(all_up: Site, client: Client) -> None:
    site = all_up
    site.proxies[0].stop()
    groups = f"{site.proxy(0)};DIRECT"
    mnt = client.mount(site.url(0), client.top / "mnt", "--proxies", groups, *CONNECT)
    assert read(mnt, 0) < 3
    network = client.network(mnt)
    assert (network["proxy"], [proxy["state"] for proxy in network["proxies"]]) == ("DIRECT", ["failing", "ok"])
    assert mirror_requests(site.mirrors[0], f"{client.node.ipv4} ")


def test_the_nearest_mirror_and_another_when_it_dies(all_up: Site, client: Client) -> None:
    site = all_up
    away = site.lab.far("far", site.mirrors[0], 150)
    mnt = client.mount(f"http://{away.node.ipv4}", client.top / "mnt", "--mirror", site.url(1), *CONNECT)
    wait_until(lambda: client.network(mnt)["mirrors"][0]["url"] == site.url(1), SECONDS)
    read(mnt, 0)
    assert client.network(mnt)["mirror"] == site.url(1)
    far = client.network(mnt)["mirrors"][1]
    assert far["latency_ms"] >= 150
    site.mirrors[1].stop()
    assert read(mnt, 1) < 4  # far is not dead
    site.mirrors[1].start()


def test_a_mirror_that_swallows_packets_costs_its_connect_deadline_once(all_up: Site, client: Client) -> None:
    site = all_up
    mnt = client.mount(site.url(0), client.top / "mnt", "--mirror", site.url(1), *CONNECT)
    read(mnt, 0)
    client.node.swallow(f"ip daddr {site.mirrors[0].node.ipv4}")
    assert read(mnt, 1) < 1 + 2
    assert max(read(mnt, number) for number in range(2, 8)) < AT_ONCE_S


def test_a_dead_ipv6_route_costs_a_quarter_of_a_second(site: Site, client: Client) -> None:
    """The host's own loopback, by a name that has an IPv6 address first, which swallows packets."""
    site.lab.nginx("dual", site.store.path, client.node)
    client.node.swallow("ip6 daddr ::1")
    started = time.monotonic()
    client.mount("http://localhost", client.top / "mnt", "--connect-deadline", "5")
    mount_s = time.monotonic() - started
    read(client.top / "mnt", 0)
    assert mount_s < 4


@pytest.mark.parametrize(("engine", "how"), [("channel", "swallowed"), ("pyfuse3", "pulled")])
def test_offline(site: Site, client: Client, engine: str, how: str) -> None:
    """What is cached works, what is not fails, soon at once; the same after a reboot; it recovers by itself."""
    options = ("--engine", engine, *CONNECT, "--deadline", "3")
    mnt = client.mount(site.url(0), client.top / "mnt", *options)
    read(mnt, 0)
    names = sorted(os.listdir(mnt))
    _cut(client, how)

    def is_down() -> bool:
        return client.network(mnt)["mirrors"][0]["state"] == "down"

    def check_cached() -> None:
        started = time.monotonic()
        read(mnt, 0)
        assert sorted(os.listdir(mnt)) == names
        assert (mnt / "f1").stat().st_size == len(content(1))
        assert os.statvfs(mnt).f_namemax == 255
        assert time.monotonic() - started < AT_ONCE_S

    check_cached()
    assert fail(mnt, 1) < 3 + 1
    wait_until(is_down, SECONDS)
    assert max(fail(mnt, number) for number in range(2, 8)) < AT_ONCE_S
    check_cached()

    client.reboot(mnt)
    client.mount(site.url(0), mnt, *options)
    check_cached()
    assert client.status(mnt)["state"] == "offline"
    wait_until(is_down, SECONDS)
    assert max(fail(mnt, number) for number in range(2, 8)) < AT_ONCE_S

    client.node.let_through()
    client.node.plug_in()
    back_s = time.monotonic()
    wait_until(lambda: client.status(mnt)["state"] == "ok", SECONDS)
    read(mnt, 9)
    print(f"{how}: ok again after {time.monotonic() - back_s:.1f} s")
    client.ok("umount", mnt)


SECURE = """
server {{
    listen 443 ssl;
    ssl_certificate {pem};
    ssl_certificate_key {pem};
    root /srv/cvfs;
    location / {{ auth_basic "nodes"; auth_basic_user_file {users}; }}
    location /away/ {{ rewrite ^/away(.*)$ http://{plain}$1 redirect; }}
    location /moved/ {{ rewrite ^/moved(.*)$ https://{plain}:8443$1 redirect; }}
}}
server {{
    listen 8443 ssl;
    ssl_certificate {pem};
    ssl_certificate_key {pem};
    root /srv/cvfs;
    location / {{ if ($http_authorization) {{ return 403; }} }}
}}
"""


def test_https_with_an_own_authority_and_credentials_also_by_a_proxy(site: Site, client: Client) -> None:
    top, number = client.top, len(site.lab.nodes) + 1
    address = f"10.77.0.{number}"
    pem, users, credentials = top / "server.pem", top / "users", top / "credentials.toml"
    pem.write_bytes(make_certificate(address))
    users.write_text("node:{PLAIN}secret\n")
    credentials.write_text(f'["https://{address}"]\nuser = "node"\npassword = "secret"\n')
    credentials.chmod(0o600)
    server = site.lab.nginx("secure", site.store.path, more=SECURE.format(pem=pem, users=users, plain=address))
    assert server.node.ipv4 == address
    url = f"https://{address}"
    assert "certificate not accepted" in client.refused("mount", url, _empty(client))
    assert "401" in client.refused("mount", url, _empty(client), "--ca", pem)
    secure = ("--ca", pem, "--credentials", credentials)
    assert "redirect" in client.refused("mount", f"{url}/away", _empty(client), *secure)
    for where, options in ((url, ()), (f"{url}/moved", ()), (url, ("--proxies", site.proxy(0)))):
        mnt = client.mount(where, _empty(client), *secure, *options)
        read(mnt, 0)
        client.ok("umount", mnt)
        shutil.rmtree(client.cache)
    assert any(f"CONNECT {address}:443" in line for line in site.proxies[0].requests())
    said = client.log() + str(server.requests())
    assert "secret" not in said


def _empty(client: Client) -> Path:
    directory = client.top / "mnt"
    directory.mkdir(exist_ok=True)
    return directory


def _cut(client: Client, how: str) -> None:
    if how == "pulled":
        client.node.pull_out()
    else:
        client.node.swallow()
