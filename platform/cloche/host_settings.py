"""Settings of a host that runs sandboxes, which :mod:`cloche.config` puts together with the others."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cloche.setting_groups import Bytes, Group, Milliseconds, Texts


class SandboxSettings(Group):
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


class PoolSettings(Group):
    enabled: bool = Field(True, description="Keep sandboxes ready before their jobs come.")
    min: int = Field(
        0, ge=0, le=64, description="Sandboxes kept ready for each plugin version in use, also when nobody asks."
    )
    max: int = Field(8, ge=0, le=256, description="Sandboxes kept ready for one plugin version at most.")
    idle: Milliseconds = Field(
        600_000, description="How long one may wait, and how long a version that nobody asks for keeps any."
    )
    memory: Bytes = Field(
        0,
        description="Memory that all waiting sandboxes and cells may use together; 0 takes an eighth of the host's.",
    )
    fill_rate: float = Field(10.0, gt=0, le=1_000, description="Sandboxes made ahead per second at most.")


class EgressSettings(Group):
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
        1_024,
        ge=1,
        le=65_536,
        description="Connections of all jobs of this host open at once; of the last eighth of them no job gets more than an equal share.",
    )
    max_bytes: Bytes = Field(1 << 30, description="Bytes one attempt of a job may send and receive.")
    idle: Milliseconds = Field(60_000, description="A connection on which nothing moves for this long is cut.")
    max_time: Milliseconds = Field(3_600_000, description="Longest life of one connection.")
    uid: int = Field(209_999, ge=1_000, description="User id that the egress proxy takes when it is started as root.")


class CellSettings(Group):
    enabled: bool = Field(
        True,
        description="Let plugins that ask for isolation `namespace` have it, where the host can; else `container`.",
    )
    slots: int = Field(4, ge=1, le=16, description="Jobs that one warm container of level `namespace` runs at once.")
    preload: bool = Field(
        True,
        description="Import what plugins name in `[sandbox] preload` once for each slot; else each cell imports it itself.",
    )
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
