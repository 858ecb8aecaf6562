import time

from cloche_guest import Job, hookimpl


@hookimpl
def run(job: Job) -> dict:
    if job.payload["fail"]:
        raise ValueError("asked to fail")
    time.sleep(job.payload["seconds"])
    return {"slept": job.payload["seconds"], "attempt": job.attempt}
