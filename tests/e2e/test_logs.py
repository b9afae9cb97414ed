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

    def say(at_s: float, line: int, what: str = "failed") -> str | None:
        record = logging.LogRecord("x", logging.ERROR, "file", line, what, (), None)
        record.created = at_s
        admitted = moderation.admit(record)
        return admitted.getMessage() if admitted else None

    several = [f"failed {number}" for number in range(25)]
    assert [say(100.0, 1, what) for what in several] == several[:20] + [None] * 5
    assert say(101.0, 2) == "failed"
    assert say(160.0, 1) == "failed (and 5 like it that were not logged)"
    assert say(161.0, 1) == "failed"


def test_what_is_tried_again_and_again_hides_no_other_failure() -> None:
    moderation = Moderation()

    def say(at_s: float, what: str) -> str | None:
        record = logging.LogRecord("x", logging.ERROR, "file", 1, what, (), None)
        record.created = at_s
        admitted = moderation.admit(record)
        return admitted.getMessage() if admitted else None

    assert [say(100.0, "one") for _ in range(30)] == ["one"] * 5 + [None] * 25
    assert say(101.0, "two") == "two"
    assert say(102.0, "one") == "one"
    assert say(161.0, "three") == "three (and 25 like it that were not logged)"
