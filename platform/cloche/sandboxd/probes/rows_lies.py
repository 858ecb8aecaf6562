"""Probes of what a job says and leaves: outputs, frames, and traces for the next job."""

from __future__ import annotations

import json
from typing import Any

from cloche.domain.states import Reason
from cloche.sandboxd.probes import scenes
from cloche.sandboxd.probes.probe import Judge, Probe
from cloche.sandboxd.probes.scenes import job, refuse_frame

_OTHER_JOB = "0190a0b0-0000-7000-8000-000000000000"


def _odd_files(facts: Any) -> bool:
    refused = {"link", "root", "magic", "fifo", "first", "second", "socket"}
    taken = {"good", "suid", "hidden", "locked/inner"}
    return (
        set(facts["files"]) == taken
        and refused <= set(facts["refused"])
        and facts["modes"] == ["0o100600"]
        and facts["value"]["device"] == "EPERM"
    )


def _odd_names(facts: Any) -> bool:
    taken = {"-rf", "--config=x", "a:b", ":local:etc", " ", "~", "$(id)", "n" * 255, "é"}
    return set(facts["files"]) == taken and len(facts["refused"]) == 5 and json.dumps(facts["refused"]).isprintable()


def _deep(facts: Any) -> bool:
    return (
        facts["value"]["made"] >= 50
        and "top" in facts["files"]
        and not any(path.count("/") > 32 for path in facts["files"])
    )


def _changing(facts: Any) -> bool:
    return (
        facts["still"]
        and "grows" in {*facts["files"], *facts["refused"]}
        and facts["left"] == 0
        and not facts["links"]
        and not any("root:" in text for text in facts["files"].values())
    )


def _because(reason: Reason) -> Judge:
    return lambda facts: facts["reason"] == reason and facts["last"] != "result"


def _unheard(facts: Any) -> bool:
    """It never became a frame, and the deadline ended it."""
    return facts["overdue"] and "result" not in facts["frames"]


_broken = _because(Reason.BAD_RESULT)


def _value(name: str, reason: Reason = Reason.BAD_RESULT) -> Probe:
    return Probe(f"return_{name}", "result", f"return {_VALUES[name]}", f"the attempt ends as {reason}", _because(reason),
                 job("returns", {"value": name}))  # fmt: skip


_VALUES = {
    "nan": "NaN", "infinity": "Infinity", "surrogate": "a lone surrogate", "integer": "an integer of 400 digits", "keys": "an object with a number as key",
    "object": "a Python object", "deep": "200 nested lists", "loop": "a list that holds itself", "large": "2 MB of text",
}  # fmt: skip


def _second(key: str, *expected: Any) -> Judge:
    return lambda facts: facts["second"][key] in expected


def _empty_places(facts: Any) -> bool:
    left, places = facts["first"]["left"], facts["second"]["places"]
    own = all(left[place] == "DONE" for place in ("/tmp", "/dev/shm", "/job/out"))
    return (
        own
        and {"/tmp", "/dev/shm", "/job/in", "/job/out"} <= places.keys()
        and all(names == (["a.txt"] if place == "/job/in" else []) for place, names in places.items())
        and no_queue(facts["first"], facts["second"])
    )


def no_queue(first: Any, second: Any) -> bool:
    """The message queue of the one is not there for the other, in whatever file system queues are shown or not."""
    return bool(first["queue"] == "DONE" and second["queue"] == "ENOENT")


def _after(id: str, tries: str, expects: str, held: Judge) -> Probe:
    return Probe(id, "leftovers", tries, expects, held, scenes.leftovers)


# fmt: off
OUTPUTS = (
    Probe("odd_files", "outputs", "links, FIFO, socket, device, hard links, set-uid and unreadable files in out/",
          "regular files are copied with mode 0600; the rest is refused by name", _odd_files, job("odd_files")),
    Probe("odd_names", "outputs", "names not UTF-8, with newline, escape, text direction, backslash; with -, :, $, 255 bytes",
          "the first five are refused, printably; the others are plain names", _odd_names, job("odd_names")),
    Probe("deep_tree", "outputs", "a tree as deep as 10,000 folders", "what lies too deep is refused; collection and removal end", _deep,
          job("deep_tree", output_files=10_000, memory=256 << 20)),
    Probe("changing", "outputs", "processes change files and swap them for links during collection", "collected after death: copies stand still, no link",
          _changing, scenes.changing),
    Probe("many_links", "outputs", "one file under 41 names", "all refused: a hard link could be a file of someone else",
          lambda f: f["files"] == {} and len(f["refused"]) == 41, job("many_links")),
)

