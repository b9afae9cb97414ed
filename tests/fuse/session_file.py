"""Recorded sessions: what went through /dev/fuse, in order; zstd over MessagePack."""

from pathlib import Path

import msgspec
import zstandard

DATA = Path(__file__).parent / "data"
REQUEST, REPLY, NOTICE = 0, 1, 2
Message = tuple[int, bytes]
"""(which of the three, the bytes): of a reply and a notice those that the kernel accepted."""


def save(name: str, messages: list[Message]) -> None:
    DATA.mkdir(exist_ok=True)
    (DATA / f"{name}.session").write_bytes(zstandard.compress(msgspec.msgpack.encode(messages), 19))


def load(name: str) -> list[Message]:
    return msgspec.msgpack.decode(zstandard.decompress((DATA / f"{name}.session").read_bytes()), type=list[Message])
