"""The layers of the configuration, and what each key turns into for the core."""

import os
from pathlib import Path
from typing import Any

import pytest

from penstock import config
from penstock.errors import InvalidInputError, PermissionDeniedError
from penstock.home import Home, locate


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "home").mkdir()
    return locate(tmp_path / "home")


def load(home: Home, *flags: str, **options: Any) -> config.Configuration:
    options.setdefault("environment", {})
    options.setdefault("system_file", Path("/nonexistent/config.toml"))
    return config.load(home, flags=flags, **options)


def origin(configuration: config.Configuration, key: str) -> str:
    return next(each.origin for each in configuration.origins if each.key == key)


def test_later_layers_win_and_every_key_knows_its_origin(home: Home, tmp_path: Path) -> None:
    system, project = tmp_path / "system.toml", tmp_path / "work" / "deep"
    project.mkdir(parents=True)
    keys = ["jobs.workers", "jobs.keep", "jobs.max_running", "log.level", "source.max_attempts"]
    system.write_text(
        "[jobs]\nworkers = 1\nkeep = 1\nmax_running = 1\n[log]\nlevel = 'debug'\n[source]\nmax_attempts = 1"
    )
    home.config.write_text("[jobs]\nworkers = 2\nkeep = 2\nmax_running = 2\n[log]\nlevel = 'info'")
    (tmp_path / "work" / "penstock.toml").write_text("[jobs]\nworkers = 3\nkeep = 3\nmax_running = 3")
    made = load(
        home,
        "jobs.workers=5",
        directory=project,
        system_file=system,
        environment={"PENSTOCK_JOBS__WORKERS": "4", "PENSTOCK_JOBS__KEEP": "4"},
    )
    values = {each.key: each.value for each in made.origins}
    assert [values[key] for key in keys] == [5, 4, 3, "info", 1]
    assert [origin(made, key).partition(":")[0] for key in keys] == ["flag", "environment", "project", "user", "system"]
    assert origin(made, "cache.size") == "default"


def test_the_defaults_are_those_of_the_design(home: Home) -> None:
    made = load(home).settings
    assert made.cache.free_space_floor == 0.1
    assert made.memory.budget == 1 << 30
    assert (made.deadlines.foreground, made.deadlines.attach) == (30, 10)
    assert made.source.freshness == "60s"
    assert made.node.idle_timeout == 900


@pytest.mark.parametrize(
    ("flag", "suggestion"),
    [("cache.sise=1GiB", "cache.size"), ("cach.size=1GiB", "cache.size"), ("qqq.zzz=1", "penstock config show")],
)
def test_an_unknown_key_is_an_error_with_a_suggestion(home: Home, flag: str, suggestion: str) -> None:
    with pytest.raises(InvalidInputError, match=suggestion):
        load(home, flag)


def test_an_unknown_key_is_an_error_in_every_layer(home: Home, tmp_path: Path) -> None:
    text = "[cache]\nsise = '1GiB'"
    bad = tmp_path / "bad.toml"
    bad.write_text(text)
    with pytest.raises(InvalidInputError, match=r"cache\.sise \(system: .*did you mean cache\.size"):
        load(home, system_file=bad)
    with pytest.raises(InvalidInputError, match=r"PENSTOCK_CACHE__SISE.*did you mean cache\.size"):
        load(home, environment={"PENSTOCK_CACHE__SISE": "1GiB"})
    (tmp_path / "penstock.toml").write_text(text)
    with pytest.raises(InvalidInputError, match=r"project: .*did you mean cache\.size"):
        load(home, directory=tmp_path)
    home.config.write_text("[cashe]\nsize = '1GiB'")
    with pytest.raises(InvalidInputError, match=r"user: .*did you mean cache\.size"):
        load(home)


