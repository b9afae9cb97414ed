from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.core.world import World, make_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = make_world(tmp_path)
    with world.server:
        yield world
