"""Settings of the server that answers requests: sizes, slow clients, proxies, other origins, rate limits, who sees metrics."""

from __future__ import annotations

from pydantic import Field

from cloche.setting_groups import Bytes, Group, Milliseconds, Texts


class ServerSettings(Group):
    host: str = Field("127.0.0.1", description="Address the web server listens on; 0.0.0.0 only when asked for.")
    port: int = Field(8080, ge=0, le=65535, description="TCP port of the web server; 0 takes a free one.")
    threads: int = Field(48, ge=4, le=512, description="Threads that answer requests in the web process.")
    max_waits: int = Field(
        12, ge=1, description="Long polls and live streams answered at once; below `threads`, or nothing else is."
    )
    max_body: Bytes = Field(1 << 20, description="Largest JSON body.")
    max_batch: Bytes = Field(
        16 << 20, description="Largest JSON body of a batch of jobs; each job in it is bound by `max_body`."
    )
    max_upload: Bytes = Field(1 << 30, description="Largest uploaded file.")
    secure_cookies: bool = Field(
        False, description="Send session cookies over TLS only; set it wherever TLS ends in front."
    )
    patience: Milliseconds = Field(
        20_000,
        description="How long a client may keep a thread waiting for its body, or with its answer, beyond what 4 KB a second take.",
    )
    trusted_proxies: Texts = Field(
        "",
        description="Addresses and networks of the proxies in front, whose word about client, scheme and host is taken; nobody's when empty.",
    )
    proxy_headers: str = Field(
        "x-forwarded",
        pattern="^(x-forwarded|forwarded)$",
        description="Headers that those proxies write: `x-forwarded` (`-for`, `-proto`, `-host`) or `forwarded` (RFC 7239); others are not read.",
    )
    allowed_hosts: Texts = Field(
        "",
        description="Hosts that the server answers to (`cloche.example`, `*.example`); any when empty. `/healthz` is answered anyhow.",
    )
    cors_origins: Texts = Field(
        "",
        description="Exact origins (`https://app.example`) whose pages may call the API with tokens; none when empty.",
    )
    session_idle: Milliseconds = Field(8 * 3_600_000, ge=1_000, description="A session unused for this long ends.")
    session_life: Milliseconds = Field(
        7 * 86_400_000, ge=1_000, description="A session ends this long after its sign-in, used or not."
    )


class RateSettings(Group):
    """Requests a minute; 0 is no limit. Bursts up to a minute's worth pass at once."""

    address: int = Field(60_000, ge=0, description="Requests a minute from one address (IPv6: one /64); 0 is no limit.")
    user: int = Field(
        30_000, ge=0, description="Requests a minute of one user, over all sessions and tokens; 0 is no limit."
    )
    token: int = Field(30_000, ge=0, description="Requests a minute with one token; 0 is no limit.")


class MetricsSettings(Group):
    enabled: bool = Field(True, description="Serve Prometheus metrics at /metrics.")
    allow: Texts = Field(
        "127.0.0.0/8,::1",
        description="Addresses and networks that read /metrics, and what /health and /readyz tell in detail, without a permission.",
    )
