"""Configuration, defined once: every key, its default, its check, and which layer set it.

Layers, later ones win: defaults, ``/etc/penstock/config.toml``, the user's ``config.toml``, the project's
``penstock.toml`` (nearest parent of the working directory), ``PENSTOCK_*`` variables (sections by ``__``, as in
``PENSTOCK_CACHE__SIZE``), flags (``--set cache.size=10GiB``). An unknown key is an error in every layer. The core
gets the result once, as one JSON document (:meth:`Settings.node_config`).
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, cast, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from penstock.errors import InvalidInputError, PermissionDeniedError
from penstock.units import format_size, parse_duration, parse_size

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from penstock.home import Home

__all__ = ["SYSTEM_FILE", "Configuration", "Origin", "Settings", "flatten", "key_documentation", "load"]

SYSTEM_FILE = Path("/etc/penstock/config.toml")
PROJECT_FILE_NAME = "penstock.toml"

DEFAULT_CACHE_BYTES = 50 << 30
DEFAULT_CACHE_SHARE = 0.2
_PREFIX = "PENSTOCK_"
_NOT_SETTINGS = {"PENSTOCK_HOME"}
# Kubernetes sets these in every container when a Service is called "penstock".
_SERVICE_VARIABLES = re.compile(r"PENSTOCK_(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")


def _said_by_us(parse: Any) -> Any:
    def checked(value: Any) -> Any:
        try:
            return parse(value)
        except InvalidInputError as error:
            raise ValueError(f"{error.reason}; {error.advice}") from None

    return checked


def _optional(parse: Any) -> Any:
    return lambda value: None if value is None or value == "off" else parse(value)


def _freshness(value: Any) -> Any:
    if value != "immutable":
        parse_duration(value)
    return value


def _absolute(value: Path) -> Path:
    expanded = value.expanduser()
    if not expanded.is_absolute():
        raise ValueError("the path is not absolute; write it from /")
    return expanded


class _Kind(NamedTuple):
    """What the reference calls a type."""

    name: str


Size = Annotated[int, BeforeValidator(_said_by_us(parse_size)), Field(ge=0), _Kind("size")]
Duration = Annotated[float, BeforeValidator(_said_by_us(parse_duration)), Field(ge=0), _Kind("duration")]
OptionalRate = Annotated[int | None, BeforeValidator(_said_by_us(_optional(parse_size))), _Kind("size or off")]
Directory = Annotated[Path, AfterValidator(_absolute), _Kind("absolute path")]
Freshness = Annotated[str | float, BeforeValidator(_said_by_us(_freshness)), _Kind("duration or immutable")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Tier(_Section):
    """A cache directory with a size; one on tmpfs is the memory tier."""

    directory: Directory
    """Where it is; made when it is missing."""
    size: Size
    """Most bytes it may hold, as in `20GiB`."""


class CacheSettings(_Section):
    """Where cached content lives and how much of it."""

    directory: Directory | None = None
    """Directory of the cache. Default: `cache` in the home. Not on a network file system."""
    size: Size | None = None
    """Most bytes it may hold. Default: the smaller of 50 GiB and 20 % of what is free when the node first starts."""
    tiers: tuple[Tier, ...] = ()
    """Several directories, fastest first, instead of `directory` and `size`."""
    free_space_floor: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the file system that the cache leaves free, 0 to 1."""
    scrub_interval_days: Annotated[float, Field(ge=0)] = 30.0
    """Every cached page is checked against its checksum once in so many days; 0 switches that off. A round takes five
    minutes at least, and a second for each 64 MiB that are cached, however small the number."""
    allow_network_filesystem: bool = False
    """Take a cache directory on NFS and the like all the same."""


class StageSettings(_Section):
    """Where written files are until their source has them."""

    directory: Directory | None = None
    """Directory of the stage. Default: `stage` in the home. Best on the file system of the cache: what was written then
    becomes cached without being copied. Can be changed once nothing waits in it."""
    size: Size | None = None
    """Most bytes that may wait for their source; writers are slowed down before. Default: half of the cache's size."""
    recovery_days: Annotated[float, Field(ge=0)] = 7.0
    """Files that nobody had closed when the node or the machine crashed are kept for so many days."""
    recovery_size: Size | None = None
    """Most bytes of them that are kept: the oldest go first, but the newest three stay for their days. Default: a tenth
    of the stage's size."""


class MemorySettings(_Section):
    """Memory that moving data may hold."""

    budget: Annotated[Size, Field(ge=16 << 20)] = 1 << 30
    """Most bytes that fills and answers hold together; work waits when it is used up. At least 16 MiB."""


