import asyncio

from marks import mark, numbers, option, seconds, url
from taskiq_redis import ListQueueBroker, RedisStreamBroker


def made():
    if option("LIST"):
        return ListQueueBroker(url())
    if option("IDLE"):
        return RedisStreamBroker(url(), idle_timeout=int(option("IDLE")) * 1000, unacknowledged_lock_timeout=10)
    return RedisStreamBroker(url())


broker = made()


@broker.task(task_name="job")
async def job(number: int):
    mark("started", number)
    await asyncio.sleep(seconds(number))
    mark("finished", number)


async def send():
    await broker.startup()
    for number in numbers():
        await job.kiq(number)


if __name__ == "__main__":
    asyncio.run(send())
