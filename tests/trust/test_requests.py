"""What trust costs: requests, round trips, and what is imported."""

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cvfs.errors import ExpiredError
from cvfs.format.documents import encode_ref
from cvfs.trust import names
from cvfs.trust.anchor import find_anchor
from cvfs.trust.chain import follow
from cvfs.trust.targets import read_ahead
from cvfs.trust.values import Bundle
from tests.trust.simulator import DAY_S, NOW_S, World, resign_with


def say(what: str, world: World) -> None:
    print(f"{what}: {len(world.simulator.requests)} requests, {world.simulator.depth} round trips")


def test_first_meeting_takes_six_requests_and_two_round_trips(new_world: World) -> None:
    """The least there can be while nothing is known but a root: what to ask for second stands in the timestamp."""
    assert new_world.refresh().manifest.revision == 1
    say("first meeting", new_world)
    asked = new_world.simulator.requests
    assert sorted(asked[:2]) == [names.metadata_path("root", 2), names.TIMESTAMP]
    assert {names.metadata_path("snapshot", 2), names.metadata_path("targets", 2)} < set(asked[2:])
    assert [path.split("/")[0] for path in sorted(asked[2:])] == ["data", "data", "metadata", "metadata"]
    assert new_world.simulator.depth == 2


def test_first_meeting_by_the_hash_of_the_root_takes_one_more(new_world: World) -> None:
    new_world.refresh(anchor=find_anchor("", (), sha256=new_world.anchor().sha256))
    say("first meeting by --root-sha256", new_world)
    assert (len(new_world.simulator.requests), new_world.simulator.depth) == (7, 3)


def test_without_a_hint_it_takes_five_round_trips(new_world: World) -> None:
    def forget_hint(timestamp: Any) -> None:
        del timestamp.unrecognized_fields[names.AHEAD_FIELD]

    signers = new_world.publisher.steal("timestamp").values()
    resign_with(new_world.files, names.TIMESTAMP, forget_hint, *signers)
    assert new_world.refresh().manifest.revision == 1
    say("first meeting, a timestamp without x-cvfs-ahead", new_world)
    assert (len(new_world.simulator.requests), new_world.simulator.depth) == (6, 5)


@pytest.mark.parametrize("data", [b"", b"wrong bytes", None])
def test_what_comes_early_and_is_wrong_is_asked_for_again(new_world: World, data: bytes | None) -> None:
    """It may be the fault of whoever carried it; it is not looked at before it is known to be right."""
    blobs = {path for path in new_world.files if path.startswith("data/")}
    seen: set[str] = set()

    def once(path: str, right: bytes | None) -> bytes | None:
        if path in blobs and path not in seen:
            seen.add(path)
            return data
        return right

    new_world.simulator.serve(new_world.URL, new_world.files, once)
    found = new_world.refresh()
    assert (found.problem, found.manifest.revision) == ("", 1)
    assert len(new_world.simulator.requests) == 8


def test_a_hint_that_lies_costs_requests_and_nothing_else(world: World) -> None:
    """Whoever has the timestamp key chooses what is asked for, not what is believed."""
    signers = world.publisher.steal("timestamp").values()
    old = read_ahead(world.files[names.TIMESTAMP])
    world.publisher.publish()
    assert old is not None

    def lie(timestamp: Any) -> None:
        hint = timestamp.unrecognized_fields[names.AHEAD_FIELD]
        hint["manifest"], hint["root"] = encode_ref(old.manifest), encode_ref(old.root)
        hint["targets"] = 10**6

    resign_with(world.files, names.TIMESTAMP, lie, *signers)
    found = world.refresh()
    assert (found.problem, found.manifest.revision) == ("", 2)


@pytest.mark.parametrize(
    "hint", [None, 7, [], {}, {"targets": -1}, {"targets": 1, "manifest": None, "root": None}, {"targets": "1" * 900}]
)
def test_a_hint_of_nonsense_is_none(world: World, hint: object) -> None:
    signers = world.publisher.steal("timestamp").values()
    world.publisher.publish()

    def write(timestamp: Any) -> None:
        timestamp.unrecognized_fields[names.AHEAD_FIELD] = hint

    resign_with(world.files, names.TIMESTAMP, write, *signers)
    assert world.refresh().problem == ""


def test_a_question_without_news_is_one_conditional_request(world: World) -> None:
    world.simulator.reset()
    assert world.refresh().problem == ""
    # The root page is asked for by the test's client, which has no cache.
    assert world.simulator.requests[0] == names.TIMESTAMP
    assert [path for path in world.simulator.requests if not path.startswith("data/")] == [names.TIMESTAMP]
    assert world.simulator.not_modified == 1
    say("refresh without news, and the root page of a client without cache", world)


def test_a_timestamp_signed_again_is_two_requests(world: World) -> None:
    world.publisher.resign()
    world.simulator.reset()
    assert world.refresh().problem == ""
    assert [path for path in world.simulator.requests if not path.startswith("data/")] == [
        names.TIMESTAMP,
        names.metadata_path("root", 2),
    ]


def test_a_new_revision_is_six_requests_and_two_round_trips(world: World) -> None:
    world.publisher.publish()
    world.simulator.reset()
    assert world.refresh().manifest.revision == 2
    say("refresh with a new revision", world)
    assert (len(world.simulator.requests), world.simulator.depth) == (6, 2)


def test_the_time_is_the_callers(world: World) -> None:
    """python-tuf would take its own: this fails if the attribute that is set no longer counts."""
    known = Bundle(world.first_root)
    expires = datetime(2027, 1, 22, 8, 0, 1, tzinfo=UTC).timestamp()
    assert expires == NOW_S + 1 + 7 * DAY_S
    assert follow(known, world.publisher.store.get_metadata, expires - 1).expires_s == expires
    with pytest.raises(ExpiredError):
        follow(known, world.publisher.store.get_metadata, expires + 1)


def _printed_by(code: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    return subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)


def test_nothing_of_tuf_is_imported_where_there_is_no_news() -> None:
    code = (
        "import sys, cvfs.heads, cvfs.mount.client; print([m for m in ('tuf', 'securesystemslib') if m in sys.modules])"
    )
    assert _printed_by(code) == "[]\n"


_IMPORTED = "import sys, cvfs.trust.chain; print([m for m in ('urllib3', 'http.client', 'ssl') if m in sys.modules])"


def test_nothing_of_tufs_own_network_is_imported() -> None:
    assert _printed_by(_IMPORTED) == "[]\n"


def test_a_tuf_that_wants_more_of_its_network_gets_it() -> None:
    """As if the stand-in lacked a name."""
    code = f"""
import types, tuf.api.metadata
class Empty:
    __dict__ = property(lambda self: {{}})
    def __init__(self, name): pass
types.ModuleType = Empty
{_IMPORTED}
"""
    assert _printed_by(code) == "['urllib3', 'http.client', 'ssl']\n"
