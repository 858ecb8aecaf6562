import time

from cloche_guest import Job, hookimpl


@hookimpl
def run(job: Job) -> dict:
    time.sleep(2)
    return {"attempt": job.attempt}
