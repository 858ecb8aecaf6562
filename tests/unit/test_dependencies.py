"""When a job that depends on others may run, over every mixture of ends."""

from hypothesis import given
from hypothesis import strategies as st

from cloche.domain.dependencies import DEFAULT_ON_FAILURE, Condition, OnFailure, Verdict, circle, decide, ordered

CONDITIONS, POLICIES = st.sampled_from(list(Condition)), st.sampled_from(list(OnFailure))
COUNTS = st.integers(0, 100)


@given(CONDITIONS, POLICIES, COUNTS)
def test_without_a_failure_only_the_waiting_matter(condition, on_failure, waiting):
    wanted = Verdict.WAIT if waiting else Verdict.RUN
    assert decide(condition, on_failure, waiting=waiting, failed=0) is wanted


@given(CONDITIONS, POLICIES, COUNTS)
def test_once_all_have_ended_nobody_waits(condition, on_failure, failed):
    assert decide(condition, on_failure, waiting=0, failed=failed) is not Verdict.WAIT


@given(CONDITIONS, COUNTS, COUNTS)
def test_who_goes_on_after_failures_is_never_canceled_by_one(condition, waiting, failed):
    assert decide(condition, OnFailure.CONTINUE, waiting=waiting, failed=failed) is not Verdict.CANCEL


@given(COUNTS, st.integers(1, 100))
def test_when_a_failure_cancels(waiting, failed):
    at_once = decide(Condition.ALL_COMPLETED, OnFailure.CANCEL, waiting=waiting, failed=failed)
    assert at_once is Verdict.CANCEL
    at_the_end = decide(Condition.ALL_RESOLVED, OnFailure.CANCEL, waiting=waiting, failed=failed)
    assert at_the_end is (Verdict.WAIT if waiting else Verdict.CANCEL)


def test_what_stands_in_for_a_policy_that_was_not_named():
    assert DEFAULT_ON_FAILURE == {
        Condition.ALL_COMPLETED: OnFailure.CANCEL,
        Condition.ALL_RESOLVED: OnFailure.CONTINUE,
    }


@st.composite
def _named(draw):
    """For each of some jobs, positions of others."""
    count = draw(st.integers(0, 12))
    others = st.lists(st.integers(0, max(0, count - 1)), max_size=4)
    return [[one for one in draw(others) if one != position] for position in range(count)]


@given(_named())
def test_upstreams_come_first_and_what_waits_in_a_circle_is_found(upstreams):
    order, ring = ordered(upstreams), circle(upstreams)
    place = {position: n for n, position in enumerate(order)}
    assert len(place) == len(order)
    assert all(place[one] < place[position] for position in order for one in upstreams[position])
    assert bool(ring) == (len(order) < len(upstreams))
    assert all(following in upstreams[one] for one, following in zip(ring, ring[1:] + ring[:1], strict=True))


def test_jobs_that_name_nobody_or_earlier_ones_stay_where_they_are():
    assert ordered([[], [0], [], [2, 0], [1, 1]]) == [0, 1, 2, 3, 4]
    assert ordered([[3], [], [0], []]) == [1, 3, 0, 2]


def test_a_long_chain_and_a_long_circle():
    chain = [[position + 1] for position in range(9_999)] + [[]]
    assert ordered(chain) == list(reversed(range(10_000)))
    assert circle([*chain[:-1], [0]]) == list(range(10_000))
