"""The control socket of a mount: one line of JSON asks, one answers."""

import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from inspect import isawaitable
from typing import Any

import trio

log = logging.getLogger(__name__)

_DEADLINE_S = 5.0
_MAX_REQUEST_BYTES = 64 << 10

Answer = dict[str, Any]
Answers = Mapping[str, Callable[[Mapping[str, Any]], Answer | Awaitable[Answer]]]
"""Command: what answers it, given all that was asked. Must not fail."""


async def serve_control(listener: trio.SocketListener, answers: Answers) -> None:
    """Answer on `listener` until cancelled. Whoever asks and says nothing is left after some seconds."""
    await trio.serve_listeners(partial(_serve_one, answers), [listener])


async def _serve_one(answers: Answers, stream: trio.SocketStream) -> None:
    with trio.move_on_after(_DEADLINE_S):
        try:
            answer = _answer(answers, await _receive_line(stream))
            if isawaitable(answer):
                answer = await answer
            await stream.send_all(json.dumps(answer).encode() + b"\n")
        except trio.BrokenResourceError:
            log.debug("whoever asked has gone")


async def _receive_line(stream: trio.SocketStream) -> bytes:
    """Up to the end of the line, of the stream, or of what is allowed."""
    line = b""
    while b"\n" not in line and len(line) < _MAX_REQUEST_BYTES:
        data = await stream.receive_some(_MAX_REQUEST_BYTES)
        if not data:
            break
        line += data
    return line


def _answer(answers: Answers, line: bytes) -> Answer | Awaitable[Answer]:
    try:
        request = json.loads(line)
        answer = answers.get(request.get("command"))
    except (ValueError, AttributeError, TypeError, RecursionError):
        return {"error": "unknown command"}
    return answer(request) if answer is not None else {"error": "unknown command"}