class DeadlineSettings(_Section):
    """How long things may take before they fail."""

    foreground: Annotated[Duration, Field(gt=0)] = 30.0
    """A request that somebody waits for."""
    attach: Annotated[Duration, Field(gt=0)] = 10.0
    """The question to the source when it is attached."""


class SourceSettings(_Section):
    """How every source is talked to."""

    max_requests: Annotated[int, Field(ge=1, le=4096)] = 128
    """Requests under way at once, per source; fewer after it asked for less."""
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 8
    """Tries per request within its deadline, the first one included."""
    max_rate: OptionalRate = None
    """Most bytes per second read from one source, as in `200MB`; `off` is no limit."""
    max_upload_rate: OptionalRate = None
    """Most bytes per second written to one source; `off` is no limit."""
    freshness: Freshness = "60s"
    """How long facts are believed where `attach` says nothing: a duration, `0` or `immutable`."""


class JobSettings(_Section):
    """Preload, evict and verify."""

    max_running: Annotated[int, Field(ge=1, le=64)] = 2
    """Jobs that run at once; the others wait in line."""
    workers: Annotated[int, Field(ge=1, le=64)] = 4
    """Batches that one job has under way at once."""
    keep: Annotated[int, Field(ge=0, le=100_000)] = 100
    """Ended jobs that `job ls` still knows."""
    max_rate: OptionalRate = None
    """Most bytes per second that one job takes from its source, on average; `off` is no limit."""


class NodeSettings(_Section):
    """The node process."""

    idle_timeout: Duration = 900.0
    """The node leaves after so long without clients, jobs and mounts; `0` keeps it for ever, as does the foreground."""
    max_connections: Annotated[int, Field(ge=1, le=65536)] = 1024
    """Clients that may be connected at once."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | Literal["off"] = 0
    """Loopback port of Prometheus text; 0 takes a free one (`penstock status` shows it), `off` serves none."""
    drain_timeout: Duration = 10.0
    """How long a stopping node waits for what is under way."""


class LogSettings(_Section):
    """What the node writes down."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least important kind of line that is kept."""
    max_size: Annotated[Size, Field(ge=64 << 10)] = 16 << 20
    """Size at which the log file is rotated; one older file is kept."""


class Settings(BaseSettings):
    """The configuration of a node. Values are checked, complete and frozen."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=_PREFIX, env_nested_delimiter="__", use_attribute_docstrings=True
    )

    cache: CacheSettings = CacheSettings()
    stage: StageSettings = StageSettings()
    memory: MemorySettings = MemorySettings()
    deadlines: DeadlineSettings = DeadlineSettings()
    source: SourceSettings = SourceSettings()
    jobs: JobSettings = JobSettings()
    node: NodeSettings = NodeSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic's
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Layers are merged by :func:`load`, which knows where each value came from."""
        return (init_settings,)

    def node_config(self, home: Home, default_cache_bytes: int) -> dict[str, Any]:
        """The document that the core starts with, key for key as ``NodeConfig`` of ``crates/types``.

        Args:
            home: where its state, socket and default cache are.
            default_cache_bytes: size of the cache where none is configured.
        """
        return {
            "state_directory": str(home.state),
            "data_socket": str(home.data_socket),
            "cache": {
                "tiers": [
                    {"directory": str(tier.directory), "size_bytes": tier.size}
                    for tier in self.tiers(home, default_cache_bytes)
                ],
                "free_space_floor": self.cache.free_space_floor,
                "scrub_interval_days": self.cache.scrub_interval_days,
                "allow_network_filesystem": self.cache.allow_network_filesystem,
            },
            "stage": {
                "directory": str(self.stage_directory(home)),
                "size_bytes": self.stage_bytes(home, default_cache_bytes),
                "recovery_days": self.stage.recovery_days,
                "recovery_bytes": self.recovery_bytes(home, default_cache_bytes),
            },
            "memory_budget_bytes": self.memory.budget,
            "deadlines": {"foreground_s": self.deadlines.foreground, "attach_s": self.deadlines.attach},
            "source": {
                "max_requests": self.source.max_requests,
                "max_attempts": self.source.max_attempts,
                "max_bytes_per_s": self.source.max_rate,
                "max_upload_bytes_per_s": self.source.max_upload_rate,
            },
            "metrics_port": None if self.node.metrics_port == "off" else self.node.metrics_port,
            "max_connections": self.node.max_connections,
        }

    def tiers(self, home: Home, default_cache_bytes: int) -> Sequence[Tier]:
        """The tiers of the cache, the default one where none is configured."""
        if self.cache.tiers:
            return self.cache.tiers
        size = default_cache_bytes if self.cache.size is None else self.cache.size
        return (Tier(directory=self.cache.directory or home.cache, size=size),)

    def stage_directory(self, home: Home) -> Path:
        """Where written files wait. Not beside the cache, which people delete: nothing else has these bytes."""
        return self.stage.directory or home.stage

    def stage_bytes(self, home: Home, default_cache_bytes: int) -> int:
        """Most bytes that may wait."""
        if self.stage.size is not None:
            return self.stage.size
        return sum(tier.size for tier in self.tiers(home, default_cache_bytes)) // 2

    def recovery_bytes(self, home: Home, default_cache_bytes: int) -> int:
        """Most bytes of files that were never closed."""
        size = self.stage.recovery_size
        return self.stage_bytes(home, default_cache_bytes) // 10 if size is None else size


