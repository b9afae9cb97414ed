"""A client in a process of its own: reader.py [--wait] URL MANIFEST CACHE PATH...

With --wait it says "ready" once it is open, and begins when a line comes. In the end it says, as one JSON object,
what each path had (BLAKE3, or the name of an error) and its counters.
"""

import json
import os
import sys
import time
from pathlib import Path

import trio
from msgspec.structs import asdict

from cvfs.errors import CvfsError
from cvfs.format.blob import digest
from tests.core.world import Client, manifest_at, opened


async def main(url: str, manifest: str, cache: str, paths: list[str], *, wait: bool) -> None:
    async with opened(url, manifest_at(Path(manifest)), Path(cache)) as client:
        if wait:
            print("ready", flush=True)
            sys.stdin.readline()
        answers = {path: await _answer(client, path) for path in paths}
        print(json.dumps({"answers": answers, "counters": asdict(client.fetcher.counters), "rss_kib": _rss_kib()}))


async def _answer(client: Client, path: str) -> str:
    start = time.monotonic()
    try:
        data = await client.read(os.fsencode(path))
    except CvfsError as error:
        return f"{type(error).__name__} {time.monotonic() - start:.1f}"
    return digest(data).hex()


def _rss_kib() -> int:
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.split("VmHWM:")[1].split()[0])


if __name__ == "__main__":
    arguments = sys.argv[1:]
    wait = arguments[0] == "--wait"
    url, manifest, cache, *paths = arguments[wait:]
    trio.run(lambda: main(url, manifest, cache, paths, wait=wait))
