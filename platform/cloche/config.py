"""One frozen ``Settings``, read once at the entry of a process.

Sources, strongest first: arguments, ``CLOCHE_…`` environment, ``.env`` in the working directory, ``secrets_dir``, then the file named by
``CLOCHE_CONFIG`` (TOML or YAML). ``CLOCHE_SERVER_PORT`` is ``[server] port``. An unknown name is an error at every level.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from cloche.clock import parse_duration
from cloche.errors import SettingsError
from cloche.units import parse_size


def _number(value: Any) -> Any:
    """Text of digits, as it comes from the environment, as a number."""
    return int(value) if isinstance(value, str) and value.isdigit() else value


def _joined(value: Any) -> Any:
    """A list, as it comes from a file, as the text that the environment would hold."""
    return ",".join(str(item) for item in value) if isinstance(value, list) else value


Milliseconds = Annotated[int, BeforeValidator(lambda value: parse_duration(_number(value)))]
Bytes = Annotated[int, BeforeValidator(lambda value: parse_size(_number(value)))]
Texts = Annotated[str, BeforeValidator(_joined)]  # entries between commas or spaces; a file may have a list


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerSettings(_Group):
    host: str = Field("127.0.0.1", description="Address the web server listens on; 0.0.0.0 only when asked for.")
    port: int = Field(8080, ge=0, le=65535, description="TCP port of the web server; 0 takes a free one.")
    threads: int = Field(32, ge=4, le=512, description="Threads that answer requests in the web process.")
    max_waits: int = Field(
        12, ge=1, description="Long polls and live streams answered at once; below `threads`, or nothing else is."
    )
    max_body: Bytes = Field(1 << 20, description="Largest JSON body.")
    max_upload: Bytes = Field(1 << 30, description="Largest uploaded file.")
    secure_cookies: bool = Field(
        False, description="Send session cookies over TLS only; set it wherever TLS ends in front."
    )
    session_idle: Milliseconds = Field(8 * 3_600_000, description="A session unused for this long ends.")


class AdminSettings(_Group):
    password: SecretStr | None = Field(
        None, description="Password of user `admin` at the first start; generated and printed once when absent."
    )


class DatabaseSettings(_Group):
    url: str | None = Field(None, description="SQLAlchemy URL; SQLite under the home directory when absent.")


class RedisSettings(_Group):
    url: str | None = Field(
        None, description="redis:// or unix:// URL; an embedded Valkey under the home directory when absent."
    )


class PluginSettings(_Group):
    path: str = Field("", description="Further folders of <name>/<version>/, separated by colons.")
    wheel_cache: Path | None = Field(None, description="Folder of downloaded wheels that several homes may share.")


class RemoteSettings(_Group):
    allow_private: bool = Field(False, description="Let remotes name loopback, private and link-local addresses.")


class WorkerSettings(_Group):
    count: int = Field(1, ge=0, le=64, description="Worker processes started by `up`.")
    slots: int = Field(2, ge=1, le=256, description="Jobs one worker process runs at once.")
    poll_interval: Milliseconds = Field(
        1_000, description="Longest wait for a wake-up before looking at the queue again."
    )
    job_timeout: Milliseconds = Field(300_000, description="Time limit of a job whose plugin names none.")
    grace: Milliseconds = Field(10_000, description="How long running jobs may finish after SIGTERM.")
    lease: Milliseconds = Field(15_000, description="How long a worker's right to an attempt lasts without renewal.")
    heartbeat: Milliseconds = Field(4_000, description="How often leases are renewed.")


class SandboxSettings(_Group):
    uid_base: int = Field(210_000, ge=1_000, description="First of the user ids that sandboxes run under.")
    uid_count: int = Field(4_096, ge=16, description="How many such user ids there are.")
    image: str = Field(
        "cloche-sandbox:1", description="Tag of the sandbox image on this host; jobs run its config digest."
    )
    docker_socket: str = Field("/var/run/docker.sock", description="The engine's socket. Only sandboxd opens it.")
    max_running: int = Field(64, ge=1, description="Sandboxes alive at once on this host.")
    runtime: Literal["runc", "plugin", "runsc"] = Field(
        "plugin",
        description="`plugin`: the runtime each plugin asks for; `runsc`: gVisor for every job; `runc`: plugins that ask for gVisor are refused.",
    )
    runsc_name: str = Field(
        "runsc",
        pattern="^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}$",
        description="Name under which gVisor is registered with the engine.",
    )


class PoolSettings(_Group):
    enabled: bool = Field(True, description="Keep sandboxes ready before their jobs come.")
    min: int = Field(
        0, ge=0, le=64, description="Sandboxes kept ready for each plugin version in use, also when nobody asks."
    )
    max: int = Field(8, ge=0, le=256, description="Sandboxes kept ready for one plugin version at most.")
    idle: Milliseconds = Field(
        600_000, description="How long one may wait, and how long a version that nobody asks for keeps any."
    )
    memory: Bytes = Field(
        0, description="Memory that all waiting sandboxes may use together; 0 takes a sixteenth of the host's."
    )
    fill_rate: float = Field(10.0, gt=0, le=1_000, description="Sandboxes made ahead per second at most.")


class EgressSettings(_Group):
    enabled: bool = Field(True, description="Run the egress proxy under `up`; without it no job has a network.")
    allow: Texts = Field(
        "",
        description="What jobs of this platform may reach at most: `host:port`, `*.domain:port`, `*:443`; nothing when empty.",
    )
    private: Texts = Field(
        "",
        description="Addresses and networks that are not public and may be reached all the same, by hosts that `allow` names without a wildcard.",
    )
    connections: int = Field(32, ge=1, le=1_024, description="Connections of one job open at once; further ones wait.")
    connections_total: int = Field(1_000, ge=1, le=1_000_000, description="Connections one attempt of a job may make.")
    host_connections: int = Field(
        1_024, ge=1, le=65_536, description="Connections of all jobs of this host open at once."
    )
    max_bytes: Bytes = Field(1 << 30, description="Bytes one attempt of a job may send and receive.")
    idle: Milliseconds = Field(60_000, description="A connection on which nothing moves for this long is cut.")
    max_time: Milliseconds = Field(3_600_000, description="Longest life of one connection.")
    uid: int = Field(209_999, ge=1_000, description="User id that the egress proxy takes when it is started as root.")


class CellSettings(_Group):
    enabled: bool = Field(
        True,
        description="Let plugins that ask for isolation `namespace` have it, where the host can; else `container`.",
    )
    slots: int = Field(4, ge=1, le=16, description="Jobs that one warm container of level `namespace` runs at once.")
    containers: int = Field(8, ge=1, le=256, description="Such containers alive at once on this host.")
    jobs: int = Field(5_000, ge=1, description="Jobs after which such a container is replaced.")
    lifetime: Milliseconds = Field(3_600_000, description="Age at which such a container is replaced.")
    idle: Milliseconds = Field(300_000, description="How long such a container waits for a job before it goes.")
    uid_base: int = Field(
        327_680,
        ge=1_024,
        multiple_of=64,
        description="First of the user ids that cells run under, 64 for each container.",
    )
    uid_blocks: int = Field(256, ge=1, description="How many such ranges of 64 user ids there are.")


class RetrySettings(_Group):
    max_retries: int = Field(3, ge=0, le=100, description="Retries of a job whose plugin and body name none.")
    platform_budget: int = Field(
        20, ge=1, description="Platform failures an accepted job survives before it is a dead letter."
    )
    worker_deaths: int = Field(3, ge=1, description="Workers a job may take down before it is a dead letter.")


class SchedulerSettings(_Group):
    enabled: bool = Field(True, description="Run the scheduler process (relay, sweeper, sealer) under `up`.")
    poll_interval: Milliseconds = Field(
        500, description="How often due jobs, lapsed leases and the outbox are looked at."
    )
    batch_size: int = Field(100, ge=1, le=10_000, description="Rows handled in one go by relay and sweeper.")


class MetricsSettings(_Group):
    enabled: bool = Field(True, description="Serve Prometheus metrics at /metrics.")


class LoggingSettings(_Group):
    level: str = Field("info", pattern="^(debug|info|warning|error)$", description="Lowest level written.")
    format: str = Field("json", pattern="^(json|console)$", description="One JSON object a line, or text for people.")


class Settings(BaseSettings):
    """Everything an operator can set. Printing it shows no secret."""

    model_config = SettingsConfigDict(
        env_prefix="CLOCHE_",
        env_nested_delimiter="_",
        env_nested_max_split=1,
        env_file=".env",
        frozen=True,
        extra="forbid",
    )

    home: Path = Field(Path("~/.cloche"), description="Where Cloche keeps its database, files, keys and sockets.")
    config: Path | None = Field(None, description="A TOML or YAML file with these settings.")
    secrets_dir: Path | None = Field(None, description="A folder of files named like the variables, for secrets.")
    server: ServerSettings = ServerSettings()
    admin: AdminSettings = AdminSettings()
    database: DatabaseSettings = DatabaseSettings()
    redis: RedisSettings = RedisSettings()
    plugin: PluginSettings = PluginSettings()
    remote: RemoteSettings = RemoteSettings()
    worker: WorkerSettings = WorkerSettings()
    sandbox: SandboxSettings = SandboxSettings()
    pool: PoolSettings = PoolSettings()
    egress: EgressSettings = EgressSettings()
    cells: CellSettings = CellSettings()
    retry: RetrySettings = RetrySettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    metrics: MetricsSettings = MetricsSettings()
    logging: LoggingSettings = LoggingSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic-settings passes it by name
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, dotenv_settings, file_secret_settings, init_settings

    @property
    def database_url(self) -> str:
        return self.database.url or f"sqlite:///{self.home / 'cloche.db'}"

    @property
    def redis_url(self) -> str:
        return self.redis.url or f"unix://{self.home / 'run' / 'valkey.sock'}"

    @property
    def sandboxd_socket(self) -> Path:
        return self.home / "run" / "sandboxd.sock"

    @property
    def egress_socket(self) -> Path:
        return self.home / "run" / "egress.sock"

    @property
    def plugin_folders(self) -> tuple[Path, ...]:
        """Folders of ``<name>/<version>/``: those shipped with Cloche, then the operator's."""
        own = tuple(Path(part).expanduser() for part in self.plugin.path.split(":") if part)
        return (_shipped_plugins(), *own)


