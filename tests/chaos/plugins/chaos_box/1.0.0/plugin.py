"""Does what the fault matrix asks, under a process name that tells the host which attempt of which job it is."""

import ctypes
import hashlib
import time

from cloche_guest import Job, hookimpl

PR_SET_NAME = 15


@hookimpl
def run(job: Job) -> dict:
    name = f"ch{job.id[-8:]}.{job.attempt}"
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode(), 0, 0, 0)
    key = job.secrets["CHAOS_KEY"]
    print(f"attempt {job.attempt} with {key}")  # the host has to mask it
    if job.payload["fail"]:
        raise ValueError("asked to fail")
    if job.payload["megabytes"]:
        kept = bytearray(job.payload["megabytes"] << 20)
        kept[::4096] = b"x" * len(kept[::4096])
    time.sleep(job.payload["seconds"])
    digests = []
    for path in job.inputs:
        digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
        (job.out / f"{path.name}.sha256").write_text(f"{digests[-1]} by attempt {job.attempt}\n")
    return {
        "n": job.payload["n"],
        "attempt": job.attempt,
        "sha256": digests,
        "key": hashlib.sha256(key.encode()).hexdigest(),
    }