class Origin(NamedTuple):
    """One key as it ended up: its value and the layer that set it."""

    key: str
    value: Any
    origin: str


class Configuration(NamedTuple):
    """The settings and, for every key, where its value came from."""

    settings: Settings
    origins: list[Origin]


class _Layer(NamedTuple):
    name: str
    values: dict[str, Any]


def load(
    home: Home,
    *,
    flags: Sequence[str] = (),
    directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
    system_file: Path = SYSTEM_FILE,
) -> Configuration:
    """Reads every layer, checks it and merges them.

    Args:
        home: says where the user's file is.
        flags: ``key=value`` each, as after ``--set``.
        directory: where the search for the project's file begins; ``None`` for no project.
        environment: stands in for ``os.environ``.
        system_file: stands in for ``/etc/penstock/config.toml``.

    Raises:
        InvalidInputError: a file is not TOML, a key is unknown, a value cannot be right. It names the layer.
        PermissionDeniedError: a file cannot be read, or a project's file could be somebody else's.
    """
    variables = os.environ if environment is None else environment
    layers = [_file_layer("system", system_file), _file_layer("user", home.config)]
    project = None if directory is None else find_project_file(directory)
    if project is not None:
        _check_owner(project)
        layers.append(_file_layer("project", project))
    layers += [*_environment_layers(variables), *_flag_layers(flags)]
    merged: dict[str, Any] = {}
    origin_of: dict[str, str] = {}
    for layer in layers:
        _check_keys(layer)
        _check_values(layer)
        _merge(merged, layer.values)
        origin_of.update((key, layer.name) for key, _ in flatten(layer.values))
    settings = _validated(merged, "configuration")
    origins = [
        Origin(key, value, origin_of.get(key, "default")) for key, value in flatten(settings.model_dump(mode="json"))
    ]
    _check_together(settings, origin_of)
    return Configuration(settings, origins)


def find_project_file(directory: Path) -> Path | None:
    """The ``penstock.toml`` of the nearest directory upwards that has one."""
    for candidate in (directory, *directory.parents):
        if (candidate / PROJECT_FILE_NAME).is_file():
            return candidate / PROJECT_FILE_NAME
    return None


