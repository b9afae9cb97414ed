"""The log of a mount: one line an event, in the form that was asked for, and not too many of them."""

import json
import logging

from cvfs.mount.logs import Moderation
from tests.e2e.host import Host, Server


def test_json(host: Host, zoo_server: Server) -> None:
    host.umount(host.mount(zoo_server.url, "--log-format", "json"))
    lines = [json.loads(line) for line in host.log().splitlines()]
    assert lines
    assert {tuple(line) for line in lines} == {("time_s", "level", "pid", "from", "message")}
    assert any(line["message"].startswith("mounted ") for line in lines)


def test_what_fails_all_the_time_is_not_a_line_each_time() -> None:
    moderation = Moderation()

    def say(at_s: float, line: int) -> str | None:
        record = logging.LogRecord("x", logging.ERROR, "file", line, "failed", (), None)
        record.created = at_s
        admitted = moderation.admit(record)
        return admitted.getMessage() if admitted else None

    assert [say(100.0, 1) for _ in range(25)] == ["failed"] * 20 + [None] * 5
    assert say(101.0, 2) == "failed"
    assert say(160.0, 1) == "failed (and 5 like it that were not logged)"
    assert say(161.0, 1) == "failed"
