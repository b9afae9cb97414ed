"""What `cvfs status` shows people, on wide and on narrow terminals."""

import pytest

from cvfs.cli.status_command import _COLUMNS, _cache_use, _hit_ratio, _rows, _span
from tests.e2e.host import NAME, Host, Server


def test_the_table_is_as_wide_as_the_terminal(auto_host: Host, zoo_server: Server) -> None:
    mount = auto_host.mount(zoo_server.url)
    (mount / "xattrs/bare").read_bytes()
    shown = {}
    for columns in (1000, 80):
        auto_host.environment["COLUMNS"] = str(columns)
        lines = auto_host.cvfs("status", check=False).stdout.decode().splitlines()
        shown[columns] = [lines[0], *(line for line in lines if str(mount) in line)]
    wide, narrow = shown.values()
    assert wide[0].split() == list(_COLUMNS)
    assert {"ok", NAME, zoo_server.url} < set(wide[1].split())
    assert narrow[1] == str(mount)
    auto_host.umount(mount)


def test_a_mount_of_all_names_the_mirrors_of_each_repository_only() -> None:
    member = {"name": "a", "state": "ok", "network": {"mirror": "http://a"}}
    whole = {
        "mountpoint": "/m",
        "state": "ok",
        "url": "cvfs",
        "repositories": [member, {"name": "b", "state": "unused"}],
    }
    at = _COLUMNS.index("MIRROR")
    assert [(row[0], row[at]) for row in _rows(whole)] == [("/m", ""), ("/m/a", "http://a")]


@pytest.mark.parametrize(
    ("span_s", "said"), [(3, "3 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (-3 * 86400, "-3 d")]
)
def test_spans(span_s: float, said: str) -> None:
    assert _span(span_s) == said


def test_ratios_of_nothing_are_not_shown() -> None:
    assert (_hit_ratio({}), _hit_ratio({"hits": 0, "misses": 0}), _hit_ratio({"hits": 3, "misses": 1})) == (
        "",
        "",
        "75%",
    )
    assert (_cache_use({}), _cache_use({"used_bytes": None, "limit_bytes": 5})) == ("", "")
    assert _cache_use({"used_bytes": 1 << 20, "limit_bytes": 4 << 20}) == "25% of 4.0 MiB"
