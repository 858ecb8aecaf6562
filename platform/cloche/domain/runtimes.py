"""What a sandbox runs on: ``runc`` shares the host's kernel, ``runsc`` (gVisor) brings a kernel of its own. Pure."""

from __future__ import annotations

RUNC = "runc"
RUNSC = "runsc"
RUNTIMES = (RUNC, RUNSC)
AS_ASKED = "plugin"  # the policy under which a plugin's manifest decides


class RuntimeRefused(ValueError):
    """The platform's policy does not allow what was asked."""


def decided(asked: str, policy: str) -> str:
    """The runtime of a sandbox whose plugin asked for one. A policy can only make it stronger, or refuse.

    ``policy``: ``runc`` (there is no gVisor here), ``plugin`` (as asked) or ``runsc`` (always gVisor).

    Raises:
        RuntimeRefused: gVisor was asked for where the policy is ``runc``.
    """
    if policy == RUNSC:
        return RUNSC
    if policy == RUNC and asked == RUNSC:
        raise RuntimeRefused(
            "the plugin asks for runtime runsc (gVisor), and CLOCHE_SANDBOX_RUNTIME is runc; set it to plugin or runsc"
        )
    return asked
