"""What trust costs: requests, round trips, and what is imported."""

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cvfs.errors import ExpiredError
from cvfs.trust import names
from cvfs.trust.chain import follow
from cvfs.trust.pin import find_pin
from cvfs.trust.values import Bundle
from tests.trust.simulator import DAY_S, NOW_S, World


def test_first_meeting_takes_six_requests_and_five_round_trips(new_world: World) -> None:
    assert new_world.refresh().manifest.revision == 1
    asked = new_world.simulator.requests
    assert sorted(asked[:2]) == [names.metadata_path("root", 2), names.TIMESTAMP]
    assert asked[2:4] == [names.metadata_path("snapshot", 2), names.metadata_path("targets", 2)]
    assert [path.split("/")[0] for path in asked[4:]] == ["data", "data"]
    assert new_world.simulator.depth == 5


def test_first_meeting_by_the_hash_of_the_root_takes_one_more(new_world: World) -> None:
    new_world.refresh(pin=find_pin("", (), sha256=new_world.pin().sha256))
    assert (len(new_world.simulator.requests), new_world.simulator.depth) == (7, 6)


def test_a_question_without_news_is_one_conditional_request(world: World) -> None:
    world.simulator.reset()
    assert world.refresh().problem == ""
    # The root page is asked for by the test's client, which has no cache.
    assert world.simulator.requests[0] == names.TIMESTAMP
    assert [path for path in world.simulator.requests if not path.startswith("data/")] == [names.TIMESTAMP]
    assert world.simulator.not_modified == 1


def test_a_timestamp_signed_again_is_two_requests(world: World) -> None:
    world.publisher.resign()
    world.simulator.reset()
    assert world.refresh().problem == ""
    assert [path for path in world.simulator.requests if not path.startswith("data/")] == [
        names.TIMESTAMP,
        names.metadata_path("root", 2),
    ]


def test_a_new_revision_is_six_requests(world: World) -> None:
    world.publisher.publish()
    world.simulator.reset()
    assert world.refresh().manifest.revision == 2
    assert len(world.simulator.requests) == 6


def test_the_time_is_the_callers(world: World) -> None:
    """python-tuf would take its own: this fails if the attribute that is set no longer counts."""
    known = Bundle(world.first_root)
    expires = datetime(2027, 1, 22, 8, 0, 1, tzinfo=UTC).timestamp()
    assert expires == NOW_S + 1 + 7 * DAY_S
    assert follow(known, world.publisher.store.get_metadata, expires - 1).expires_s == expires
    with pytest.raises(ExpiredError):
        follow(known, world.publisher.store.get_metadata, expires + 1)


def test_nothing_of_tuf_is_imported_where_there_is_no_news(tmp_path: Path) -> None:
    code = (
        "import sys, cvfs.heads, cvfs.mount.client; print([m for m in ('tuf', 'securesystemslib') if m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True) == "[]\n"