def _shipped_plugins() -> Path:
    package = Path(__file__).resolve().parent
    checkout = package.parents[1] / "plugins"
    return checkout if checkout.is_dir() else package / "_plugins"


def load(**overrides: Any) -> Settings:
    """Read every source and return the settings; ``overrides`` win over all.

    Raises:
        SettingsError: a named file is missing or malformed, or a name or value is wrong.
    """
    name = overrides.get("config") or os.environ.get("CLOCHE_CONFIG")
    base = _read_file(Path(name).expanduser()) if name else {}
    secrets = overrides.get("secrets_dir") or os.environ.get("CLOCHE_SECRETS_DIR") or base.get("secrets_dir")
    if secrets and not Path(secrets).is_dir():
        raise SettingsError(f"secrets_dir {secrets} is not a folder")
    _refuse_unknown(os.environ)
    try:
        settings = Settings(_secrets_dir=secrets, **base)
        settings = _merged(settings, overrides)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None
    _check_together(settings)
    return settings.model_copy(update={"home": settings.home.expanduser().absolute()})


def _check_together(settings: Settings) -> None:
    """Refuse values that cannot work beside each other."""
    worker, database, queue = settings.worker, settings.database_url, settings.redis_url
    if not database.startswith("sqlite:///") or len(database) <= len("sqlite:///"):
        raise SettingsError("database.url: this version stores in SQLite, such as sqlite:////srv/cloche/cloche.db")
    if not queue.startswith(("redis://", "rediss://", "unix://")):
        raise SettingsError("redis.url: write redis://HOST:PORT/0, rediss://… or unix:///path/to/socket")
    if worker.heartbeat * 3 > worker.lease:
        raise SettingsError("worker.heartbeat is too long: three of them have to fit into worker.lease")
    for name, value in (
        ("worker.poll_interval", worker.poll_interval),
        ("scheduler.poll_interval", settings.scheduler.poll_interval),
    ):
        if value < 50:
            raise SettingsError(f"{name} is at least 50ms")
    if settings.pool.min > settings.pool.max:
        raise SettingsError("pool.min is more than pool.max")
    if settings.pool.idle < 1_000:
        raise SettingsError("pool.idle is at least 1s")
    _check_user_ids(settings)
    if worker.count * worker.slots > settings.sandbox.max_running:
        raise SettingsError(
            "worker.count × worker.slots is more than sandbox.max_running: raise that, or take fewer slots"
        )


