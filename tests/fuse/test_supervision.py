"""What a supervisor decides by: pure, so a minute takes no time."""

import pytest

from cvfs.fuse.supervision import (
    BACKOFF_S,
    FAILURES,
    FORGOTTEN_S,
    PATIENCE_S,
    SHORT_LIFE_S,
    USELESS,
    VICTIMS,
    Life,
    Recovery,
    Vigil,
)

USEFUL = Life(SHORT_LIFE_S)
VICTIM = Life(was_killed=True)


def test_killed_workers_are_replaced_at_once_for_ever() -> None:
    recovery = Recovery(0.0)
    recovery.record_served()
    for now in range(1, 1000):
        recovery.record_loss(now, Life(0.05, has_answered=True, was_killed=True), is_down=True)
        assert (recovery.retry_at, recovery.is_hopeless) == (now, False)


def test_workers_that_are_killed_before_they_answer_anything_are_in_the_end_taken_for_victims_of_a_request() -> None:
    """Of one that takes all memory, say: its caller gets an error, rather than the host no rest."""
    recovery = Recovery(0.0)
    for number in range(1, VICTIMS + FAILURES + 1):
        recovery.record_served()
        recovery.record_loss(number, VICTIM, is_down=True)
        assert (recovery.retry_at == number) == (number <= VICTIMS)
        assert recovery.is_hopeless == (number == VICTIMS + FAILURES)


@pytest.mark.parametrize("life", [USEFUL, Life(0.05, has_answered=True, was_killed=True)])
def test_one_that_was_of_use_ends_a_row_of_victims(life: Life) -> None:
    recovery = Recovery(0.0)
    for now in range(5 * VICTIMS):
        recovery.record_loss(now, VICTIM if now % VICTIMS else life, is_down=True)
        assert recovery.retry_at == now


def test_who_ends_by_itself_right_after_its_start_is_useless_whatever_it_answered() -> None:
    recovery = Recovery(0.0)
    recovery.record_loss(1.0, Life(SHORT_LIFE_S / 2, has_answered=True), is_down=False)
    assert recovery.retry_at == 1.0 + BACKOFF_S[0]


def test_useless_workers_are_waited_for_longer_and_longer() -> None:
    recovery = Recovery(0.0)
    waits = []
    for _ in range(3000):  # a day: the wait is bounded, and so is what it is computed from
        recovery.record_loss(100.0, USELESS, is_down=True)
        waits.append(recovery.retry_at - 100.0)
    assert [round(wait, 6) for wait in waits[:4]] == [0.1, 0.2, 0.4, 0.8]
    assert waits == sorted(waits)
    assert waits[-1] == BACKOFF_S[1]


def test_those_of_another_month_do_not_count() -> None:
    """A worker that hangs now and then is no sign that none can be kept alive."""
    recovery = Recovery(0.0)
    for number in range(10):
        recovery.record_loss(number * (FORGOTTEN_S + 1), USELESS, is_down=True)
        assert recovery.retry_at == number * (FORGOTTEN_S + 1) + BACKOFF_S[0]
        assert not recovery.is_stuck
        assert not recovery.is_hopeless
    for number in range(FAILURES):
        recovery.record_loss(20_000.0 + number * FORGOTTEN_S, USELESS, is_down=True)
    assert recovery.is_stuck


def test_a_useful_worker_ends_the_backoff() -> None:
    recovery = Recovery(0.0)
    for _ in range(5):
        recovery.record_loss(1.0, USELESS, is_down=False)
    recovery.record_loss(2.0, USEFUL, is_down=True)
    assert recovery.retry_at == 2.0
    recovery.record_loss(3.0, USELESS, is_down=True)
    assert recovery.retry_at == 3.0 + BACKOFF_S[0]


def test_hope_is_given_up_after_some_useless_workers_and_comes_back_with_one_that_serves() -> None:
    recovery = Recovery(0.0)
    recovery.record_served()
    for number in range(1, FAILURES + 1):
        recovery.record_loss(number, USELESS, is_down=True)
        assert recovery.is_hopeless == (number == FAILURES)
    recovery.record_served()
    assert not recovery.is_hopeless


def test_a_reload_that_fails_is_no_reason_to_give_up_while_another_serves() -> None:
    recovery = Recovery(0.0)
    recovery.record_served()
    for number in range(3 * FAILURES):
        recovery.record_loss(number, USELESS, is_down=False)
    assert not recovery.is_hopeless


def test_nobody_waits_longer_than_patience_for_a_worker_that_does_not_come() -> None:
    recovery = Recovery(0.0)
    recovery.record_served()
    assert recovery.hopeless_at is None
    recovery.record_down(5.0)
    recovery.record_down(15.0)  # it is still the same
    assert recovery.hopeless_at == 5.0 + PATIENCE_S
    assert not recovery.look(4.9 + PATIENCE_S)
    assert recovery.look(5.0 + PATIENCE_S)
    assert not recovery.look(6.0 + PATIENCE_S)  # once is enough to say it
    assert recovery.is_hopeless


def test_workers_are_asked_while_something_is_asked_of_the_mount() -> None:
    vigil = Vigil(5.0, 10.0, None)
    assert vigil.is_resting
    assert vigil.due_at([]) is None
    vigil.begin(100.0)
    assert vigil.due_at([None]) == 105.0
    assert not vigil.take_ping(104.9)
    assert vigil.take_ping(105.0)
    assert not vigil.take_ping(105.0)
    vigil.rest()
    assert vigil.due_at([None]) is None
    assert not vigil.take_ping(1000.0)


def test_a_worker_hangs_once_a_question_has_waited_too_long() -> None:
    vigil = Vigil(5.0, 10.0, None)
    assert vigil.due_at([None, 7.0]) == 17.0  # also when nothing else is asked of the mount
    assert not vigil.is_hung(7.0, 16.9)
    assert vigil.is_hung(7.0, 17.0)
    assert not vigil.is_hung(None, 1000.0)


def test_a_service_manager_hears_of_an_idle_mount_too() -> None:
    vigil = Vigil(5.0, 10.0, 60.0)
    assert vigil.due_at([]) is None  # not before the mount is there
    vigil.begin(0.0)
    vigil.rest()
    told = []
    while len(told) < 4:
        now = vigil.due_at([])
        assert now is not None
        assert vigil.take_tick(now)
        told.append(now)
    assert told == [20.0, 40.0, 60.0, 80.0]
    assert not Vigil(5.0, 10.0, None).take_tick(1000.0)