RESULT = (
    *(_value(name) for name in ("nan", "infinity", "surrogate", "integer", "keys", "object", "deep", "loop")),
    _value("large", Reason.RESULT_TOO_LARGE),
    Probe("exit_without_result", "result", "exit(0) without a result", "no result, exit code 0: never a success",
          lambda f: f["last"] is None and f["exit_code"] == 0, job("exits")),
)

FRAMES = (
    Probe("frame_on_stdout", "frames", "a result frame and process 1's last line on stdout and stderr", "text in the log; the real result counts",
          lambda f: f["value"] == "real" and f["log"] > 20, job("on_stdout")),
    Probe("frame_of_another_job", "frames", "a result that names another job, on the private channel", "a lie about this job alone: the id is ignored",
          lambda f: f["last"] == "result" and set(f["frames"]) <= {"ready", "result"}, job("other_job", {"other": _OTHER_JOB}, 60)),
    Probe("frame_unknown_type", "frames", "a frame of a type that does not exist", "breach of protocol", _broken, refuse_frame('{"type":"completed"}')),
    Probe("frame_duplicate_key", "frames", "an object with a key twice", "breach of protocol", _broken, refuse_frame('{"type":"result","value":1,"value":2}')),
    Probe("frame_nan", "frames", "NaN in a frame", "breach of protocol", _broken, refuse_frame('{"type":"result","value":NaN}')),
    Probe("frame_surrogate", "frames", "a lone surrogate by escape", "breach of protocol", _broken, refuse_frame('{"type":"result","value":"\\ud800"}')),
    Probe("frame_no_object", "frames", "a frame that is a list", "breach of protocol", _broken, refuse_frame("[1,2,3]")),
    Probe("frame_garbage", "frames", "a frame that is no JSON", "breach of protocol", _broken, refuse_frame("\x00\x01{")),
    Probe("frame_fake_reason", "frames", "an error that blames the platform", "breach of protocol: a job cannot claim our fault", _broken,
          refuse_frame('{"type":"error","reason":"platform_failed","message":"x","traceback":""}')),
    Probe("frame_deep", "frames", "100,000 nested lists", "breach of protocol", _broken, job("deep_json", seconds=60)),
    Probe("frame_integer", "frames", "an integer of 100,000 digits", "breach of protocol", _broken, job("huge_integer", seconds=60)),
    Probe("frame_huge", "frames", "a frame announced as 4 GiB", "breach of protocol, before its bytes are read", _broken, job("huge_frame", seconds=60)),
    Probe("frame_half", "frames", "half a frame, then silence", "never a result; the deadline ends it", _unheard, scenes.never_ends("half_frame")),
    Probe("frame_slow", "frames", "a frame byte by byte", "never a result; the deadline ends it", _unheard, scenes.never_ends("slow_frame")),
    Probe("frame_flood", "frames", "frames without end", "breach of protocol", _broken, job("flood_frames", seconds=60)),
    Probe("forged_exit", "frames", "process 1's last line, written to its standard error", "the job is over and dead, without a result",
          lambda f: f["last"] is None and "result" not in f["frames"] and (f["log_end"] in ("refused 13\n", "refused 2\n") or not f["overdue"]),
          scenes.forged_exit),
    Probe("stdin", "frames", "read standard input, where the job came from", "it is empty", lambda f: f["value"] == {"stdin": ""}, job("steal_input")),
)

LEFTOVERS = (
    _after("leftover_files", "files of the job before in /tmp, /dev/shm, out/, in/, message queues", "all empty", _empty_places),
    _after("leftover_shm", "its System V memory", "there is none",
           lambda f: f["first"]["segment"] == "DONE" and f["second"]["shm"] == "ENOENT"),
    _after("leftover_socket", "its abstract socket", "ECONNREFUSED", _second("socket", "ECONNREFUSED")),
    _after("leftover_environment", "its environment", "not there", _second("environment", False)),
    _after("leftover_processes", "its daemon", "process 1 and the agent are all there is", _second("processes", 2)),
    _after("leftover_uid", "its user id", "another one", lambda f: f["second"]["uid"] != f["first"]["uid"]),
)
# fmt: on
