"""The Lua of limits on submissions, as :class:`cloche.domain.pace.Window` counts them. See the key map in :mod:`cloche.queueing.scripts`."""

from __future__ import annotations

from cloche.domain.pace import WINDOW_S
from cloche.queueing.scripts import PREFIX


def pace_key(name: str) -> str:
    return f"{PREFIX}:pace:{name}"


# KEYS: one for each limit. ARGV: how many, then each limit. Counted under all of them or none.
# Returns {number of the first limit that has no room, from 1, or 0; what is used of it; ms until there is room}.
SPEND = f"""
local time = redis.call('TIME')
local second = tonumber(time[1])
local now = second * 1000 + math.floor(tonumber(time[2]) / 1000)
local count = tonumber(ARGV[1])
for i = 1, #KEYS do
  local fields = redis.call('HGETALL', KEYS[i])
  local used, known = 0, {{}}
  for n = 1, #fields, 2 do
    local at = tonumber(fields[n])
    if at < second - {WINDOW_S} then
      redis.call('HDEL', KEYS[i], fields[n])
    else
      used = used + tonumber(fields[n + 1])
      known[#known + 1] = {{at, tonumber(fields[n + 1])}}
    end
  end
  local over = used + count - tonumber(ARGV[i + 1])
  if over > 0 then
    table.sort(known, function(a, b) return a[1] < b[1] end)
    for _, one in ipairs(known) do
      over = over - one[2]
      if over <= 0 then
        return {{i, used, (one[1] + {WINDOW_S} + 1) * 1000 - now}}
      end
    end
    return {{i, used, {WINDOW_S} * 1000}}
  end
end
for i = 1, #KEYS do
  redis.call('HINCRBY', KEYS[i], second, count)
  redis.call('EXPIRE', KEYS[i], {WINDOW_S} + 2)
end
return {{0, 0, 0}}
"""
