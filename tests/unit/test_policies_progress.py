"""How long what is left of a job takes."""

import pytest

from penstock.policies.progress import FILE_COST_BYTES, eta_s

MIB = 1 << 20


def test_one_large_file_among_many_small_ones_does_not_make_them_look_slow() -> None:
    # 64 MiB in three files took two seconds; 32 MiB in 309 files are left.
    assert eta_s(32 * MIB, 309, 32 * MIB, 1.5) == pytest.approx(1.6, abs=0.1)


def test_small_files_do_not_make_a_large_one_look_slow() -> None:
    # A hundred files of 1 KiB in a second; a file of 64 MiB is left.
    assert eta_s(64 * MIB, 1, 100 << 10, 100.0) == pytest.approx(10, abs=1)


def test_files_without_content_take_time_too() -> None:
    assert eta_s(0, 1000, 0.0, 100.0) == pytest.approx(10)


def test_equal_files_take_what_they_took() -> None:
    assert eta_s(900 * MIB, 900, 100 * MIB, 100.0) == pytest.approx(9)


def test_nothing_left_takes_no_time_and_without_any_speed_nothing_can_be_said() -> None:
    assert eta_s(0, 0, 0.0, 0.0) == 0.0
    assert eta_s(-5, -1, 1.0, 1.0) == 0.0
    assert eta_s(FILE_COST_BYTES, 1, 0.0, 0.0) is None
