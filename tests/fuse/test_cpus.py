"""Each worker's share of the CPUs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvfs.fuse.cpus import share


@pytest.mark.parametrize(
    ("cpus", "count", "shares"),
    [
        ({0, 1}, 2, [{0}, {1}]),
        ({0, 1, 2, 3}, 2, [{0, 1}, {2, 3}]),
        ({1, 4, 9}, 2, [{1}, {4, 9}]),
        ({5}, 2, [{5}, {5}]),
        ({3, 7}, 1, [{3, 7}]),
    ],
)
def test_shares(cpus: set[int], count: int, shares: list[set[int]]) -> None:
    assert [share(cpus, slot, count) for slot in range(count)] == shares


@given(st.sets(st.integers(0, 1023), min_size=1, max_size=64), st.integers(1, 16))
def test_every_cpu_is_in_one_share_and_no_share_is_empty(cpus: set[int], count: int) -> None:
    shares = [share(cpus, slot, count) for slot in range(count)]
    assert all(shares)
    assert set().union(*shares) == cpus
    if count <= len(cpus):
        assert sum(map(len, shares)) == len(cpus)
