"""Sessions recorded from a real kernel: every request is understood, and the same answers are the same bytes."""

from collections import Counter

import pytest

from cvfs.fuse.protocol import codes, requests
from cvfs.fuse.protocol.codes import Opcode
from tests.fuse import kernel_side as kernel
from tests.fuse.record_session import sent_notices
from tests.fuse.session_file import NOTICE, REPLY, REQUEST, load
from tests.fuse.static_tree import StaticTree

SESSIONS = {"in_full": False, "zero_message": True}


@pytest.mark.parametrize(("name", "zero_message"), SESSIONS.items())
def test_replay(name: str, zero_message: bool) -> None:
    tree = StaticTree(zero_message=zero_message)
    expected = None
    for kind, data in load(name):
        assert kind == REPLY or expected is None
        if kind == REQUEST:
            expected = tree.answer(data)
        elif kind == REPLY:
            assert data == expected
            expected = None
    assert tree.session is not None
    assert tree.session.has_resend


@pytest.mark.parametrize("name", SESSIONS)
def test_every_recorded_notice_is_made_today_as_it_was_then(name: str) -> None:
    recorded = [data for kind, data in load(name) if kind == NOTICE]
    assert set(recorded) <= set(sent_notices())
    codes_seen = {int.from_bytes(data[4:8], "little") for data in recorded}
    assert codes_seen == {
        codes.Notice.INVAL_ENTRY,
        codes.Notice.INVAL_INODE,
        codes.Notice.INC_EPOCH,
        codes.Notice.RESEND,
    }


@pytest.mark.parametrize("name", SESSIONS)
def test_every_recorded_reply_is_read_back(name: str) -> None:
    for kind, data in load(name):
        if kind == REPLY:
            kernel.reply(data)


def test_the_sessions_have_what_a_read_only_file_system_meets() -> None:
    seen = Counter(
        requests.decode_request(data).opcode for name in SESSIONS for kind, data in load(name) if kind == REQUEST
    )
    never_sent = {Opcode.ACCESS, Opcode.READDIR, Opcode.DESTROY}
    assert set(requests.DECODERS) - never_sent | {Opcode.INIT} == set(seen)


def test_zero_message_sessions_open_with_no_message_but_the_first() -> None:
    seen = Counter(requests.decode_request(data).opcode for kind, data in load("zero_message") if kind == REQUEST)
    assert [seen[opcode] for opcode in (Opcode.OPEN, Opcode.OPENDIR, Opcode.FLUSH, Opcode.STATX)] == [1, 1, 1, 1]
    assert seen[Opcode.RELEASE] == seen[Opcode.RELEASEDIR] == 0
