"""Sizes and durations as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import units
from penstock.errors import InvalidInputError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        (4096, 4096),
        ("50GiB", 50 << 30),
        ("50 gib", 50 << 30),
        ("1.5MB", 1_500_000),
        ("400MB", 400_000_000),
        ("2TiB", 2 << 40),
        ("7B", 7),
    ],
)
def test_a_size_is_read_as_people_write_it(text: str | int, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "-1", "GiB", "1 elephant", "1e9", "0x10", "9999999999999999999GiB", True, None, 1.5]
)
def test_what_is_no_size_is_refused_with_an_example(text: object) -> None:
    with pytest.raises(InvalidInputError):
        units.parse_size(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("60s", 60), ("15min", 900), ("1.5h", 5400), ("250ms", 0.25), ("7d", 604800), (5, 5), (0.5, 0.5), ("0", 0)],
)
def test_a_duration_is_read_as_people_write_it(text: str | float, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "-1s", "soon", "1 fortnight", "inf", "nan", True, None])
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(InvalidInputError):
        units.parse_duration(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (112 << 10, "112 KiB"), (3 << 29, "1.5 GiB")]
)
def test_a_size_is_shown_with_a_fitting_unit(size: int, text: str) -> None:
    assert units.format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.003, "3 ms"), (0.4, "0.4 s"), (12, "12 s"), (200, "3 min 20 s"), (3900, "1 h 05 min"), (864000, "10 d")],
)
def test_a_duration_is_shown_with_two_units_at_most(seconds: float, text: str) -> None:
    assert units.format_duration(seconds) == text


@given(st.integers(min_value=0, max_value=1 << 50))
def test_a_shown_size_reads_back_within_its_rounding(size: int) -> None:
    assert units.parse_size(units.format_size(size)) == pytest.approx(size, rel=0.06, abs=1)


@given(st.floats(min_value=0, max_value=1e9))
def test_every_duration_can_be_shown(seconds: float) -> None:
    assert units.format_duration(seconds)
