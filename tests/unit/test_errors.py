"""The error tree: one class per kind of the core, usable as the builtin that fits."""

import errno
import pickle

import pytest

from penstock import errors


def test_every_error_is_also_the_builtin_that_callers_already_catch() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        raise errors.NotFoundError("open /data/a", "no such file", "check the path")
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(OSError, match="the object changed") as stale:
        raise errors.StaleVersionError("read /data/a", "the object changed")
    assert stale.value.errno == errno.ESTALE
    with pytest.raises(ValueError, match="no such setting"):
        raise errors.InvalidInputError("read configuration", "no such setting")


def test_an_error_says_what_to_what_why_and_what_now_with_facts_last() -> None:
    error = errors.CorruptError("read s3://b/k", "checksum mismatch", "run `penstock verify`", page=17, source="peer")
    assert str(error) == "read s3://b/k: checksum mismatch; run `penstock verify` (page=17 source=peer)"


@pytest.mark.parametrize("code", list(errors.ERROR_TYPES))
def test_an_error_of_the_core_keeps_its_words_and_survives_pickling(code: str) -> None:
    error = errors.error_from(code, "read x: broke; do y", "read x", "broke", "do y")
    assert type(error) is errors.ERROR_TYPES[code]
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (
        copy.as_dict()
        == error.as_dict()
        == {
            "code": code,
            "message": "read x: broke; do y",
            "action": "read x",
            "reason": "broke",
            "advice": "do y",
        }
    )
    assert copy.errno == error.errno is not None


def test_a_code_of_a_newer_node_is_kept_and_still_a_penstock_error() -> None:
    error = errors.error_from("brand-new", "a: b", "a", "b", None)
    assert type(error) is errors.PenstockError
    assert error.code == "brand-new"
    assert pickle.loads(pickle.dumps(error)).code == "brand-new"


def test_every_public_name_exists() -> None:
    assert all(hasattr(errors, name) for name in errors.__all__)