def _merged(settings: Settings, overrides: Mapping[str, Any]) -> Settings:
    """The settings with ``overrides`` laid over: a mapping changes the named fields of its group, the rest stays."""
    update: dict[str, Any] = {}
    for name, value in overrides.items():
        if name not in Settings.model_fields:
            raise SettingsError(f"{name} is not a setting")
        group = getattr(settings, name)
        if isinstance(group, _Group):
            changed = type(group).model_validate(value)
            update[name] = group.model_copy(update={field: getattr(changed, field) for field in value})
        else:
            update[name] = Path(value) if value is not None else None
    return settings.model_copy(update=update)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise SettingsError(f"cannot read the settings file {path}: {error.strerror}") from None
    try:
        data = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except (tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path} is not well formed: {error}") from None
    if not isinstance(data, dict):
        raise SettingsError(f"{path} holds no table of settings")
    return data


def environment_names() -> dict[str, str]:
    """Every environment name with its description, as ``docs/settings.md`` lists them."""
    names = {}
    for name, info in Settings.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, _Group):
            for inner, detail in info.annotation.model_fields.items():
                names[f"CLOCHE_{name}_{inner}".upper()] = detail.description or ""
        else:
            names[f"CLOCHE_{name}".upper()] = info.description or ""
    return names


