"""Which files and directories are the newest of a pattern."""

import pytest

from penstock.errors import InvalidInputError
from penstock.policies.newest import NEWEST_MAX, File, newest, newest_rule


def files(*changed: tuple[str, int]) -> list[File]:
    return [File(*each) for each in changed]


def test_the_newest_files_are_those_that_were_changed_last() -> None:
    known = files(("/runs/a.pt", 3), ("/runs/b.pt", 1), ("/runs/c.pt", 2), ("/runs/log.txt", 9))
    assert newest(newest_rule("/runs/*.pt", 2), known) == ["/runs/a.pt", "/runs/c.pt"]


def test_a_directory_is_as_new_as_the_newest_file_in_it() -> None:
    known = files(("/runs/step-1/a", 1), ("/runs/step-1/deep/b", 8), ("/runs/step-2/a", 5), ("/runs/step-3/a", 4))
    assert newest(newest_rule("/runs/step-*", 2), known) == ["/runs/step-1", "/runs/step-2"]


def test_what_is_equally_new_is_taken_by_the_numbers_in_its_name() -> None:
    known = files(*((f"/runs/step-{step}/model", 1) for step in (9, 10, 1000, 200)))
    assert newest(newest_rule("/runs/step-*", 2), known) == ["/runs/step-1000", "/runs/step-200"]


def test_every_directory_keeps_its_own_newest() -> None:
    known = files(("/runs/x/step-1", 1), ("/runs/x/step-2", 2), ("/runs/y/step-1", 9), ("/runs/y/step-2", 8))
    assert newest(newest_rule("/runs/*/step-*", 1), known) == ["/runs/x/step-2", "/runs/y/step-1"]


def test_fewer_than_are_to_be_kept_are_all_kept_and_none_is_none() -> None:
    rule = newest_rule("/runs/step-*", 3)
    assert newest(rule, files(("/runs/step-1", 1))) == ["/runs/step-1"]
    assert newest(rule, []) == []


def test_a_pattern_says_nothing_of_hidden_names_of_shorter_paths_and_of_other_directories() -> None:
    rule = newest_rule("/runs/*/step-*", 9)
    known = files(("/runs/step-1", 1), ("/runs/.hidden/step-1", 1), ("/other/x/step-1", 1), ("/runs/x/STEP-1", 1))
    assert newest(rule, known) == []
    assert newest(newest_rule("/runs/.h*/step-?", 9), known) == ["/runs/.hidden/step-1"]


@pytest.mark.parametrize(
    ("pattern", "base"),
    [("/runs/step-*", "/runs"), ("/runs/*/step-?", "/runs"), ("/*", "/"), ("/a/b/[cd]", "/a/b"), ("/a//b*/", "/a")],
)
def test_the_base_of_a_pattern_is_the_directory_above_all_that_matches(pattern: str, base: str) -> None:
    assert newest_rule(pattern, 1).base == base


@pytest.mark.parametrize(
    ("pattern", "keep", "reason"),
    [
        ("/runs/step-*", 0, "0 of them cannot be kept"),
        ("/runs/step-*", NEWEST_MAX + 1, "cannot be kept"),
        ("runs/*", 1, "not absolute"),
        ("/runs/**", 1, r"\*\* has no meaning"),
        ("/runs/step-1", 1, "it names one path"),
    ],
)
def test_a_rule_that_cannot_be_says_why(pattern: str, keep: int, reason: str) -> None:
    with pytest.raises(InvalidInputError, match=reason):
        newest_rule(pattern, keep)
