"""Settings for every test: Hypothesis profiles, a quiet environment, and no mount left behind."""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No deadline: the machine may be shared. HYPOTHESIS_PROFILE=thorough searches much longer than a commit should wait.
_SLOW_IS_FINE = [HealthCheck.too_slow]
settings.register_profile("default", deadline=None, print_blob=True, suppress_health_check=_SLOW_IS_FINE)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

_CLONE_NEWNS = 0x00020000


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="an hour of soak, a minute of kills, a thousand switches")


@pytest.fixture(scope="session", autouse=True)
def _same_environment_everywhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The usual umask and signals, no proxy between a test and its servers on loopback, no cache but the tests' own."""
    umask = os.umask(0o022)
    # What a shell starts in the background ignores it, and so would every command that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            patch.delenv(name)
        for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        patch.setenv("CVFS_CONFIG", os.environ["XDG_CONFIG_HOME"] + "/cvfs")  # nothing of this host
        # As where it is installed. Without bytecode each of a thousand commands would compile the whole program.
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield
    os.umask(umask)


@pytest.fixture(scope="session", autouse=True)
def _no_mount_of_others() -> None:
    """What this host, or a test in another process, has mounted is out of sight: `cvfs status` and `cvfs doctor` judge
    a whole host. In a mount namespace of our own, which takes root; what is mounted elsewhere meanwhile stays away."""
    if os.geteuid() != 0 or ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS):
        return
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    for mount_point in _mount_points(kind="fuse"):
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run(["umount", "--lazy", mount_point], check=True, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="session", autouse=True)
def _no_mount_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever a failed test left mounted is detached at the end, and counts as an error."""
    yield
    left = _mounts_below(tmp_path_factory.getbasetemp())
    for mount_point in left:
        subprocess.run(["umount", "--lazy", mount_point], check=False)
    assert not left, f"left mounted: {left}"


def _mounts_below(top: Path) -> list[str]:
    return [point for point in _mount_points() if point.startswith(f"{top}/")]


def _mount_points(kind: str = "") -> list[str]:
    """Those of file systems whose type begins with `kind`, deepest first. Blanks and backslashes are in octal."""
    lines = (line.partition(b" - ") for line in Path("/proc/self/mountinfo").read_bytes().splitlines())
    points = [before.split(b" ")[4] for before, _, after in lines if after.startswith(kind.encode())]
    plain = [re.sub(rb"\\(\d{3})", lambda octal: bytes([int(octal[1], 8)]), point) for point in points]
    return sorted(map(os.fsdecode, plain), reverse=True)
