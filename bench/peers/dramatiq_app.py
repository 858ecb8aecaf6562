import dramatiq
from dramatiq.brokers.redis import RedisBroker
from marks import numbers, url, work

dramatiq.set_broker(RedisBroker(url=url()))
job = dramatiq.actor(work, actor_name="job")

if __name__ == "__main__":
    for number in numbers():
        job.send(number)
