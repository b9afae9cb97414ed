"""A publisher, mirrors and a client, all in memory."""

from pathlib import Path

import pytest

from tests.trust.simulator import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A repository at revision 1, which a client has met."""
    world = World(tmp_path)
    world.publisher.publish()
    assert world.refresh().manifest.revision == 1
    return world


@pytest.fixture
def new_world(tmp_path: Path) -> World:
    """A repository at revision 1, which no client has met."""
    world = World(tmp_path)
    world.publisher.publish()
    return world
