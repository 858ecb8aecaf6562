from marks import numbers, option, url
from redis import Redis
from rq import Queue, Retry

if __name__ == "__main__":
    queue = Queue(connection=Redis.from_url(url()))
    for number in numbers():
        queue.enqueue("marks.work", number, retry=Retry(max=3) if option("RETRY") else None)
