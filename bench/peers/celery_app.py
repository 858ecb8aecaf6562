from celery import Celery
from marks import numbers, option, url, work

app = Celery("celery_app", broker=url())
app.conf.broker_connection_retry_on_startup = True
if option("LATE"):
    app.conf.task_acks_late = True
    app.conf.task_reject_on_worker_lost = True
if option("VISIBILITY"):
    app.conf.broker_transport_options = {"visibility_timeout": int(option("VISIBILITY"))}
job = app.task(name="job")(work)

if __name__ == "__main__":
    for number in numbers():
        app.send_task("job", [number])
