"""A small internet of network namespaces: a client, nginx as mirrors and Squid as proxies, all of them real processes.

Each `Node` is a host of its own on one Ethernet, with an IPv4 and an IPv6 address; its link can be cut, or
made to swallow everything. The servers run with the samples of docs/operations.md, in mount namespaces of their own in
which /srv/cvfs, /var/spool/squid and so on are theirs. Needs root, iproute2, nftables, nginx and squid.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests import kernel_caches
from tests.command import ROOT, Command, wait_until

NEEDED = ("ip", "nft", "nsenter", "unshare", "nginx", "squid")


def sample(language: str) -> str:
    """The configuration in docs/operations.md that is marked as being of `language`, word for word."""
    text = (ROOT / "docs/operations.md").read_text()
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return str(found)


def sh(*arguments: str, check: bool = True) -> str:
    outcome = subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=30)
    assert outcome.returncode == 0 or not check, (arguments, outcome.stderr)
    return outcome.stdout


class Node:
    """A host on the lab's network."""

    def __init__(self, lab: "Lab", name: str, number: int) -> None:
        self.name, self.space = name, f"{lab.prefix}-{name}"
        self.ipv4, self.ipv6 = f"10.77.0.{number}", f"fd77::{number}"
        inner, outer = f"{name}0", f"{name}1"
        sh("ip", "netns", "add", self.space)
        sh("ip", "-n", lab.switch, "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", self.space)
        sh("ip", "-n", lab.switch, "link", "set", outer, "master", "br0", "up")
        self.device = inner
        self.ip("addr", "add", f"{self.ipv4}/24", "dev", inner)
        self.ip("addr", "add", f"{self.ipv6}/64", "dev", inner, "nodad")
        self.ip("link", "set", "lo", "up")
        self.plug_in()

    @property
    def enter(self) -> list[str]:
        """What a command has to begin with to run here."""
        return ["nsenter", f"--net=/run/netns/{self.space}"]

    def ip(self, *arguments: str) -> None:
        sh("ip", "-n", self.space, *arguments)

    def plug_in(self) -> None:
        self.ip("link", "set", self.device, "up")

    def pull_out(self) -> None:
        """The cable: everything is unreachable at once."""
        self.ip("link", "set", self.device, "down")

    def swallow(self, what: str = "") -> None:
        """From now on nothing leaves (or only what `what`, a match of nftables, does not name), and nobody says so."""
        chain = "add table inet lab; add chain inet lab out { type filter hook output priority 0; }; "
        sh(*self.enter, "nft", f"{chain} add rule inet lab out {what} drop")

    def let_through(self) -> None:
        sh(*self.enter, "nft", "delete", "table", "inet", "lab", check=False)


_LET_GO = "awk '$3 ~ /^fuse/ { print $2 }' /proc/self/mounts | xargs -r umount --lazy"
"""A copy of the mounts of a test would keep them alive after they are unmounted."""


