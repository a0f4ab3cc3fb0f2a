-- Run by Envoy for every request whose model spreads its requests by how they begin (prefix_routing.py): says in a
-- header of the gateway's own a hash of the first characters of the body's `messages` or `prompt`. A request that has
-- neither gets none, and goes to any replica.

local bit = require("bit")
local bxor, tobit, tohex, lshift = bit.bxor, bit.tobit, bit.tohex, bit.lshift
local HEADER = "x-slipway-prefix"
local LOOKED_AT, HASHED = 4096, 256

-- FNV-1a of 32 bits; the product with its prime 0x01000193 in shifts, since a double cannot hold it.
local function fnv1a(text)
  local h = tobit(0x811c9dc5)
  for i = 1, #text do
    h = bxor(h, text:byte(i))
    h = tobit(h + lshift(h, 1) + lshift(h, 4) + lshift(h, 7) + lshift(h, 8) + lshift(h, 24))
  end
  return tohex(h)
end

function envoy_on_request(handle)
  if handle:metadata():get("by_prefix") == nil then
    return
  end
  local body = handle:body()
  if body == nil then
    return
  end
  local text = body:getBytes(0, math.min(body:length(), LOOKED_AT))
  local _, last = text:find('"messages"%s*:')
  if last == nil then
    _, last = text:find('"prompt"%s*:')
  end
  if last ~= nil then
    handle:headers():replace(HEADER, fnv1a(text:sub(last + 1, last + HASHED)))
  end
end
