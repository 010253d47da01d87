"""What `import penstock` gives, and what it costs."""

import pickle
import subprocess
import sys

import pytest

import penstock
from penstock import _native, errors


def test_the_public_names_are_exactly_these() -> None:
    expected = "AsyncClient Client Job PenstockError __version__ connect connect_async errors"
    assert sorted(penstock.__all__) == expected.split()
    assert all(getattr(penstock, name) is not None for name in penstock.__all__)
    assert set(penstock.__all__) <= set(dir(penstock))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        penstock.nothing  # noqa: B018


def test_the_error_kinds_of_the_core_are_those_of_python() -> None:
    assert _native.error_kinds() == [(code, kind.errno) for code, kind in errors.ERROR_TYPES.items()]


def test_errors_of_the_core_arrive_as_their_python_kind(tmp_path: object) -> None:
    core = _native.Core(f"{tmp_path}/none.sock", "test")
    with pytest.raises(errors.UnavailableError) as caught:
        core.stat("/data")
    assert "penstock up" in str(caught.value)
    assert caught.value.action
    assert pickle.loads(pickle.dumps(caught.value)).as_dict() == caught.value.as_dict()


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import penstock", {"penstock._core", "typing", "pathlib", "asyncio", "http.client"}),
        (
            "import penstock; penstock.Client('/none', '/none')",
            {"pydantic", "typer", "rich", "fastapi", "uvicorn", "asyncio", "http.client", "fsspec"},
        ),
    ],
)
def test_importing_and_connecting_load_nothing_heavy(statement: str, forbidden: set[str]) -> None:
    script = f"import sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {script}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert set(done.stdout.split()) & forbidden == set()
