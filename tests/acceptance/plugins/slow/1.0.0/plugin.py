import time

from cloche_guest import Job, hookimpl


@hookimpl
def run(job: Job) -> dict:
    if job.payload["fail"]:
        raise ValueError("asked to fail")
    seconds = job.payload["seconds"] if job.attempt == 1 else 0
    time.sleep(seconds)
    return {"slept": seconds, "attempt": job.attempt}
