"""Revisions by number, tag and date: found in few requests, known without a server, and never by any way but hashes."""

import errno
import os
import re
import shutil
from pathlib import Path

import pytest

from cvfs.errors import ConfigError, CvfsError, FormatError, IntegrityError, TrustError, UnreachableError
from cvfs.format.blob import blob_path
from cvfs.format.tags import decode_tags, encode_tags
from cvfs.limits import MAX_TAGS_BYTES
from cvfs.model import Ancestor
from cvfs.trust import names
from cvfs.trust.targets import find_target
from cvfs.which import Which, parse_date, split_address
from publisher.repository import head, tags
from tests.trust.simulator import DAY_S, NAME, NOW_S, World


def tags_path(world: World) -> str:
    """Where the newest tags are stored."""
    target = find_target(world.files[world.publisher.current("targets")], names.TAGS, MAX_TAGS_BYTES)
    assert target is not None
    return blob_path(target.blob.id)


def forget(world: World) -> None:
    """Let nothing be kept of earlier searches."""
    shutil.rmtree(world.state / "kept", ignore_errors=True)


def dead(path: str, data: bytes | None) -> bytes | None:
    raise UnreachableError(path, "connection refused")


def test_by_number_by_tag_and_by_date(world: World) -> None:
    made = [world.publisher.publish() for _ in range(5)]
    world.publisher.tag("third", 3)
    world.publisher.tag("newest")
    assert world.find(Which(number=2)) == made[0]
    assert world.find(Which(number=6)) == made[-1]
    assert world.find(Which(tag="third")) == made[1]
    assert world.find(Which(tag="newest")) == made[-1]
    assert world.find(Which(date_s=made[2].published_s)) == made[2]
    assert world.find(Which(date_s=made[3].published_s - 1)) == made[2]
    assert world.find(Which(date_s=2**62)) == made[-1]
    assert world.find(Which(number=0)).parent is None


def test_what_is_not_there_is_said_in_one_line_with_what_is(world: World) -> None:
    def refused(which: Which) -> str:
        with pytest.raises(ConfigError) as caught:
            world.find(which)
        return str(caught.value)

    assert refused(Which(number=2)) == f"{NAME} has no revision 2: the newest is 1"
    assert refused(Which(tag="v1")) == f"{NAME} has no tag 'v1': there are no tags"
    world.publisher.tag("v2")
    world.publisher.tag("v0", 0)
    assert refused(Which(tag="v1")) == f"{NAME} has no tag 'v1': there are v0, v2"
    for number in range(30):
        world.publisher.tag(f"t{number:02}")
    assert refused(Which(tag="v1")).endswith(", t18, t19 and 12 more")
    assert refused(Which(date_s=NOW_S - 1)) == (
        f"{NAME} has nothing of 2027-01-15T07:59:59Z or before: revision 0 is of 2027-01-15T08:00:00Z"
    )


def test_a_revision_among_a_thousand_takes_three_requests(world: World) -> None:
    newest = world.publisher.publish(count=1000)
    world.publisher.tag("middle", 517)
    assert newest.revision == 1001
    most = 0
    for number in (0, 1, 15, 16, 255, 256, 500, 512, 517, 767, 768, 999, 1000):
        forget(world)
        assert world.find(Which(number=number)).revision == number
        print(f"revision {number} of 1001: {len(world.simulator.requests)} requests")
        most = max(most, len(world.simulator.requests))
    assert most == 3
    forget(world)
    assert world.find(Which(tag="middle")).revision == 517
    assert len(world.simulator.requests) == 2
    middle = world.find(Which(number=517)).published_s
    forget(world)
    assert world.find(Which(date_s=middle)).revision == 517
    assert len(world.simulator.requests) <= 4


def test_what_was_found_is_found_again_without_a_server(world: World) -> None:
    world.publisher.publish(count=40)
    world.publisher.tag("v1", 3)
    found = [world.find(which) for which in (Which(tag="v1"), Which(number=7), Which(date_s=NOW_S + 20))]
    world.simulator.serve(world.URL, {}, dead)
    again = [world.find(which, 0.1) for which in (Which(tag="v1"), Which(number=7), Which(date_s=NOW_S + 20))]
    assert again == found
    assert not world.simulator.requests
    with pytest.raises(UnreachableError):
        world.find(Which(number=35), 0.1)


