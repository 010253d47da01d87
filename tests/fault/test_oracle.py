"""The oracle itself: what it must never take for right."""

import pytest

from fault import oracle


def test_right_bytes_pass_wherever_they_begin_and_end() -> None:
    whole = oracle.content(7, 3, 0, 20_000)
    for start, end in [(0, 20_000), (1, 64), (4095, 4096), (4064, 4160), (5000, 19_999), (8192, 8255)]:
        oracle.check(7, 3, start, whole[start:end])
    for start in range(4000, 4200):
        assert oracle.version_in(whole[start : start + 200], start) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        oracle.content(7, 2, 100, 9000),
        oracle.content(8, 3, 100, 9000),
        oracle.content(7, 3, 4196, 13_096),
        bytes(8900),
        oracle.content(7, 3, 100, 5000) + oracle.content(7, 4, 5000, 9000),
        oracle.content(7, 3, 100, 8999) + b"\0",
    ],
    ids=["an older version", "another object", "another place", "zeros", "a mixture", "one byte"],
)
def test_wrong_bytes_are_told(wrong: bytes) -> None:
    with pytest.raises(AssertionError, match="object 7 version 3 offset"):
        oracle.check(7, 3, 100, wrong)
