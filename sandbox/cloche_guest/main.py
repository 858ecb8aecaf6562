"""The agent: loads the plugin, says ``ready``, takes one job, sends its result, then waits to be killed."""

from __future__ import annotations

import io
import os
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pluggy

from cloche_guest import first, job_secrets, loader
from cloche_guest.job import Job
from cloche_guest.link import Link, take_standard_streams
from cloche_guest.protocol import HEADER, MAX_MESSAGE, MAX_TRACEBACK, PROTOCOL, FrameTooLarge, ProtocolError, encode
from cloche_guest.relay import Relay

if TYPE_CHECKING:
    from cloche_guest.network import Network

PLUGIN = Path("/cloche/plugin")
WHEELS = Path("/cloche/wheels")
INPUTS = Path("/job/in")
OUT = Path("/job/out")
SECRETS = Path(job_secrets.PLACE)
GATE_WORD = "gate"  # the only argument there is, where limits cannot hold from the start
_AROUND_RESULT = len(encode({"value": None})) - len("null")  # bytes of a frame that are not the result's own JSON


class Agent:
    """One sandbox's worth of work. The main thread runs the plugin; another reads frames."""

    def __init__(self, link: Link, relay: Relay, inputs: Path, out: Path, place: Path = SECRETS) -> None:
        self._link = link
        self._relay = relay
        self._inputs = inputs
        self._out = out
        self._place = place  # of the secrets' files
        self._secrets: dict[str, str] = {}
        self._manager: pluggy.PluginManager | None = None
        self._frame: dict[str, Any] = {}
        self._job: Job | None = None
        self._arrived = threading.Event()

    def serve(self, plugin: Path, wheels: Path, prepared: loader.Prepared | None = None) -> None:
        """Load, wait for the job, run it. Returns after the result or error frame."""
        threading.Thread(target=self._read, name="frames", daemon=True).start()
        try:
            manager = loader.load(plugin, wheels, prepared)
            manager.hook.setup()
        except BaseException as error:  # noqa: BLE001 - a plugin may raise anything, SystemExit included
            self._fail("plugin_failed", f"the plugin could not be loaded: {_say(error)}", error)
            return
        self._manager = manager
        self._flush()
        self._link.send({"type": "ready", "protocol": PROTOCOL, "python": python_version()})
        self._arrived.wait()
        self._run(manager)

    def _run(self, manager: pluggy.PluginManager) -> None:
        frame = self._frame
        limits = frame["limits"]
        self._relay.allow(int(limits["log"]))
        outside = way_out(frame.get("egress"))
        job = Job(
            id=str(frame["id"]),
            attempt=int(frame["attempt"]),
            payload=frame["payload"],
            inputs=[self._inputs / name for name in frame["inputs"]],
            out=self._out,
            reporter=self._relay,
            outside=outside,
            secrets=self._secrets,
        )
        self._job = job
        try:
            job_secrets.write(self._secrets, self._place)
            value = manager.hook.run(job=job)
        except SystemExit as error:
            self._fail("no_result", f"the plugin called exit({error.code!r}) instead of returning a result", error)
        except BaseException as error:  # noqa: BLE001 - as above
            self._fail("plugin_failed", _say(error), error)
        else:
            self._succeed(value, int(limits["result"]))

    def _succeed(self, value: Any, limit: int) -> None:
        try:
            size = len(encode({"value": value})) - _AROUND_RESULT
        except FrameTooLarge as error:
            size = error.size + HEADER.size - _AROUND_RESULT
        except ProtocolError as error:
            self._fail("bad_result", f"the result was refused: {error}", None)
            return
        if size > limit:
            message = f"the result has {size} bytes of JSON; its limit is {limit}"
            self._fail("result_too_large", message, None, {"used": size})
            return
        self._flush()
        self._link.send({"type": "result", "value": value})

    def _fail(
        self, reason: str, message: str, error: BaseException | None, numbers: Mapping[str, int] | None = None
    ) -> None:
        self._flush()
        trace = _traceback(error) if error is not None else ""
        frame = {"type": "error", "reason": reason, "message": _clean(message)[:MAX_MESSAGE], "traceback": trace}
        self._link.send({**frame, **(numbers or {})})

    def _flush(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                continue  # the plugin closed or replaced it
        self._relay.drain()

    def _read(self) -> None:
        """Frames from the host. Its end is ours: without a host there is nobody to work for. Whatever else ends them is a failure, as where the main
        thread meets it first: a plugin can wreck the descriptors, and code 0 would say that it chose to end without a result.
        """
        try:
            while True:
                frame = self._link.receive()
                if frame.get("type") == "job" and not self._arrived.is_set():
                    self._frame = frame
                    self._arrived.set()
                elif frame.get("type") == "secret" and not self._arrived.is_set():
                    self._secrets[str(frame["name"])] = str(frame["value"])
                elif frame.get("type") == "cancel":
                    self._cancel()
        except EOFError:
            os._exit(0)
        except (OSError, ProtocolError):
            os._exit(1)

    def _cancel(self) -> None:
        manager, job = self._manager, self._job
        if manager is not None and job is not None:
            threading.Thread(target=manager.hook.on_cancel, kwargs={"job": job}, daemon=True).start()


def way_out(allow: Any) -> Network | None:
    """The job's network, when the host opened one for it; what is imported for that is only then."""
    if not allow:
        return None
    from cloche_guest.network import Network

    network = Network(allow)
    network.install()
    return network


def main() -> NoReturn:
    """Entry of the container."""
    work(*start(gated=sys.argv[1:] == [GATE_WORD]))


def serve(prepared: loader.Prepared | None) -> NoReturn:
    """Be the agent of a cell: frames on standard input and output, which become private."""
    work(*take_streams(), prepared)


def work(link: Link, relay: Relay, prepared: loader.Prepared | None = None) -> NoReturn:
    """Serve one job, then wait to be killed."""
    Agent(link, relay, INPUTS, OUT).serve(PLUGIN, WHEELS, prepared)
    wait_for_the_end()


def start(gated: bool = False) -> tuple[Link, Relay]:
    """Leave process 1 behind, and take the standard streams. ``gated``: see :func:`cloche_guest.first.split`."""
    first.split(gated)
    return take_streams()


def take_streams() -> tuple[Link, Relay]:
    """Frames on standard input and output from now on; what the plugin prints goes through the relay."""
    link, stdout, stderr = take_standard_streams()
    relay = Relay(link, stdout, stderr)
    relay.start()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    os.umask(0o022)
    return link, relay


def wait_for_the_end() -> NoReturn:
    """The host reads our usage, then kills us."""
    threading.Event().wait()
    os._exit(0)


def python_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _say(error: BaseException) -> str:
    return _clean("".join(traceback.format_exception_only(error)).strip())


def _traceback(error: BaseException) -> str:
    """The traceback below the agent's and pluggy's own frames, its end kept when it is too long."""
    step = error.__traceback__
    while step is not None and _is_ours(step.tb_frame.f_globals):
        step = step.tb_next
    text = "".join(traceback.format_exception(type(error), error, step or error.__traceback__))
    return _clean(text).encode("utf-8")[-MAX_TRACEBACK:].decode("utf-8", "ignore")


def _is_ours(names: Mapping[str, Any]) -> bool:
    return str(names.get("__name__", "")).split(".")[0] in ("cloche_guest", "pluggy", "__main__", "importlib")


def _clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
