"""Metrics, as Prometheus finds them: on real mounts, read by curl and by Prometheus' own parser."""

import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families

from cvfs.mount.exporter import export
from cvfs.mount.metrics import MAX_REPOSITORIES, NAMES, exposition
from cvfs.mount.runtime import Runtime
from tests.e2e.host import ROOT, Host, Server, kill, run, wait_until
from tests.e2e.supervised import supervisor_of, workers

Samples = dict[tuple[str, ...], float]


def _parsed(text: str) -> dict[str, Samples]:
    """Values by the values of labels, by name."""
    found: dict[str, Samples] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def _scrape(path: Path) -> dict[str, Samples]:
    return _parsed(run("curl", "-sSf", "--unix-socket", path, "http://localhost/metrics").stdout.decode())


@pytest.fixture
def mounted(host: Host, zoo_server: Server) -> Iterator[tuple[Host, Path]]:
    """A mount with two workers, where the engine has such, whose metrics are on a unix socket."""
    options = ("--workers", "2") if host.engine == "channel" else ()
    # Not a part of what is free, which changes at any moment.
    mount = host.mount(zoo_server.url, "--metrics", f"unix:{host.top}/metrics", "--cache-limit", "1GB", *options)
    wait_until((host.top / "metrics").is_socket)
    yield host, mount
    host.umount(mount)
    wait_until(lambda: not (host.top / "metrics").exists())


def test_what_curl_gets_is_what_the_status_says(mounted: tuple[Host, Path]) -> None:
    host, mount = mounted
    for number in range(8):
        assert not (mount / f"missing-{number}").exists()
    found, status = _scrape(host.top / "metrics"), host.status(mount)
    assert {name for name in found if name not in NAMES} == set()
    alone = (str(mount), status["repository"])
    assert found["cvfs_state"][str(mount), "ok"] == 1
    assert sum(value for labels, value in found["cvfs_state"].items() if labels[0] == str(mount)) == 1
    assert found["cvfs_revision"] == {alone: status["revision"]}
    assert found["cvfs_trust_expires_timestamp_seconds"] == {alone: status["trust"]["expires_s"]}
    assert found["cvfs_cache_limit_bytes"] == {alone[:1]: status["cache"]["limit_bytes"]}
    if host.engine == "channel":
        assert found["cvfs_workers"] == {alone[:1]: 2}
        # Whichever worker was asked for each.
        assert found["cvfs_requests_total"][str(mount), "LOOKUP"] >= 8