CLIENT_NAMES = frozenset({"CLOCHE_URL", "CLOCHE_TOKEN"})  # read by the command line's client, never by the platform


def _check_user_ids(settings: Settings) -> None:
    """Sandboxes, cells and the egress proxy have user ids of their own each."""
    sandbox, cells, egress = settings.sandbox, settings.cells, settings.egress.uid
    last, last_cell = sandbox.uid_base + sandbox.uid_count, cells.uid_base + 64 * cells.uid_blocks
    if sandbox.uid_base <= egress < last:
        raise SettingsError("egress.uid is one of the sandboxes' own user ids (sandbox.uid_base): choose another")
    if cells.uid_base <= egress < last_cell:
        raise SettingsError("egress.uid is one of the cells' own user ids (cells.uid_base): choose another")
    if cells.uid_base < last and sandbox.uid_base < last_cell:
        raise SettingsError("cells.uid_base: its user ids are those of sandbox.uid_base too; move one of the ranges")


def _refuse_unknown(environment: Mapping[str, str]) -> None:
    known = environment_names().keys() | CLIENT_NAMES
    for name in environment:
        if name.startswith("CLOCHE_") and name.upper() not in known:
            raise SettingsError(f"{name} is not a setting; docs/settings.md lists all of them")


def _explain(error: ValidationError) -> str:
    parts = []
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        where = ".".join(str(step) for step in item["loc"])
        parts.append(f"{where}: {item['msg']}")
    return "settings: " + "; ".join(parts)
