"""One frozen ``Settings``, read once at the entry of a process.

Sources, strongest first: arguments, ``CLOCHE_…`` environment, ``.env`` in the working directory, ``secrets_dir``, then the file named by
``CLOCHE_CONFIG`` (TOML or YAML). ``CLOCHE_SERVER_PORT`` is ``[server] port``. An unknown name is an error at every level.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from cloche.errors import SettingsError
from cloche.host_settings import CellSettings, EgressSettings, PoolSettings, SandboxSettings
from cloche.netnames import Hosts, Networks, origins
from cloche.server_settings import MetricsSettings, RateSettings, ServerSettings
from cloche.setting_groups import (
    AuditSettings,
    CallbackSettings,
    ExtensionSettings,
    Milliseconds,
    QuotaSettings,
    SecretSettings,
    SigninSettings,
    Texts,
    parse_labels,
)
from cloche.setting_groups import Group as _Group

_QUEUE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")  # domain.queues has its meaning
_MAX_QUEUES = 64  # of one worker: it asks for all of them at once
_DATABASES = ("sqlite:///", "postgresql://", "postgresql+psycopg://")


class AdminSettings(_Group):
    password: SecretStr | None = Field(
        None, description="Password of user `admin` at the first start; generated and printed once when absent."
    )


class DatabaseSettings(_Group):
    url: SecretStr | None = Field(
        None,
        description="`postgresql://USER:PASSWORD@HOST/DATABASE` or `sqlite:////PATH`; SQLite under the home directory when absent.",
    )
    owner_url: SecretStr | None = Field(
        None,
        description="PostgreSQL: the URL of the role that owns the tables; of `db upgrade` and `audit prune` alone, so that Cloche itself"
        " cannot change the record.",
    )
    pool_size: int = Field(16, ge=2, le=500, description="Connections to PostgreSQL that one process has at most.")


class RedisSettings(_Group):
    url: SecretStr | None = Field(
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
    queues: Texts = Field(
        "default,sensitive",
        description="Queues that workers take jobs from, in turn: `default`, `sensitive`, and those that were created; at most 64.",
    )
    labels: Texts = Field(
        "", description="What these workers are, as `name=value`, for operators and for rules that route jobs."
    )
    poll_interval: Milliseconds = Field(
        1_000, description="Longest wait for a wake-up before looking at the queue again."
    )
    job_timeout: Milliseconds = Field(300_000, description="Time limit of a job whose plugin names none.")
    grace: Milliseconds = Field(10_000, description="How long running jobs may finish after SIGTERM.")
    lease: Milliseconds = Field(15_000, description="How long a worker's right to an attempt lasts without renewal.")
    heartbeat: Milliseconds = Field(4_000, description="How often leases are renewed.")

    @property
    def queue_names(self) -> tuple[str, ...]:
        return tuple(self.queues.replace(",", " ").split())

    @property
    def label_map(self) -> dict[str, str]:
        return parse_labels(self.labels)


class RetrySettings(_Group):
    max_retries: int = Field(3, ge=0, le=100, description="Retries of a job whose plugin and body name none.")
    platform_budget: int = Field(
        20, ge=1, description="Platform failures an accepted job survives before it is a dead letter."
    )
    worker_deaths: int = Field(3, ge=1, description="Workers a job may take down before it is a dead letter.")


class RetentionSettings(_Group):
    jobs: Milliseconds = Field(
        0,
        description="Age after their end at which completed and canceled jobs are removed with logs and trace; 0 keeps them.",
    )
    dead_letters: Milliseconds = Field(0, description="The same for failed jobs; 0 keeps them.")


class SchedulerSettings(_Group):
    enabled: bool = Field(True, description="Run the scheduler process (relay, sweeper, sealer) under `up`.")
    poll_interval: Milliseconds = Field(
        500, description="How often due jobs, lapsed leases and the outbox are looked at."
    )
    batch_size: int = Field(100, ge=1, le=10_000, description="Rows handled in one go by relay and sweeper.")


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
    failpoints: Texts = Field("", description="For tests: where processes fail on purpose (docs/reliability.md).")
    server: ServerSettings = ServerSettings()
    admin: AdminSettings = AdminSettings()
    signin: SigninSettings = SigninSettings()
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
    retention: RetentionSettings = RetentionSettings()
    callbacks: CallbackSettings = CallbackSettings()
    quota: QuotaSettings = QuotaSettings()
    extension: ExtensionSettings = ExtensionSettings()
    audit: AuditSettings = AuditSettings()
    secret: SecretSettings = SecretSettings()
    rate: RateSettings = RateSettings()
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
        """It may hold a password."""
        given = self.database.url
        return given.get_secret_value() if given else f"sqlite:///{self.home / 'cloche.db'}"

    @property
    def owner_url(self) -> str:
        """Of the role that may change the schema and delete old audit events: the platform's own unless another is named."""
        given = self.database.owner_url
        return given.get_secret_value() if given else self.database_url

    @property
    def redis_url(self) -> str:
        """It may hold a password."""
        given = self.redis.url
        return given.get_secret_value() if given else f"unix://{self.home / 'run' / 'valkey.sock'}"

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
    _check_names(settings)
    _check_together(settings)
    return settings.model_copy(update={"home": settings.home.expanduser().absolute()})


