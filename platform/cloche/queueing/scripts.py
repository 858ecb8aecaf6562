"""The Lua of the queue, and a map of every key it touches.

All keys share the hash tag ``{cloche}`` so that one script may touch several of them on Redis Cluster.

=============================  ======  ==========================================================================
key                            type    holds
=============================  ======  ==========================================================================
``{cloche}:epoch``             string  set while the index is whole; absent on a new or flushed server
``{cloche}:ready:<queue>``     zset    member job id, score ready_ms − priority × aging step; lowest goes first
``{cloche}:wake:<queue>``      list    at most WAKE_MAX tokens; workers block on it instead of polling
``{cloche}:events``            stream  what changed, for pages and clients; trimmed to about EVENTS_MAX entries
=============================  ======  ==========================================================================
"""

from __future__ import annotations

PREFIX = "{cloche}"
EPOCH = f"{PREFIX}:epoch"
EVENTS = f"{PREFIX}:events"
WAKE_MAX = 256
EVENTS_MAX = 10_000


def ready_key(queue: str) -> str:
    return f"{PREFIX}:ready:{queue}"


def wake_key(queue: str) -> str:
    return f"{PREFIX}:wake:{queue}"


# KEYS: ready, wake. ARGV: wake_max, then score and id in turn. Returns how many were new.
# NX: a job that is already in the index keeps its place, so pushing it again is harmless.
PUSH = """
local added = 0
for i = 2, #ARGV, 2 do
  added = added + redis.call('ZADD', KEYS[1], 'NX', ARGV[i], ARGV[i + 1])
end
if added > 0 then
  local room = tonumber(ARGV[1]) - redis.call('LLEN', KEYS[2])
  for _ = 1, math.min(room, added) do redis.call('LPUSH', KEYS[2], '1') end
end
return added
"""

# KEYS: epoch, ready, wake. ARGV: count. Returns false when the index is not whole, else the ids, best first.
# Where more is left than was taken a token stays behind, so that the next waiting worker does not sleep beside work.
TAKE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
local popped = redis.call('ZPOPMIN', KEYS[2], ARGV[1])
local ids = {}
for i = 1, #popped, 2 do ids[#ids + 1] = popped[i] end
if redis.call('ZCARD', KEYS[2]) == 0 then
  redis.call('DEL', KEYS[3])
elseif redis.call('LLEN', KEYS[3]) == 0 then
  redis.call('LPUSH', KEYS[3], '1')
end
return ids
"""
