import asyncio

from arq import create_pool
from arq.connections import RedisSettings
from marks import mark, numbers, seconds, url


async def job(_context, number):
    mark("started", number)
    await asyncio.sleep(seconds(number))
    mark("finished", number)


class WorkerSettings:
    functions = [job]
    redis_settings = RedisSettings.from_dsn(url())
    max_jobs = 1


async def send():
    pool = await create_pool(WorkerSettings.redis_settings)
    for number in numbers():
        await pool.enqueue_job("job", number)


if __name__ == "__main__":
    asyncio.run(send())
