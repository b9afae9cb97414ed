"""Settings for every test: Hypothesis profiles, a quiet environment, and no mount left behind."""

import contextlib
import ctypes
import faulthandler
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.command import Command
from tests.mounts import OF_THIS_HOST, STATE_OF_PUBLISHER, USUAL_MOUNT, mount_points
from tests.servers import FaultyServer
from tests.small_store import SmallStore, Tree

# No deadline: the machine may be shared. HYPOTHESIS_PROFILE=thorough searches much longer than a commit should wait.
_SLOW_IS_FINE = [HealthCheck.too_slow]
settings.register_profile("default", deadline=None, print_blob=True, suppress_health_check=_SLOW_IS_FINE)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

_CLONE_NEWNS = 0x00020000

_ENOUGH_BYTES = 8 << 30
"""Of memory for what tests write: several times what they do, as they run in several processes."""

_GUARD_S = 120.0
"""So long after its own limit a test that hangs ends the process; see setup.cfg for those that have no limit of their
own."""

_STDERR = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="an hour of soak, a minute of kills, a thousand switches")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_STDERR] = os.dup(2)  # while a test runs, what is written there is captured, and lost with the process


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(config.stash[_STDERR])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with those that say they may last longer: at the end, one process would run one of them alone."""
    items.sort(key=lambda item: -own.args[0] if (own := item.get_closest_marker("timeout")) else 0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Put off the end of the process for a test that says how long it may last: an hour of soak is no hang."""
    own = item.get_closest_marker("timeout")
    if own is not None:
        guard_s = max(own.args[0] + _GUARD_S, float(item.config.getini("faulthandler_timeout")))
        faulthandler.dump_traceback_later(guard_s, file=item.config.stash[_STDERR], exit=True)


@pytest.fixture(scope="session", autouse=True)
def _same_environment_everywhere(tmp_path_factory: pytest.TempPathFactory, _in_memory: None) -> Iterator[None]:
    """The usual umask and signals, no proxy between a test and its servers on loopback, no cache but the tests' own."""
    umask = os.umask(0o022)
    # What nohup or a shell starts in the background ignores these, and so would every command that a test sends them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            patch.delenv(name)
        for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        patch.setenv("CVFS_CONFIG", str(tmp_path_factory.mktemp("cvfs_config")))  # nothing of this host
        # As where it is installed. Without bytecode each of a thousand commands would compile the whole program.
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        yield
    os.umask(umask)


@pytest.fixture(scope="session", autouse=True)
def _no_mount_of_others() -> bool:
    """What this host, or a test in another process, has mounted is out of sight: `cvfs status` and `cvfs doctor` judge
    a whole host. So is what is configured and cached on a host that uses cvfs. In a mount namespace of our own, which
    takes root; what is mounted elsewhere meanwhile stays away."""
    if os.geteuid() != 0 or ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS):
        return False
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    on_usual_directory = [path for path in mount_points() if USUAL_MOUNT in (path, *path.parents)]
    for mount_point in on_usual_directory + mount_points(kind="fuse"):
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run(["umount", "--lazy", mount_point], check=True, stderr=subprocess.DEVNULL)
    STATE_OF_PUBLISHER.mkdir(mode=0o700, exist_ok=True)
    for path in filter(Path.is_dir, OF_THIS_HOST):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", path], check=True)
    return True


@pytest.fixture(scope="session")
def _in_memory(tmp_path_factory: pytest.TempPathFactory, _no_mount_of_others: bool) -> None:
    """What tests write is in memory, where there is enough of it: a disk takes a quarter longer. It goes with this
    process; to look at what a failed test has left, set TESTS_ON_DISK=1."""
    if not _no_mount_of_others or "TESTS_ON_DISK" in os.environ or _available_bytes() < _ENOUGH_BYTES:
        return
    base, options = tmp_path_factory.getbasetemp(), f"mode=0700,size={_ENOUGH_BYTES},nr_inodes=0"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", base], check=True)
    try:
        os.setxattr(base, "user.any", b"")
        os.removexattr(base, "user.any")
    except OSError:  # before Linux 6.6
        subprocess.run(["umount", base], check=True)


def _available_bytes() -> int:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) << 10


@pytest.fixture(scope="session", autouse=True)
def _no_mount_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever a failed test left mounted is detached at the end, and counts as an error."""
    yield
    left = mount_points(tmp_path_factory.getbasetemp())
    for mount_point in left:
        subprocess.run(["umount", "--lazy", mount_point], check=False)
    assert not left, f"left mounted: {left}"


@pytest.fixture
def published() -> list[Tree]:
    """What `store` has, revision by revision. A module for which that matters has its own."""
    return [{b"hello": b"hello\n"}]


@pytest.fixture
def store(tmp_path: Path, published: list[Tree]) -> SmallStore:
    """A small store of the test's own; the command of `cvfs` finds its root."""
    store = SmallStore(tmp_path / "store")
    for tree in published:
        store.publish(tree)
    return store


@pytest.fixture
def server(store: SmallStore) -> Iterator[FaultyServer]:
    """Serves `store`, and misbehaves when it is told to."""
    with FaultyServer(store.path) as server:
        yield server


@pytest.fixture
def mnt(tmp_path: Path) -> Path:
    """An empty directory to mount on."""
    (tmp_path / "mnt").mkdir()
    return tmp_path / "mnt"


@pytest.fixture
def cvfs(tmp_path: Path) -> Iterator[Command]:
    """The command line, on a host of the test's own; what it leaves behind is an error."""
    command = Command(tmp_path)
    yield command
    leftovers = command.leftovers()
    command.clean_up()
    assert not leftovers
