"""Trees that Hypothesis makes: published, mounted, compared; changed, published again, compared again."""

import itertools
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.e2e.host import Host, Store
from tests.e2e.trees import Thing, make, remove_some, trees
from tests.e2e.zoo import look

_numbers = itertools.count()


@settings(
    max_examples=3,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(first=trees, changes=trees, every=st.integers(2, 7))
def test_random_trees(
    zoo_host: Host, tmp_path_factory: pytest.TempPathFactory, first: list[Thing], changes: list[Thing], every: int
) -> None:
    top = zoo_host.top / f"random{next(_numbers)}"
    tree = top / "tree"
    tree.mkdir(parents=True)
    store = Store(top / "store")
    mount = zoo_host.new_directory()
    try:
        make(tree, first)
        _publish_and_compare(zoo_host, store, tree, mount)
        remove_some(tree, every)
        make(tree, changes)
        _publish_and_compare(zoo_host, store, tree, mount)
        assert not store.publish(tree)["published"]
    finally:
        shutil.rmtree(top)


def _publish_and_compare(host: Host, store: Store, tree: Path, mount: Path) -> None:
    store.publish(tree)
    host.mount(store.path, on=mount)
    try:
        wanted, got = look(tree), look(mount)
    finally:
        host.umount(mount)
    assert got.facts.keys() == wanted.facts.keys()
    assert {path: (got.facts[path], facts) for path, facts in wanted.facts.items() if got.facts[path] != facts} == {}
    assert got.links == wanted.links