def test_what_is_kept_is_verified_and_bounded(world: World) -> None:
    world.publisher.publish(count=150)
    world.find(Which(number=3))
    kept = sorted((world.state / "kept").iterdir())
    assert kept
    for path in kept:
        path.write_bytes(path.read_bytes()[::-1])
    assert world.find(Which(number=3)).revision == 3
    for number in range(100):
        world.find(Which(number=number))
    assert len(list((world.state / "kept").iterdir())) <= 64


def test_a_place_that_cannot_be_written_is_no_obstacle(world: World) -> None:
    world.publisher.publish()
    (world.state / "kept").write_bytes(b"a file")
    assert world.find(Which(number=1)).revision == 1


def test_what_is_kept_where_nothing_can_be_written_is_used(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount of an old revision starts without a server, also from a state directory that is read-only."""
    world.publisher.publish(count=5)
    found = world.find(Which(number=2))

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "utime", refuse)
    world.simulator.serve(World.URL, world.files, dead)
    assert world.find(Which(number=2), 0.1) == found
    assert not world.simulator.requests


def test_a_tag_is_moved_only_when_that_is_said(world: World) -> None:
    world.publisher.publish()
    world.publisher.tag("stable", 1)
    world.publisher.tag("stable", 1)
    with pytest.raises(ConfigError, match="means revision 1: use --move"):
        world.publisher.tag("stable")
    world.publisher.tag("stable", move=True)
    assert world.find(Which(tag="stable")).revision == 2
    tags.delete_tag(world.publisher.store, world.publisher.keys, "stable", NOW_S)
    with pytest.raises(ConfigError, match="there are no tags"):
        world.find(Which(tag="stable"))


def test_tags_outlive_revisions_resigning_and_new_keys(world: World) -> None:
    world.publisher.tag("kept", 0)
    world.publisher.publish()
    world.publisher.resign()
    for role in ("timestamp", "snapshot", "targets", "root"):
        world.publisher.rotate(role)
    world.publisher.publish()
    assert world.refresh().problem == ""
    assert world.find(Which(tag="kept")).revision == 0


def test_who_shows_the_newest_needs_no_tags(world: World) -> None:
    world.publisher.tag("v1")
    path = tags_path(world)
    del world.files[path]
    assert world.refresh().problem == ""
    assert path not in world.simulator.requests


def test_rollback_of_the_tags(world: World) -> None:
    """The old ones in the place of the new: not what the targets name."""
    world.publisher.publish()
    world.publisher.tag("stable", 1)
    old = world.files[tags_path(world)]
    world.publisher.tag("stable", 2, move=True)
    new = tags_path(world)
    world.files[new] = old
    with pytest.raises(IntegrityError):
        world.find(Which(tag="stable"))


def test_rollback_of_the_tags_with_all_that_names_them(world: World) -> None:
    """A mirror that goes back to when the tag meant something else, every signature of then being right."""
    world.publisher.publish()
    world.publisher.tag("stable", 1)
    old = dict(world.files)
    world.publisher.tag("stable", 2, move=True)
    assert world.find(Which(tag="stable")).revision == 2
    before = world.stored()
    world.files.clear()
    world.files.update(old)
    found = world.refresh()
    assert re.search("version", found.problem)
    assert world.stored() == before
    assert world.find(Which(tag="stable")).revision == 2


def test_rollback_of_a_deleted_tag(world: World) -> None:
    world.publisher.tag("bad")
    old = dict(world.files)
    tags.delete_tag(world.publisher.store, world.publisher.keys, "bad", NOW_S)
    assert world.refresh().problem == ""
    world.files.update(old)
    with pytest.raises(ConfigError, match="has no tag 'bad'"):
        world.find(Which(tag="bad"))


def test_arbitrary_tags(world: World) -> None:
    """Signed tags that a mirror has changed."""
    world.publisher.tag("v1")
    path = tags_path(world)
    for data in (b"", b"<html>", world.files[path][:-1], bytes(len(world.files[path])), bytes(20 << 20)):
        world.files[path] = data
        with pytest.raises(CvfsError):
            world.find(Which(tag="v1"))


def test_an_old_revision_in_the_place_of_another(world: World) -> None:
    world.publisher.publish(count=3)
    wanted = head.read_head(world.publisher.store).manifest.ancestors[2]
    other = head.read_head(world.publisher.store).manifest.ancestors[1]
    world.files[blob_path(wanted.manifest.id)] = world.files[blob_path(other.manifest.id)]
    with pytest.raises(IntegrityError):
        world.find(Which(number=2))


def test_tags_that_lie(world: World) -> None:
    """Signed by who may sign them, and wrong: the publisher's fault, and never another revision than is said."""
    world.publisher.publish(count=3)
    store, keys = world.publisher.store, world.publisher.keys
    newest = head.read_head(store)
    first = newest.manifest.ancestors[1]
    for lie in (
        Ancestor(first.revision + 1, first.published_s, first.manifest),
        Ancestor(first.revision, first.published_s + 1, first.manifest),
        Ancestor(first.revision, first.published_s, newest.manifest.root),
    ):
        tags._put(store, head.read_own_head(store, keys), keys, {"v1": lie}, NOW_S)
        with pytest.raises(FormatError):
            world.find(Which(tag="v1"))


def test_tags_over_the_limit_are_refused_before_they_are_fetched(world: World) -> None:
    world.publisher.tag("v1")
    path = world.publisher.current("targets")
    data = world.files[path].replace(b'"tags.json": {', b'"tags.json": {"x": 1,')
    assert find_target(data, names.TAGS, 10_000) is not None
    with pytest.raises(TrustError, match="impossible things"):
        find_target(data, names.TAGS, 10)


def test_a_pruned_revision_is_said_to_be_gone(world: World) -> None:
    world.publisher.publish(count=3)
    gone = head.read_head(world.publisher.store).manifest.ancestors[1]
    del world.files[blob_path(gone.manifest.id)]
    with pytest.raises(ConfigError, match="revision 1 is not kept any more"):
        world.find(Which(number=1))


def test_a_pin_does_not_need_what_has_not_expired(world: World) -> None:
    """Nobody vouches for what is newest; what the tag meant when somebody did, it means."""
    world.publisher.publish()
    world.publisher.tag("v1", 1)
    assert world.find(Which(tag="v1")).revision == 1
    world.now_s += 30 * DAY_S
    assert world.find(Which(tag="v1")).revision == 1


def test_no_revision_is_published_before_its_parent(world: World) -> None:
    """Though the publisher's clock goes back, the newest by date is the newest."""
    world.publisher.now_s -= 100 * DAY_S
    assert world.publisher.publish().published_s == world.find(Which(number=1)).published_s


@pytest.mark.parametrize(
    ("text", "address", "which"),
    [
        ("http://h/r", "http://h/r", None),
        ("http://h/r@v1.0-rc+1_x", "http://h/r", Which(tag="v1.0-rc+1_x")),
        ("http://h:80@v1", "http://h:80", Which(tag="v1")),
        ("software.example.org@41", "software.example.org", Which(number=41)),
        ("/srv/s@0", "/srv/s", Which(number=0)),
        ("http://h/a@b/c", "http://h/a@b/c", None),
        ("http://h/r@v1/", "http://h/r@v1/", None),
        ("http://h/r@", "http://h/r@", None),
        ("@v1", "@v1", None),
        ("http://h/a@b@c", "http://h/a@b", Which(tag="c")),
        ("http://h/r@\u0661", "http://h/r@\u0661", None),
    ],
)
def test_addresses_with_a_revision(text: str, address: str, which: Which | None) -> None:
    assert split_address(text) == (address, which)


def test_dates() -> None:
    assert parse_date("2027-01-15T08:00:00Z") == NOW_S
    assert parse_date("2027-01-15T08:00") == NOW_S
    assert parse_date("2027-01-15T09:00:00+01:00") == NOW_S
    assert parse_date("2027-01-15") == NOW_S - 8 * 3600
    for text in ("", "yesterday", "2027-13-01"):
        with pytest.raises(ValueError, match=r"month|iso"):
            parse_date(text)


def test_what_is_too_many_tags_for_the_format_is_refused_when_signed(world: World, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="not the name of a tag"):
        world.publisher.tag("../../etc")
    with pytest.raises(FormatError, match="not digits alone"):
        world.publisher.tag("2027")
    assert decode_tags(encode_tags({})) == {}
