"""Canonical MessagePack (docs/format.md, section 2): one legal encoding for one value."""

from typing import Any, TypeVar

import msgspec

from cvfs.errors import FormatError

T = TypeVar("T")

encode = msgspec.msgpack.Encoder().encode
"""The canonical bytes of a value: every integer, length and string in its shortest form."""


def decode(decoder: "msgspec.msgpack.Decoder[T]", data: bytes | memoryview, what: str) -> T:
    """The value, a `what`, that `data` encodes. Raises FormatError, also if it is not the canonical encoding."""
    try:
        value = decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise FormatError(f"not a {what}: {error}") from error
    if encode(value) != data:
        raise FormatError(f"not the canonical encoding of a {what}")
    return value


def decoder_of(kind: Any) -> "msgspec.msgpack.Decoder[Any]":
    return msgspec.msgpack.Decoder(kind)
