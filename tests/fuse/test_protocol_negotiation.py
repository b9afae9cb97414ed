"""INIT: every length that kernels send, versions old and new, both words of flags."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvfs.errors import FormatError
from cvfs.fuse.protocol import negotiation, requests
from cvfs.fuse.protocol.codes import InitFlag
from cvfs.fuse.protocol.negotiation import READ_ONLY_FLAGS, Offer, Session, Wishes
from tests.fuse import kernel_side as kernel

ALL = sum(InitFlag) & ~InitFlag.INIT_RESERVED
OLD = ALL & 0x07FF_FFFF
NO_FLAGS = InitFlag(0)


def session(offer: Offer, wishes: Wishes | None = None) -> Session:
    agreed = negotiation.negotiate(offer, wishes or Wishes())
    assert agreed is not None
    return agreed


@pytest.mark.parametrize("size", [16, 20, 64])
def test_offer_of_linux_5_4_has_one_word(size: int) -> None:
    offer = negotiation.decode_init(kernel.init(7, 31, 131072, OLD, size))
    assert offer == Offer(7, 31, 131072, InitFlag(OLD))


@pytest.mark.parametrize("size", [20, 64, 100, 4096])
def test_offer_since_linux_5_17_has_two_words(size: int) -> None:
    assert negotiation.decode_init(kernel.init(7, 45, 131072, ALL, size)).flags == ALL


def test_second_word_counts_only_if_the_first_says_so() -> None:
    flags = (ALL & ~InitFlag.INIT_EXT) | InitFlag.HAS_RESEND
    assert negotiation.decode_init(kernel.init(7, 45, 0, flags)).flags == flags & 0xFFFF_FFFF


def test_offer_cut_short_is_refused_at_every_byte() -> None:
    data = kernel.init(7, 45, 131072, ALL)
    for size in range(60):
        with pytest.raises(FormatError):
            negotiation.decode_init(data[:size])


def test_of_a_newer_major_version_only_the_version_is_read() -> None:
    offer = negotiation.decode_init(kernel.init(8, 3, 0, ALL, 8))
    assert offer == Offer(8, 3, 0, NO_FLAGS)
    assert negotiation.negotiate(offer, Wishes()) is None
    answer = kernel.init_out(kernel.reply(negotiation.encode_our_version(2)).payload)
    assert (answer["major"], answer["minor"], answer["flags"]) == (7, 45, 0)


@pytest.mark.parametrize(("major", "minor"), [(6, 99), (7, 0), (7, 30)])
def test_too_old_a_kernel_is_refused(major: int, minor: int) -> None:
    offer = negotiation.decode_init(kernel.init(major, minor, 0, ALL))
    with pytest.raises(FormatError, match=f"FUSE {major}.{minor}, and 7.31"):
        negotiation.negotiate(offer, Wishes())


@pytest.mark.parametrize(("offered", "agreed"), [(31, 31), (44, 44), (45, 45), (46, 45), (2**32 - 1, 45)])
def test_the_lower_minor_version_is_agreed_on(offered: int, agreed: int) -> None:
    assert session(Offer(7, offered, 0, NO_FLAGS)).minor == agreed


def test_flags_are_what_both_have() -> None:
    agreed = session(Offer(7, 45, 0, InitFlag(ALL))).flags
    assert agreed == READ_ONLY_FLAGS | InitFlag.INIT_EXT
    assert session(Offer(7, 31, 0, InitFlag(OLD))).flags == READ_ONLY_FLAGS & OLD
    assert not session(Offer(7, 31, 0, InitFlag(OLD))).flags & InitFlag.INIT_EXT


def test_numbers_without_their_flag_are_0() -> None:
    wishes = Wishes(flags=NO_FLAGS, request_timeout_s=60)
    agreed = session(Offer(7, 45, 1 << 20, InitFlag(ALL)), wishes)
    assert (agreed.max_pages, agreed.request_timeout_s) == (0, 0)


@pytest.mark.parametrize(("minor", "has"), [(43, False), (44, True), (45, True)])
def test_inc_epoch_is_known_by_the_version(minor: int, has: bool) -> None:
    assert session(Offer(7, minor, 0, NO_FLAGS)).has_inc_epoch is has


@pytest.mark.parametrize("flag", [InitFlag.HAS_RESEND, NO_FLAGS])
def test_what_a_session_has_is_known_by_its_flags(flag: InitFlag) -> None:
    agreed = session(Offer(7, 45, 0, flag), Wishes())
    assert agreed.has_resend is (flag == InitFlag.HAS_RESEND)


def test_answer() -> None:
    flags = READ_ONLY_FLAGS | InitFlag.REQUEST_TIMEOUT
    wishes = Wishes(flags, 1 << 20, 64, 48, 256, 60)
    agreed = session(Offer(7, 45, 131072, InitFlag(ALL)), wishes)
    answer = kernel.init_out(kernel.reply(negotiation.encode_init(2, agreed)).payload)
    both = int(flags | InitFlag.INIT_EXT)
    assert answer == {
        "major": 7,
        "minor": 45,
        "max_readahead": 131072,
        "flags": both & 0xFFFF_FFFF,
        "flags2": both >> 32,
        "max_background": 64,
        "congestion_threshold": 48,
        "max_write": 4096,
        "time_gran": 1,
        "max_pages": 256,
        "map_alignment": 0,
        "max_stack_depth": 0,
        "request_timeout": 60,
    }


@given(st.integers(0, 9), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(0, 200))
def test_any_offer_is_answered_or_refused(major: int, minor: int, flags: int, size: int) -> None:
    try:
        data = requests.decode_request(kernel.init(major, minor, 1 << 17, flags, size)).data
        agreed = negotiation.negotiate(negotiation.decode_init(data), Wishes())
    except FormatError:
        return
    if agreed is None:
        assert major > 7
        return
    assert kernel.init_out(kernel.reply(negotiation.encode_init(2, agreed)).payload)["minor"] == min(minor, 45)


@given(st.binary(max_size=150))
def test_only_format_errors_come_of_any_bytes(data: bytes) -> None:
    try:
        negotiation.negotiate(negotiation.decode_init(data), Wishes())
    except FormatError:
        return
