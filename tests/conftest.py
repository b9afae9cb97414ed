"""Settings for every test: Hypothesis profiles, a quiet environment, and no mount left behind."""

import os
import re
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


@pytest.fixture(scope="session", autouse=True)
def _same_environment_everywhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The usual umask, no proxy between a test and its servers on loopback, no cache but the tests' own."""
    umask = os.umask(0o022)
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
def _no_mount_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever a failed test left mounted is detached at the end, and counts as an error."""
    yield
    left = _mounts_below(tmp_path_factory.getbasetemp())
    for mount_point in left:
        subprocess.run(["umount", "--lazy", mount_point], check=False)
    assert not left, f"left mounted: {left}"


def _mounts_below(top: Path) -> list[str]:
    """The mount points below `top`, deepest first. /proc/self/mountinfo escapes blanks and backslashes in octal."""
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    points = [re.sub(rb"\\(\d{3})", lambda octal: bytes([int(octal[1], 8)]), line.split(b" ")[4]) for line in lines]
    return sorted((os.fsdecode(point) for point in points if point.startswith(os.fsencode(top) + b"/")), reverse=True)