def flatten(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested sections as (dotted key, value), in order."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def key_documentation() -> list[tuple[str, str, Any, str]]:
    """Every key as (dotted key, type, default, documentation): the reference is made of it."""
    rows = []
    for section, field in Settings.model_fields.items():
        for name, key in cast("type[BaseModel]", field.annotation).model_fields.items():
            rows.append((f"{section}.{name}", _type_name(key), key.default, key.description or ""))
    return rows


def _type_name(field: FieldInfo) -> str:
    kind = next((each for each in field.metadata if isinstance(each, _Kind)), None) or _kind_in(field.annotation)
    if kind is not None:
        return kind.name
    if field.annotation == tuple[Tier, ...]:
        return "list of {directory, size}"
    plain = {int: "integer", float: "number", bool: "true or false"}.get(field.annotation)  # type: ignore[arg-type]
    if plain is not None:
        return plain
    choices = [value for value in get_args(field.annotation) if isinstance(value, str)]
    return " or ".join(choices) if choices else "integer or off"


def _kind_in(annotation: Any) -> _Kind | None:
    for part in (annotation, *get_args(annotation)):
        for metadata in getattr(part, "__metadata__", ()):
            if isinstance(metadata, _Kind):
                return metadata
    return None


def _file_layer(name: str, path: Path) -> _Layer:
    label = f"{name}: {path}"
    try:
        with path.open("rb") as stream:
            return _Layer(label, tomllib.load(stream))
    except (FileNotFoundError, NotADirectoryError):
        return _Layer(label, {})
    except tomllib.TOMLDecodeError as error:
        raise InvalidInputError(f"read {path}", f"it is not TOML: {error}", "fix the line") from None
    except UnicodeDecodeError:
        raise InvalidInputError(f"read {path}", "it is not UTF-8 text", "save it as UTF-8") from None
    except OSError as error:
        raise PermissionDeniedError(f"read {path}", str(error.strerror), "fix its rights") from None


def _check_owner(path: Path) -> None:
    facts = path.stat()
    if facts.st_uid not in (0, os.getuid()) or facts.st_mode & 0o002:
        raise PermissionDeniedError(
            f"read {path}",
            "somebody else could have written it: it belongs to another user, or everybody may write it",
            "take it over with chown and chmod o-w, or start from another directory",
        )


def _environment_layers(variables: Mapping[str, str]) -> Iterator[_Layer]:
    ours = {name: text for name, text in variables.items() if name.upper().startswith(_PREFIX)}
    for name, text in ours.items():
        if name in _NOT_SETTINGS or _SERVICE_VARIABLES.fullmatch(name):
            continue
        key = name[len(_PREFIX) :].lower().replace("__", ".")
        yield _Layer(f"environment: {name}", _nested(key, _parsed_variable(name, text)))


def _parsed_variable(name: str, text: str) -> Any:
    """What pydantic-settings makes of one variable: JSON where the key is no plain value, else the text."""

    class OneVariable(EnvSettingsSource):
        def _load_env_vars(self) -> Mapping[str, str | None]:
            return {name.lower(): text}

    try:
        values = OneVariable(Settings)()
    except SettingsError:
        raise InvalidInputError(
            f"read {name}", "it is not what the key takes", "write a list or section as JSON"
        ) from None
    leaves = list(flatten(values))
    return leaves[0][1] if len(leaves) == 1 else text


def _flag_layers(flags: Sequence[str]) -> Iterator[_Layer]:
    for flag in flags:
        key, separator, text = flag.partition("=")
        if not separator or not key.strip():
            raise InvalidInputError(f"read --set {flag!r}", "it is not key=value", "write --set cache.size=10GiB")
        value: Any = text
        if text[:1] in ("[", "{"):
            try:
                value = json.loads(text)
            except ValueError as error:
                raise InvalidInputError(f"read --set {flag!r}", f"its value is not JSON: {error}") from None
        yield _Layer(f"flag: --set {key.strip()}", _nested(key.strip(), value))


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def _check_keys(layer: _Layer) -> None:
    known = [key for key, *_ in key_documentation()]
    sections = set(Settings.model_fields)
    for section, value in layer.values.items():
        if section in sections and not isinstance(value, Mapping):
            raise InvalidInputError(_place(layer, section), "it is a section, not a value", f"write [{section}]")
    for key, _ in flatten(layer.values):
        if key not in known:
            raise InvalidInputError(_place(layer, key), "there is no such key", _suggestion(key, known))
    for section, value in layer.values.items():
        if section not in sections and not isinstance(value, Mapping):
            continue
        if section not in sections:
            raise InvalidInputError(_place(layer, section), "there is no such section", _suggestion(section, known))


def _suggestion(key: str, known: list[str]) -> str:
    by_name = {each.rpartition(".")[2]: each for each in reversed(known)}
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not close:
        close = [by_name[name] for name in difflib.get_close_matches(key.rpartition(".")[2], by_name, n=1, cutoff=0.7)]
    if close:
        return f"did you mean {close[0]}?"
    return "`penstock config show` lists every key"


def _check_values(layer: _Layer) -> None:
    _validated(layer.values, layer.name)


def _validated(values: dict[str, Any], name: str) -> Settings:
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if not isinstance(part, str) or part in _all_names())
        raise InvalidInputError(f"read {key} ({name})", _reason(first), f"got {first['input']!r}") from None


def _all_names() -> set[str]:
    names = set(Settings.model_fields) | set(Tier.model_fields)
    return names | {key.rpartition(".")[2] for key, *_ in key_documentation()}


_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def _reason(error: Any) -> str:
    if error["type"] in _BOUNDS:
        name, words = _BOUNDS[error["type"]]
        bound = error["ctx"][name]
        return f"it must be {words} {format_size(bound) if bound >= 1 << 20 else bound}"
    text = str(error["msg"]).removeprefix("Value error, ")
    return text[0].lower() + text[1:]


def _place(layer: _Layer, key: str) -> str:
    return f"read {key} ({layer.name})"


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, Mapping):
            _merge(into.setdefault(name, {}), value)
        else:
            into[name] = value


def _check_together(settings: Settings, origin_of: Mapping[str, str]) -> None:
    if settings.cache.tiers and ("cache.size" in origin_of or "cache.directory" in origin_of):
        other = "cache.size" if "cache.size" in origin_of else "cache.directory"
        raise InvalidInputError(
            f"read cache.tiers ({origin_of['cache.tiers']})",
            f"{other} is set too ({origin_of[other]}), and tiers say both by themselves",
            "keep one of the two forms",
        )
