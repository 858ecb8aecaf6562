import asyncio

from marks import mark, numbers, option, seconds, url
from saq import Queue


async def job(_context, *, number):
    mark("started", number)
    await asyncio.sleep(seconds(number))
    mark("finished", number)


queue = Queue.from_url(url())
settings = {"queue": queue, "functions": [job], "concurrency": 1}


async def send():
    await queue.connect()
    more = {"retries": int(option("RETRY"))} if option("RETRY") else {}
    for number in numbers():
        await queue.enqueue("job", number=number, **more)


if __name__ == "__main__":
    asyncio.run(send())