def test_a_file_and_a_port_and_who_takes_over(auto_host: Host, zoo_server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    textfile = auto_host.top / "lib" / "metrics" / "cvfs.prom"
    first, second = (auto_host.mount(zoo_server.url, "--metrics", f"textfile:{textfile}") for _ in range(2))
    third = auto_host.mount(zoo_server.url, "--metrics", address)
    wait_until(lambda: textfile.exists() and str(first) in textfile.read_text())
    assert [path.name for path in textfile.parent.iterdir()] == [textfile.name]
    modes = [path.stat().st_mode & 0o777 for path in (textfile.parents[1], textfile.parent, textfile)]
    assert modes == [0o755, 0o755, 0o644]  # node_exporter is another user
    wait_until(lambda: not run("curl", "-sf", f"http://{address}/metrics", check=False).returncode)
    text = run("curl", "-sSf", f"http://{address}/metrics").stdout.decode()
    for method, status in (("GET", b"200"), ("HEAD", b"200"), ("POST", b"405"), ("DELETE", b"405")):
        how = {"HEAD": ("--head",), "POST": ("--data", "x" * 4000)}.get(method, ("--request", method))
        said = run("curl", "-sS", *how, "-o", "/dev/null", "-w", "%{http_code}", f"http://{address}/metrics").stdout
        assert said == status, method
    shown = {mount for mount, state in _parsed(text)["cvfs_state"]}
    assert {name for name in shown if name.startswith(str(auto_host.top))} == {str(first), str(second), str(third)}
    auto_host.umount(first)
    wait_until(lambda: textfile.exists() and str(first) not in textfile.read_text())
    for mount in (second, third):
        auto_host.umount(mount)
    wait_until(lambda: not textfile.exists())


def test_what_cannot_be_used_is_said(auto_host: Host, zoo_server: Server) -> None:
    for wrong in ("8080", "unix:", "host:99999", "http://host:1/"):
        outcome = auto_host.cvfs("mount", zoo_server.url, auto_host.top, "--metrics", wrong, check=False)
        assert b"wanted unix:PATH, textfile:PATH or HOST:PORT" in outcome.stderr
    mount = auto_host.mount(zoo_server.url, "--metrics", f"unix:{auto_host.top}/no/such/socket")
    wait_until(lambda: "no metrics at" in auto_host.log())
    auto_host.umount(mount)


def test_a_runtime_directory_that_is_gone_and_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As at a logout: a worker must not end for it, or each of its successors would too."""
    runtime, address = Runtime(tmp_path / "run"), tmp_path / "metrics"

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(export, f"unix:{address}", runtime)
            await trio.testing.wait_all_tasks_blocked()
            assert "no metrics at" in caplog.text
            runtime.directory.mkdir()
            await trio.sleep(60)  # of the clock of the test
            assert address.is_socket()
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("engine", ["channel"])
def test_sums_over_workers_are_right_and_outlive_them(host: Host, zoo_server: Server) -> None:
    """Each worker answers while the other is stopped, so each has its part in the sum; then each dies."""
    mount = host.mount(zoo_server.url, "--workers", "2", "--metrics", f"unix:{host.top}/metrics")
    supervisor = supervisor_of(host, mount)
    wait_until(lambda: host.status(mount)["workers"] == 2)
    first = host.status(mount)["worker_pid"]
    (second,) = set(workers(supervisor)) - {first}
    before = host.status(mount)["requests"].get("LOOKUP", 0)
    for stopped, count in ((first, 30), (second, 12)):
        os.kill(stopped, signal.SIGSTOP)
        try:
            for number in range(count):
                assert not (mount / f"missing-{stopped}-{number}").exists()
        finally:
            os.kill(stopped, signal.SIGCONT)
    assert host.status(mount)["requests"]["LOOKUP"] - before == 42
    assert _lookups(host, mount) - before == 42
    for gone in (second, first):
        kill(gone)
        wait_until(lambda: host.status(mount).get("workers") == 2)
        assert host.status(mount)["requests"]["LOOKUP"] - before == 42
        assert _lookups(host, mount) - before == 42
    wait_until(lambda: host.status(mount).get("restarts") == 2)
    host.umount(mount)
    left = [path.name for path in (host.top / "run").iterdir()]
    assert [name for name in left if not name.startswith("metrics-")] == []  # whose lock is of no mount


def _lookups(host: Host, mount: Path) -> float:
    wait_until((host.top / "metrics").is_socket)
    return _scrape(host.top / "metrics")["cvfs_requests_total"][str(mount), "LOOKUP"]


def test_any_name_can_be_a_label() -> None:
    name = 'a"b\\c\nd\udcff'
    found = _parsed(
        exposition([{"mountpoint": name, "state": "dead"}, {"mountpoint": "/", "state": "foreign"}]).decode()
    )
    assert found["cvfs_state"]['a"b\\c\nd\\xff', "dead"] == 1


def test_names_that_somebody_makes_up_are_bounded() -> None:
    many = [{"name": f"{number}.example.org", "state": "failed"} for number in range(MAX_REPOSITORIES + 9)]
    many.append({"name": "unused.example.org", "state": "unused"})
    found = _parsed(exposition([{"mountpoint": "/cvfs", "state": "ok", "repositories": many}]).decode())
    assert len({labels[1] for labels in found["cvfs_state"] if len(labels) == 3}) == MAX_REPOSITORIES


def test_the_document_has_them_all() -> None:
    table = re.findall(r"^\| `(cvfs_\w+)", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    assert sorted(table) == sorted(NAMES)
