"""What is read from Redis at one moment: scripts that the server runs, and what they go by."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tidings.conversations.mapping import Mapping, pattern_parts

NOBODY = "NOBODY"
"""What the error says of a list whose owner does not exist."""

_BEGINNING = """
local rules = cjson.decode(ARGV[1])
local function filled(pattern, own, other)
  local text = ''
  for _, part in ipairs(pattern) do
    if part == 1 then text = text .. own elseif part == 2 then text = text .. other
    else text = text .. part end
  end
  return text
end
local function metadata(own, other)
  if rules.type == 'none' then return {'ok', false} end
  local key, reply = filled(rules.metadata, own, other), nil
  if rules.type == 'hash' then reply = redis.pcall('HMGET', key, unpack(rules.fields))
  else reply = redis.pcall('GET', key) end
  if type(reply) == 'table' and reply.err then return {'error', reply.err} end
  return {'ok', reply}
end
local function score(own, other)
  local reply = redis.pcall('ZSCORE', filled(rules.list, own, ''), filled(rules.member, '', other))
  if type(reply) == 'table' then return false end
  return reply
end
local function pair(own, other, first, second)
  local is_there = 1
  if #rules.person > 0 then is_there = redis.call('EXISTS', filled(rules.person, other, '')) end
  return {own, other, first, second, metadata(own, other), metadata(other, own), is_there}
end
"""
"""ARGV[1] is the mapping: patterns as lists of texts and places."""

READ_LIST = (
    _BEGINNING
    + """
local key, owner, from, read, limit = ARGV[2], ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
local newest = {}
if rules.journal ~= '' then
  newest = redis.pcall('XREVRANGE', rules.journal, '+', '-', 'COUNT', 1)
end
if #rules.person > 0 and redis.call('EXISTS', filled(rules.person, owner, '')) == 0 then
  return redis.error_reply('NOBODY')
end
local function is_mine(opponent)
  for at = 1, math.min(#owner, #opponent) do
    local a, b = string.byte(owner, at), string.byte(opponent, at)
    if a ~= b then return a < b end
  end
  return #owner < #opponent
end
local first = 0
if from ~= '' then
  if tonumber(redis.call('ZSCORE', key, read) or 'nan') == tonumber(from) then
    first = redis.call('ZRANK', key, read) + 1
  else first = redis.call('ZCOUNT', key, '-inf', '(' .. from) end
end
local rows = redis.call('ZRANGE', key, first, first + limit - 1, 'WITHSCORES')
local noted, score_last, last = newest[1] and newest[1][1], rows[#rows], rows[#rows - 1]
local found = {noted or '0-0', #rows / 2, score_last or '', last or ''}
local before, after = rules.before, rules.after
for at = 1, #rows, 2 do
  local member = rows[at]
  local opponent = string.sub(member, #before + 1, #member - #after)
  if opponent == '' or opponent == owner or before .. opponent .. after ~= member then
    found[#found + 1] = member
  else
    local other = score(opponent, owner)
    if not other or is_mine(opponent) then
      found[#found + 1] = pair(owner, opponent, rows[at + 1], other)
    end
  end
end
return found
"""
)
"""The next members of a list, and of each conversation both sides, at one moment.

ARGV: the list's key, its owner, the score and the member that were read last, or nothing, and how
many members at most. Returns the journal's place at that moment, how many members there are, the
last one's score, the last one, and the conversations. A member that can be none stands for itself;
a conversation that is on both lists is the one's whose id is less."""

READ_CHANGED = (
    _BEGINNING
    + """
local found, seen = {}, {}
local operations = redis.call('XRANGE', rules.journal, '(' .. ARGV[2], '+', 'COUNT', ARGV[3])
for _, operation in ipairs(operations) do
  local told = cjson.decode(operation[2][2])
  local own, other = told.owner, told.opponent
  if told.message then own, other = told.message.sender_id, told.message.receiver_id end
  if other < own then own, other = other, own end
  local name = own .. ' ' .. other
  if not seen[name] then
    seen[name] = true
    found[#found + 1] = pair(own, other, score(own, other), score(other, own))
  end
end
local last = ARGV[2]
if #operations > 0 then last = operations[#operations][1] end
return {last, #operations, found}
"""
)
"""The conversations of the next operations of the journal, on a list or not, at one moment.

ARGV: the place after which they are, how many operations at most. Returns the last one's place,
how many there were, and the conversations."""


def rules(mapping: Mapping, fields: Sequence[str], journal_key: str) -> bytes:
    """What the script has to know of the mapping: patterns as lists of texts and places."""
    metadata, people = mapping.metadata, mapping.people
    return msgspec.json.encode(
        {
            "type": "none" if metadata is None else metadata.type,
            "fields": fields,
            "list": pattern_parts(mapping.lists.key),
            "member": pattern_parts(mapping.lists.member),
            "metadata": [] if metadata is None else pattern_parts(metadata.key),
            "person": [] if people is None else pattern_parts(people.key),
            "before": mapping.lists.member.partition("{opponent}")[0],
            "after": mapping.lists.member.partition("{opponent}")[2],
            "journal": journal_key,
        }
    )
