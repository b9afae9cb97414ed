"""Fixtures of the end-to-end tests: every engine there is, real servers, real mounts, nothing left behind."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvfs.config.settings import ENGINES
from tests import kernel_caches
from tests.e2e.host import Host, Server, Store
from tests.e2e.zoo import Zoo, make_zoo


@pytest.fixture(scope="module", params=[name for name in ENGINES if name != "auto"])
def engine(request: pytest.FixtureRequest) -> str:
    """What speaks to the kernel; each test of a mount is run with each."""
    name: str = request.param
    return name


@pytest.fixture
def host(engine: str, tmp_path: Path) -> Iterator[Host]:
    """A host of the test's own, with an empty cache."""
    host = Host(tmp_path / "host", engine)
    host.top.mkdir()
    yield host
    host.close()


@pytest.fixture
def auto_host(tmp_path: Path) -> Iterator[Host]:
    """As `host`, for what is the same whatever the engine: run once, with the default one."""
    host = Host(tmp_path / "host", "auto")
    host.top.mkdir()
    yield host
    host.close()


@pytest.fixture
def kept_kernel_caches() -> Iterator[None]:
    """For a test that counts on what the kernel has cached."""
    with kernel_caches.kept():
        yield


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    """A tree with one of everything, published once for all tests."""
    with tempfile.TemporaryDirectory(prefix="cvfs-test-", dir="/dev/shm") as tmpfs:
        yield make_zoo(tmp_path_factory.mktemp("zoo"), Path(tmpfs))


@pytest.fixture(scope="session")
def zoo_server(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(zoo.store.path, tmp_path_factory.mktemp("zoo-server")) as server:
        yield server


@pytest.fixture(scope="module")
def zoo_host(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    host = Host(tmp_path_factory.mktemp("zoo-host"), engine)
    yield host
    host.close()


@pytest.fixture(scope="module")
def mnt(zoo_host: Host, zoo_server: Server) -> Path:
    """The mounted zoo. Set-id bits and devices count in it."""
    return zoo_host.mount(zoo_server.url, "--suid", "--dev")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store of the test's own."""
    return Store(tmp_path / "store")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An empty directory to be filled and published."""
    tree = tmp_path / "tree"
    tree.mkdir()
    return tree


@pytest.fixture
def server(store: Store, tmp_path: Path) -> Iterator[Server]:
    """Serves `store`."""
    with Server(store.path, tmp_path) as server:
        yield server
