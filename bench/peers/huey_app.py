from huey import RedisHuey
from marks import numbers, url, work

huey = RedisHuey("peers", url=url())
job = huey.task(name="job")(work)

if __name__ == "__main__":
    for number in numbers():
        job(number)
