"""How a preload is cut into batches and held to its rate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.policies.preload import BATCH_MAX_BYTES, RateLimit, batch_max_bytes, batches

FILES = st.lists(st.tuples(st.text(max_size=3), st.integers(min_value=0, max_value=200)), max_size=60)


@given(FILES, st.integers(1, 8), st.integers(1, 100))
def test_batches_keep_every_file_in_order_and_stay_within_both_bounds(
    files: list[tuple[str, int]], max_files: int, max_bytes: int
) -> None:
    made = list(batches(files, max_files, max_bytes))
    assert [file for batch in made for file in batch] == files
    for batch in made:
        assert 1 <= len(batch) <= max_files
        assert len(batch) == 1 or sum(size for _, size in batch) <= max_bytes


def test_a_rate_limit_holds_on_average_and_lets_an_idle_job_start_at_once() -> None:
    limit = RateLimit(100, now=0.0)
    assert limit.wait_s(0.0) == 0
    limit.charge(500, now=0.0)
    assert limit.wait_s(0.0) == pytest.approx(5)
    assert limit.wait_s(4.0) == pytest.approx(1)
    assert limit.wait_s(60.0) == 0
    limit.charge(100, now=60.0)
    assert limit.wait_s(60.0) == pytest.approx(1)


def test_what_was_not_moved_is_given_back() -> None:
    limit = RateLimit(100, now=0.0)
    limit.charge(500, now=0.0)
    limit.charge(-500, now=0.0)
    assert limit.wait_s(0.0) == 0


def test_a_batch_under_a_limit_is_a_second_of_it() -> None:
    assert batch_max_bytes(1000) == 1000
    assert batch_max_bytes(None) == batch_max_bytes(1 << 40) == BATCH_MAX_BYTES


def test_without_a_limit_nothing_waits() -> None:
    limit = RateLimit(None, now=0.0)
    limit.charge(1 << 40, now=0.0)
    assert limit.wait_s(0.0) == 0
