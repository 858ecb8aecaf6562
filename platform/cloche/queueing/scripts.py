"""The Lua of the queue, and a map of every key it touches.

All keys share the hash tag ``{cloche}`` so that one script may touch several of them on Redis Cluster. Which tenants have something ready is
only known inside a script, so it makes the names of their ready keys itself, in the same slot.

===================================  ======  ====================================================================
key                                  type    holds
===================================  ======  ====================================================================
``{cloche}:epoch``                   string  set while the index is whole; absent on a new or flushed server
``{cloche}:queues``                  set     names of the queues that have rules
``{cloche}:rules:<queue>``           hash    ``version``, ``paused`` (0, 1), ``limit`` (jobs in flight; empty: none), and
                                             ``t:<tenant>`` → ``<paused> <weight>`` of tenants that differ from ``0 1``;
                                             a queue without this key is closed
``{cloche}:ready:<queue>:<tenant>``  zset    member job id, score ready_ms − priority × aging step; lowest goes first
``{cloche}:tenants:<queue>``         zset    tenants that have something ready and are not paused, score their virtual
                                             time: each job taken adds STRIDE / weight, and the least is next
``{cloche}:inflight:<queue>``        zset    member job id, score when its lease ends (ms, by this server's clock); counts until then
``{cloche}:wake:<queue>``            list    at most WAKE_MAX tokens; workers block on it instead of polling
``{cloche}:pace:<name>``             hash    second (by this server's clock) → jobs submitted in it, of one tenant or user that
                                             may submit so many in a minute; gone a minute after the last
``{cloche}:events``                  stream  what changed, for pages and clients; trimmed to about EVENTS_MAX entries
===================================  ======  ====================================================================

An entry in flight names the job and not its attempt: when ids are taken nobody knows the attempt yet, and of a job one attempt runs at a time.
It is written by what takes the id, renewed at the heartbeat's pace, removed when the attempt ends, and counts no more once the lease is over.
It stays until then, because it may be all that is left of an id that was taken and never claimed: the sweeper asks the database, puts such an
id back, and removes the entry.
Empty sorted sets, sets and lists vanish; what is kept for a tenant or a job goes when it has nothing ready or running any more.
"""

from __future__ import annotations

PREFIX = "{cloche}"
EPOCH = f"{PREFIX}:epoch"
QUEUES = f"{PREFIX}:queues"
EVENTS = f"{PREFIX}:events"
WAKE_MAX = 256
EVENTS_MAX = 10_000
STRIDE = 1_000


def ready_prefix(queue: str) -> str:
    """Followed by a tenant it is a ready key."""
    return f"{PREFIX}:ready:{queue}:"


def rules_key(queue: str) -> str:
    return f"{PREFIX}:rules:{queue}"


def tenants_key(queue: str) -> str:
    return f"{PREFIX}:tenants:{queue}"


def inflight_key(queue: str) -> str:
    return f"{PREFIX}:inflight:{queue}"


def wake_key(queue: str) -> str:
    return f"{PREFIX}:wake:{queue}"


def keys_of(queue: str) -> list[str]:
    """The keys that every script on one queue is given, in its order: rules, tenants, in flight, wake."""
    return [rules_key(queue), tenants_key(queue), inflight_key(queue), wake_key(queue)]


# A tenant that comes, or comes again, starts one turn behind the one that is next: whoever submits one job at a time gains nothing by leaving.
_SHARED = f"""
local function clock()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end
local function after(time)
  return string.format('(%.0f', time)
end
local function share(rules, tenant)
  local paused, weight = string.match(redis.call('HGET', rules, 't:' .. tenant) or '0 1', '^(%d) (%d+)$')
  return paused ~= '0', {STRIDE} / (tonumber(weight) or 1)
end
local function join(rules, tenants, tenant)
  local paused, stride = share(rules, tenant)
  if paused then return false end
  if not redis.call('ZSCORE', tenants, tenant) then
    local first = redis.call('ZRANGE', tenants, 0, 0, 'WITHSCORES')
    local pass = first[2] and tonumber(first[2]) + stride or 0
    redis.call('ZADD', tenants, string.format('%.17g', pass), tenant)
  end
  return true
end
local function wake_one(rules, tenants, wake)
  if redis.call('HGET', rules, 'paused') == '0' and redis.call('ZCARD', tenants) > 0 and redis.call('LLEN', wake) == 0 then
    redis.call('LPUSH', wake, '1')
  end
end
"""