class Service:
    """A server on a node, started by a shell script in a mount namespace of its own; `log` is what it was asked for."""

    def __init__(self, node: Node, top: Path, script: str, port: int) -> None:
        self.node, self.top, self._script, self.port = node, top, script, port
        self.log = top / "access.log"
        self.process: subprocess.Popen[bytes] | None = None
        top.mkdir(parents=True, exist_ok=True)
        top.chmod(0o755)

    def start(self) -> None:
        """Return once it takes connections."""
        command = [*self.node.enter, "unshare", "--mount", "sh", "-euc", f"{_LET_GO}; {self._script}"]
        with (self.top / "output").open("ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        wait_until(self._listens, 30)

    def stop(self) -> None:
        """Kill all of it: whoever has a connection to it sees that broken."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def requests(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.top / "output").read_text()
        probe = [*self.node.enter, "ss", "-Hltn", f"sport = :{self.port}"]
        return bool(sh(*probe))


class Lab:
    """All nodes and services; closing it leaves nothing."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.prefix = f"cvfs{os.getpid()}"
        self.switch = f"{self.prefix}-switch"
        self.nodes: dict[str, Node] = {}
        self.services: list[Service] = []
        sh("ip", "netns", "add", self.switch)
        sh("ip", "-n", self.switch, "link", "add", "br0", "type", "bridge")
        sh("ip", "-n", self.switch, "link", "set", "br0", "up")

    def node(self, name: str) -> Node:
        self.nodes[name] = Node(self, name, len(self.nodes) + 1)
        return self.nodes[name]

    def nginx(self, name: str, store: Path, node: Node | None = None, more: str = "") -> Service:
        """A mirror of `store` with the sample configuration, on a node of its own or on `node`; `more` servers."""
        top = self.top / name
        top.mkdir()
        (top / "server.conf").write_text(sample("nginx") + more)
        (top / "nginx.conf").write_text(
            f"user root; pid {top}/pid; error_log {top}/error.log; events {{}}\n"
            f"http {{ access_log {top}/access.log; include {top}/server.conf; }}\n"
        )
        script = f"mount -t tmpfs srv /srv; mkdir /srv/cvfs; mount --bind {store} /srv/cvfs; "
        script += f"exec nginx -c {top}/nginx.conf -g 'daemon off;'"
        return self._service(Service(node or self.node(name), top, script, 80))

    def squid(self, name: str) -> Service:
        """A proxy with the sample configuration."""
        top = self.top / name
        top.mkdir()
        own = f"cache_log {top}/cache.log\naccess_log stdio:{top}/access.log\nlogfile_rotate 0\n"
        (top / "squid.conf").write_text(f"{sample('squid')}\n{own}")
        script = (
            "for d in /var/spool/squid /var/log/squid /run; do mount -t tmpfs -o mode=777 own $d; done; "
            f"touch {top}/access.log {top}/cache.log; chmod 666 {top}/*.log; "
            f"squid -N -z -f {top}/squid.conf; exec squid -N -f {top}/squid.conf"
        )
        return self._service(Service(self.node(name), top, script, 3128))

    def far(self, name: str, mirror: Service, delay_ms: int) -> Service:
        """`mirror` at a distance, at an address of its own."""
        relay = Path(__file__).with_name("relay.py")
        script = f"exec {sys.executable} {relay} 80 {mirror.node.ipv4} {delay_ms}"
        return self._service(Service(self.node(name), self.top / name, script, 80))

    def _service(self, service: Service) -> Service:
        self.services.append(service)
        service.start()
        return service

    def close(self) -> None:
        for service in self.services:
            service.stop()
        for space in [*(node.space for node in self.nodes.values()), self.switch]:
            sh("ip", "netns", "del", space, check=False)


class Client(Command):
    """`cvfs` on a node of the lab."""

    def __init__(self, top: Path, node: Node) -> None:
        top.mkdir(exist_ok=True)
        super().__init__(top)
        self.node = node

    def line(self, *arguments: str | bytes | Path) -> list[str | bytes | Path]:
        return [*self.node.enter, *super().line(*arguments)]

    def mount(self, url: str, directory: Path, *options: str | Path) -> Path:
        directory.mkdir(exist_ok=True)
        outcome = self("mount", url, directory, *options)
        assert outcome.returncode == 0, outcome
        return directory

    def network(self, directory: Path) -> dict[str, Any]:
        found = self.status(directory)["network"]
        assert isinstance(found, dict)
        return found

    def reboot(self, directory: Path) -> None:
        """Everything is killed, the kernel forgets; what is on the disk stays."""
        self.kill_all(self.status(directory)["pid"])
        sh("umount", "--lazy", str(directory), check=False)
        for socket_file in self.runtime.glob("*"):
            socket_file.unlink()
        os.sync()
        kernel_caches.drop()


@contextlib.contextmanager
def lab(top: Path) -> Iterator[Lab]:
    made = Lab(top)
    try:
        yield made
    finally:
        made.close()
