from cloche_guest import Job, hookimpl


@hookimpl
def run(job: Job) -> dict:
    return {"attempt": job.attempt}