def _check_names(settings: Settings) -> None:
    """Refuse networks, hosts and origins that are none."""
    server = settings.server
    checks: tuple[tuple[str, Callable[[str], object], str], ...] = (
        ("server.trusted_proxies", Networks, server.trusted_proxies),
        ("server.allowed_hosts", Hosts, server.allowed_hosts),
        ("server.cors_origins", origins, server.cors_origins),
        ("metrics.allow", Networks, settings.metrics.allow),
    )
    for name, read, value in checks:
        try:
            read(value)
        except ValueError as error:
            raise SettingsError(f"{name}: {error}") from None


def _check_together(settings: Settings) -> None:
    """Refuse values that cannot work beside each other."""
    worker, database, queue = settings.worker, settings.database_url, settings.redis_url
    if not database.startswith(_DATABASES) or database in _DATABASES:
        raise SettingsError(
            "database.url: write sqlite:////srv/cloche/cloche.db or postgresql://USER:PASSWORD@HOST:5432/DATABASE"
        )
    if not queue.startswith(("redis://", "rediss://", "unix://")):
        raise SettingsError("redis.url: write redis://HOST:PORT/0, rediss://… or unix:///path/to/socket")
    names = worker.queue_names
    if not 0 < len(names) <= _MAX_QUEUES or len(set(names)) < len(names):
        raise SettingsError(f"worker.queues: name at least one queue and at most {_MAX_QUEUES}, each once")
    for name in names:
        if not _QUEUE_NAME.fullmatch(name):
            words = "a queue's name is a small letter, then up to 63 of small letters, digits, '_' and '-'"
            raise SettingsError(f"worker.queues: {name[:70]!r} is no queue's name; {words}")
    try:
        parse_labels(worker.labels)
    except ValueError as error:
        raise SettingsError(f"worker.labels: {error}") from None
    if worker.heartbeat * 3 > worker.lease:
        raise SettingsError("worker.heartbeat is too long: three of them have to fit into worker.lease")
    for name, value in (
        ("worker.poll_interval", worker.poll_interval),
        ("scheduler.poll_interval", settings.scheduler.poll_interval),
    ):
        if value < 50:
            raise SettingsError(f"{name} is at least 50ms")
    for name in ("jobs", "dead_letters"):
        if 0 < getattr(settings.retention, name) < 86_400_000:
            raise SettingsError(f"retention.{name} is at least one day, as long as Idempotency-Keys hold; or 0")
    if settings.audit.checkpoint_interval < 1_000:
        raise SettingsError("audit.checkpoint_interval is at least 1s")
    if settings.server.patience < 1_000:
        raise SettingsError("server.patience is at least 1s")
    if not 1_000 <= settings.callbacks.timeout <= 60_000:
        raise SettingsError("callbacks.timeout lies between 1s and 60s")
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