def test_variables_that_only_look_like_settings_are_left_alone(home: Home) -> None:
    made = load(
        home,
        environment={
            "PENSTOCK_HOME": "/x",
            "PENSTOCK_SERVICE_HOST": "10.0.0.1",
            "PENSTOCK_SERVICE_PORT_HTTP": "80",
            "PENSTOCK_PORT": "tcp://10.0.0.1:80",
            "PENSTOCK_PORT_80_TCP_ADDR": "10.0.0.1",
        },
    )
    assert made.settings == load(home).settings


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("memory.budget=1KiB", "it must be at least 16.0 MiB; got '1KiB'"),
        ("node.metrics_port=70000", "it must be at most 65535; got '70000'"),
        ("deadlines.foreground=0", "it must be more than 0; got '0'"),
    ],
)
def test_a_value_out_of_bounds_is_told_the_bound(home: Home, flag: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        load(home, flag)


@pytest.mark.parametrize(
    "flag",
    [
        "cache.size=banana",
        "cache.size=-1",
        "cache.free_space_floor=1.5",
        'cache.tiers=[{"directory": "relative", "size": 1}]',
        "cache.tiers=[1",
        "cache=1",
        "stage.directory=relative",
        "stage.size=much",
        "stage.recovery_days=-1",
        "memory.budget=1KiB",
        "deadlines.foreground=0",
        "deadlines.attach=soon",
        "source.max_requests=0",
        "source.max_rate=fast",
        "source.freshness=sometimes",
        "node.metrics_port=70000",
        "node.idle_timeout=whenever",
        "jobs.workers=0",
        "log.level=loud",
        "nothing",
        "=1",
    ],
)
def test_a_value_that_cannot_be_right_is_refused_and_named(home: Home, flag: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        load(home, flag)
    assert flag.partition("=")[0] in str(caught.value)


def test_a_file_that_is_not_toml_is_refused_with_its_line(home: Home) -> None:
    home.config.write_text("[cache\nsize=1")
    with pytest.raises(InvalidInputError, match="line 1"):
        load(home)


def test_a_project_file_that_others_can_write_is_refused(home: Home, tmp_path: Path) -> None:
    project = tmp_path / "penstock.toml"
    project.write_text("")
    project.chmod(0o666)
    with pytest.raises(PermissionDeniedError, match="somebody else could have written it"):
        load(home, directory=tmp_path)


def test_tiers_stand_instead_of_directory_and_size(home: Home) -> None:
    tiers = '[{"directory": "/fast", "size": "1GiB"}, {"directory": "/slow", "size": "2GiB"}]'
    made = load(home, environment={"PENSTOCK_CACHE__TIERS": tiers}).settings
    assert made.node_config(home, 7)["cache"]["tiers"] == [
        {"directory": "/fast", "size_bytes": 1 << 30},
        {"directory": "/slow", "size_bytes": 2 << 30},
    ]
    with pytest.raises(InvalidInputError, match=r"cache\.size is set too"):
        load(home, "cache.size=1GiB", f"cache.tiers={tiers}")


CORE_KEYS = [
    ("cache.directory=/elsewhere", ("cache", "tiers", 0, "directory"), "/elsewhere"),
    ("cache.size=3GiB", ("cache", "tiers", 0, "size_bytes"), 3 << 30),
    ("cache.free_space_floor=0.25", ("cache", "free_space_floor"), 0.25),
    ("cache.scrub_interval_days=7", ("cache", "scrub_interval_days"), 7),
    ("cache.allow_network_filesystem=true", ("cache", "allow_network_filesystem"), True),
    ("stage.directory=/staged", ("stage", "directory"), "/staged"),
    ("stage.size=3GiB", ("stage", "size_bytes"), 3 << 30),
    ("stage.recovery_days=0.5", ("stage", "recovery_days"), 0.5),
    ("stage.recovery_size=3MiB", ("stage", "recovery_bytes"), 3 << 20),
    ("memory.budget=64MiB", ("memory_budget_bytes",), 64 << 20),
    ("deadlines.foreground=5s", ("deadlines", "foreground_s"), 5),
    ("deadlines.attach=2s", ("deadlines", "attach_s"), 2),
    ("source.max_requests=3", ("source", "max_requests"), 3),
    ("source.max_attempts=2", ("source", "max_attempts"), 2),
    ("source.max_rate=10MB", ("source", "max_bytes_per_s"), 10_000_000),
    ("source.max_rate=off", ("source", "max_bytes_per_s"), None),
    ("node.metrics_port=9600", ("metrics_port",), 9600),
    ("node.metrics_port=off", ("metrics_port",), None),
    ("node.max_connections=5", ("max_connections",), 5),
]


@pytest.mark.parametrize(("flag", "place", "value"), CORE_KEYS)
def test_each_key_of_the_core_reaches_its_document(home: Home, flag: str, place: tuple[Any, ...], value: Any) -> None:
    found: Any = load(home, flag).settings.node_config(home, 7)
    for step in place:
        found = found[step]
    assert found == value


def test_the_core_gets_directory_socket_and_default_cache_of_the_home(home: Home) -> None:
    document = load(home).settings.node_config(home, 7)
    assert document["state_directory"] == str(home.state)
    assert document["data_socket"] == str(home.data_socket)
    assert document["cache"]["tiers"] == [{"directory": str(home.cache), "size_bytes": 7}]


def test_the_stage_is_in_the_home_and_half_as_large_as_all_of_the_cache(home: Home) -> None:
    assert load(home).settings.node_config(home, 7 << 20)["stage"] == {
        "directory": str(home.stage),
        "size_bytes": 7 << 19,
        "recovery_days": 7.0,
        "recovery_bytes": (7 << 19) // 10,
    }
    tiers = '[{"directory": "/fast", "size": "1GiB"}, {"directory": "/slow", "size": "2GiB"}]'
    tiered = load(home, f"cache.tiers={tiers}").settings.node_config(home, 7)
    assert tiered["stage"]["size_bytes"] == 3 << 29


def test_every_key_has_a_type_and_a_sentence() -> None:
    rows = config.key_documentation()
    assert len(rows) > 20
    for key, kind, _, documentation in rows:
        assert kind, key
        assert documentation.endswith("."), key
    assert len({key for key, *_ in rows}) == len(rows)


def test_a_variable_is_read_whatever_its_case_and_a_flag_beats_it(home: Home) -> None:
    environment = {"PENSTOCK_CACHE__SIZE": "1GiB"}
    assert load(home, environment=environment).settings.cache.size == 1 << 30
    assert load(home, "cache.size=2GiB", environment=environment).settings.cache.size == 2 << 30


@pytest.mark.skipif(os.getuid() != 0, reason="needs a file that root gives away")
def test_a_project_file_of_another_user_is_refused(home: Home, tmp_path: Path) -> None:
    project = tmp_path / "penstock.toml"
    project.write_text("")
    os.chown(project, 12345, 12345)
    with pytest.raises(PermissionDeniedError, match="belongs to another user"):
        load(home, directory=tmp_path)