# KEYS: keys_of the queue. ARGV: wake_max, ready prefix, then tenant, score and id in turn. Returns how many were new.
# NX: a job that is already in the index keeps its place, so pushing it again is harmless.
PUSH = (
    _SHARED
    + """
local added, awake, seen = 0, 0, {}
for i = 3, #ARGV, 3 do
  local tenant = ARGV[i]
  local new = redis.call('ZADD', ARGV[2] .. tenant, 'NX', ARGV[i + 1], ARGV[i + 2])
  if seen[tenant] == nil then seen[tenant] = join(KEYS[1], KEYS[2], tenant) end
  added = added + new
  if seen[tenant] then awake = awake + new end
end
if awake > 0 and redis.call('HGET', KEYS[1], 'paused') == '0' then
  local room = tonumber(ARGV[1]) - redis.call('LLEN', KEYS[4])
  for _ = 1, math.min(room, awake) do redis.call('LPUSH', KEYS[4], '1') end
end
return added
"""
)

# KEYS: epoch, then keys_of each queue. ARGV: count, how long a taken id counts as in flight (ms), then each queue's ready prefix, in the order
# in which they are served. Returns false when the index is not whole, else of each id taken: the queue's number (from 1), tenant, id, score, and
# 1 where it was not in flight before. Each queue gives one id in turn, each time its next tenant's best: the work is that of queues + ids.
# Where more may be taken than was a token stays behind, so that the next waiting worker does not sleep beside work.
TAKE = (
    _SHARED
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
local now = clock()
local left, ends = tonumber(ARGV[1]), now + tonumber(ARGV[2])
local room, taken = {}, {}
for q = 1, #ARGV - 2 do
  local rule = redis.call('HMGET', KEYS[4 * q - 2], 'paused', 'limit')
  if rule[1] ~= '0' then
    room[q] = 0
  elseif rule[2] == '' then
    room[q] = math.huge
  else
    room[q] = (tonumber(rule[2]) or 0) - redis.call('ZCOUNT', KEYS[4 * q], after(now), '+inf')
  end
end
local again = true
while again and left > 0 do
  again = false
  for q = 1, #room do
    if left > 0 and room[q] > 0 then
      local rules, tenants, inflight = KEYS[4 * q - 2], KEYS[4 * q - 1], KEYS[4 * q]
      local first = redis.call('ZRANGE', tenants, 0, 0, 'WITHSCORES')
      local tenant = first[1]
      if tenant then
        again = true
        local ready = ARGV[q + 2] .. tenant
        local best = redis.call('ZPOPMIN', ready)
        if best[1] then
          local known = redis.call('ZSCORE', inflight, best[1])
          local fresh = known and tonumber(known) > now and 0 or 1
          redis.call('ZADD', inflight, 'GT', ends, best[1])
          for _, value in ipairs({q, tenant, best[1], best[2], fresh}) do taken[#taken + 1] = value end
          left, room[q] = left - 1, room[q] - 1
        end
        if redis.call('EXISTS', ready) == 0 then
          redis.call('ZREM', tenants, tenant)
        else
          local _, stride = share(rules, tenant)
          redis.call('ZADD', tenants, string.format('%.17g', tonumber(first[2]) + stride), tenant)
        end
      else
        room[q] = 0
      end
    end
  end
end
for q = 1, #room do
  if room[q] > 0 then
    wake_one(KEYS[4 * q - 2], KEYS[4 * q - 1], KEYS[4 * q + 1])
  else
    redis.call('DEL', KEYS[4 * q + 1])
  end
end
return taken
"""
)

# KEYS: keys_of the queue. ARGV: ids that are in flight no more. Returns how many were. A queue at its limit has room again.
FREE = (
    _SHARED
    + """
local gone = redis.call('ZREM', KEYS[3], unpack(ARGV))
if gone > 0 then wake_one(KEYS[1], KEYS[2], KEYS[4]) end
return gone
"""
)

# KEYS: keys_of the queue. ARGV: id and how long its lease still lasts (ms) in turn. None is shortened.
KEEP = (
    _SHARED
    + """
local now = clock()
for i = 1, #ARGV, 2 do redis.call('ZADD', KEYS[3], 'GT', now + tonumber(ARGV[i + 1]), ARGV[i]) end
"""
)

# KEYS: keys_of the queue. ARGV: 1 to have those too whose time is over, else 0. Returns the ids in flight.
IN_FLIGHT = (
    _SHARED
    + """
return redis.call('ZRANGEBYSCORE', KEYS[3], ARGV[1] == '1' and '-inf' or after(clock()), '+inf')
"""
)

# KEYS: keys_of the queue. ARGV: ready prefix, tenant, ids.
REMOVE = """
local ready = ARGV[1] .. ARGV[2]
redis.call('ZREM', ready, unpack(ARGV, 3))
if redis.call('EXISTS', ready) == 0 then redis.call('ZREM', KEYS[2], ARGV[2]) end
"""

# KEYS: keys_of the queue. ARGV: ready prefix. Returns how many ids are ready, those of paused tenants too.
DEPTH = """
local found = 0
for _, tenant in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do found = found + redis.call('ZCARD', ARGV[1] .. tenant) end
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  local tenant = string.match(field, '^t:(.*)$')
  if tenant and not redis.call('ZSCORE', KEYS[2], tenant) then found = found + redis.call('ZCARD', ARGV[1] .. tenant) end
end
return found
"""

# KEYS: keys_of the queue, queues. ARGV: name, ready prefix, version, paused, limit, then tenant, paused and weight in turn. Returns 1, or 0 where
# newer rules are there already: a slow writer does not undo what a later one has said.
SET_RULES = (
    _SHARED
    + """
local rules, tenants, wake = KEYS[1], KEYS[2], KEYS[4]
local old = tonumber(redis.call('HGET', rules, 'version') or '-1')
if old > tonumber(ARGV[3]) then return 0 end
local known = redis.call('HKEYS', rules)
redis.call('DEL', rules)
redis.call('HSET', rules, 'version', ARGV[3], 'paused', ARGV[4], 'limit', ARGV[5])
local named = {}
for i = 6, #ARGV, 3 do
  named[#named + 1] = ARGV[i]
  redis.call('HSET', rules, 't:' .. ARGV[i], ARGV[i + 1] .. ' ' .. ARGV[i + 2])
end
for _, field in ipairs(known) do named[#named + 1] = string.match(field, '^t:(.*)$') end
for _, tenant in ipairs(named) do
  if share(rules, tenant) then
    redis.call('ZREM', tenants, tenant)
  elseif redis.call('EXISTS', ARGV[2] .. tenant) == 1 then
    join(rules, tenants, tenant)
  end
end
redis.call('SADD', KEYS[5], ARGV[1])
if ARGV[4] == '0' then wake_one(rules, tenants, wake) else redis.call('DEL', wake) end
return 1
"""
)

# KEYS: keys_of the queue, queues. ARGV: name, ready prefix, version. Forgets a queue whose rules are not newer than that.
DROP = """
local version = tonumber(redis.call('HGET', KEYS[1], 'version') or '-1')
if version > tonumber(ARGV[3]) then return 0 end
for _, tenant in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do redis.call('DEL', ARGV[2] .. tenant) end
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  local tenant = string.match(field, '^t:(.*)$')
  if tenant then redis.call('DEL', ARGV[2] .. tenant) end
end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
redis.call('SREM', KEYS[5], ARGV[1])
return 1
"""
