"""Where things live, and which places are refused."""

import os
import stat
from pathlib import Path

import pytest

from penstock import home as homes
from penstock.errors import InvalidInputError, PermissionDeniedError
from penstock.server.process import default_cache_bytes


def test_penstock_home_puts_everything_below_one_directory(tmp_path: Path) -> None:
    home = homes.locate(environment={"PENSTOCK_HOME": str(tmp_path)})
    places = [home.config, home.attachments, home.pins, home.jobs, home.state, home.cache, home.run, home.logs]
    assert all(place.is_relative_to(tmp_path) for place in places)
    assert home.data_socket == tmp_path / "run" / "data.sock"


def test_an_argument_beats_the_variable_and_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert homes.locate("mine", {"PENSTOCK_HOME": "/other"}).name == tmp_path / "mine"


def test_an_empty_penstock_home_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="PENSTOCK_HOME is empty"):
        homes.locate(environment={"PENSTOCK_HOME": ""})


def test_without_penstock_home_the_platform_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
        (tmp_path / variable).mkdir()
    home = homes.locate(environment={})
    assert home.config == tmp_path / "XDG_CONFIG_HOME" / "penstock" / "config.toml"
    assert home.state.is_relative_to(tmp_path / "XDG_DATA_HOME")
    assert home.cache.is_relative_to(tmp_path / "XDG_CACHE_HOME")
    # Not in the cache, which people may delete: nobody else has what is staged.
    assert home.stage.is_relative_to(tmp_path / "XDG_DATA_HOME")


def test_a_login_session_and_a_cron_job_find_the_same_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    for root in (None, tmp_path / ("d" * 120)):
        monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
        without = homes.locate(root, {})
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        assert homes.locate(root, {"XDG_RUNTIME_DIR": str(tmp_path)}).run == without.run


def test_a_socket_path_that_is_too_long_moves_to_a_short_private_directory(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    home = homes.locate(deep, {})
    assert len(os.fsencode(home.control_socket)) <= homes.SOCKET_PATH_MAX_BYTES
    assert home.run == homes.locate(deep, {}).run != homes.locate(deep / "x", {}).run
    assert home.state.is_relative_to(deep)


def test_prepare_makes_private_directories(tmp_path: Path) -> None:
    home = homes.locate(tmp_path / "h", {})
    home.prepare()
    home.prepare()
    for directory in (home.name, home.run, home.state, home.stage, home.cache):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_default_cache_that_cannot_be_made_is_left_out(tmp_path: Path) -> None:
    root = tmp_path / "h"
    home = homes.Home(root / "config.toml", root, Path("/proc/penstock-cache"), root / "logs", root / "run")
    home.prepare()
    assert home.run.is_dir()
    assert default_cache_bytes(home) > 0
    assert not (home.state / "default-cache-size").exists()


def test_a_run_directory_that_others_can_enter_is_closed(tmp_path: Path) -> None:
    home = homes.locate(tmp_path / "h", {})
    home.prepare()
    home.run.chmod(0o755)
    home.prepare()
    assert stat.S_IMODE(home.run.stat().st_mode) == 0o700


def test_a_run_directory_that_is_a_link_is_refused(tmp_path: Path) -> None:
    home = homes.locate(tmp_path / "h", {})
    home.name.mkdir()
    (tmp_path / "elsewhere").mkdir()
    home.run.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionDeniedError, match="not a directory of its own"):
        home.prepare()


@pytest.mark.skipif(os.getuid() != 0, reason="needs a directory that root gives away")
def test_a_run_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    home = homes.locate(tmp_path / "h", {})
    home.prepare()
    os.chown(home.run, 12345, 12345)
    with pytest.raises(PermissionDeniedError, match="belongs to another user"):
        home.prepare()


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "h").write_text("")
    with pytest.raises(InvalidInputError, match="a file stands where"):
        homes.locate(tmp_path / "h", {}).prepare()


def test_a_home_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(PermissionDeniedError, match="set PENSTOCK_HOME"):
        homes.locate("/proc/penstock-home", {}).prepare()


def test_a_file_is_replaced_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "pins.json"
    homes.write_atomically(path, "one")
    homes.write_atomically(path, "two", durable=False)
    assert path.read_text() == "two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["pins.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "pins.json"
    homes.write_atomically(path, "one")
    with pytest.raises(UnicodeEncodeError):
        homes.write_atomically(path, "\udcff")
    assert path.read_text() == "one"
    assert [each.name for each in tmp_path.iterdir()] == ["pins.json"]
