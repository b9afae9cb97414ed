"""What the tests of supervised mounts have in common: a tree, the processes of a mount, code that does not start."""

import contextlib
import random
from pathlib import Path

from tests.e2e.host import ROOT, Host, Store, run

SMALL = {f"d{number % 7}/f{number}": random.Random(number).randbytes(number * 37 % 9000) for number in range(300)}
LARGE = random.Random(0).randbytes(9 << 20)


def fill(store: Store, tree: Path) -> None:
    """Publish small files, a large one and a program."""
    for name, data in SMALL.items():
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_bytes(data)
    (tree / "large").write_bytes(LARGE)
    (tree / "run").write_text("#!/bin/sh\necho ran\n")
    (tree / "run").chmod(0o755)
    store.publish(tree)


def workers(supervisor: int) -> list[int]:
    """The processes that the templates of a supervisor have forked."""
    return [worker for template in children(supervisor) for worker in children(template)]


def supervisor_of(host: Host, mount: Path) -> int:
    pid: int = host.status(mount)["pid"]
    return pid


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def copy_code(host: Host, tmp_path: Path) -> Path:
    """A copy of the code, which the commands of `host` use from now on; it can be broken. Not below a directory that
    has the code itself, or Python finds that first."""
    copy = tmp_path / "code"
    copy.mkdir()
    run("cp", "-r", ROOT / "cvfs", copy)
    host.environment["PYTHONPATH"] = str(copy)
    return copy


_READY = "    orders = Orders(connection)\n"


def break_start(code: Path, slot: int, how: str = "raise RuntimeError('broken')") -> None:
    """Have the worker of `slot` not start with this code, or do something else first."""
    worker = code / "cvfs/mount/channel_worker.py"
    whole = worker.read_text()
    assert _READY in whole
    worker.write_text(whole.replace(_READY, f"{_READY}    if orders.slot == {slot}: {how}\n"))
