-- Run by Envoy for every request, before its own filter api_key_auth: replaces `Authorization: Bearer KEY` by the
-- SHA-256 of KEY (FIPS 180-4), so that Envoy needs to know of the keys their digests alone. Requests without exactly
-- one well-formed key get no digest, and are refused by the filter after this one.

local bit = require("bit")
local band, bnot, bxor, ror, rshift, tobit, tohex =
  bit.band, bit.bnot, bit.bxor, bit.ror, bit.rshift, bit.tobit, bit.tohex
local byte, char, match, rep = string.byte, string.char, string.match, string.rep

local MAX_KEY_BYTES = 256

local K = {
  0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
  0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
  0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
  0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
  0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
  0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
  0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
  0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
}
local words = {}

local function mix(block, h)
  for i = 1, 16 do
    local a, b, c, d = byte(block, 4 * i - 3, 4 * i)
    words[i] = tobit(((a * 256 + b) * 256 + c) * 256 + d)
  end
  for i = 17, 64 do
    local w15, w2 = words[i - 15], words[i - 2]
    local s0 = bxor(ror(w15, 7), ror(w15, 18), rshift(w15, 3))
    local s1 = bxor(ror(w2, 17), ror(w2, 19), rshift(w2, 10))
    words[i] = tobit(words[i - 16] + s0 + words[i - 7] + s1)
  end
  local a, b, c, d, e, f, g, last = h[1], h[2], h[3], h[4], h[5], h[6], h[7], h[8]
  for i = 1, 64 do
    local s1 = bxor(ror(e, 6), ror(e, 11), ror(e, 25))
    local t1 = tobit(last + s1 + bxor(band(e, f), band(bnot(e), g)) + K[i] + words[i])
    local s0 = bxor(ror(a, 2), ror(a, 13), ror(a, 22))
    local t2 = tobit(s0 + bxor(band(a, b), band(a, c), band(b, c)))
    last, g, f, e, d, c, b, a = g, f, e, tobit(d + t1), c, b, a, tobit(t1 + t2)
  end
  h[1], h[2], h[3], h[4] = tobit(h[1] + a), tobit(h[2] + b), tobit(h[3] + c), tobit(h[4] + d)
  h[5], h[6], h[7], h[8] = tobit(h[5] + e), tobit(h[6] + f), tobit(h[7] + g), tobit(h[8] + last)
end

local function sha256(text)
  local size = #text
  local bits = size * 8
  local padded = text .. "\128" .. rep("\0", (55 - size) % 64) .. "\0\0\0\0\0\0"
    .. char(rshift(bits, 8), band(bits, 255))
  local h = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
  }
  for first = 1, #padded, 64 do
    mix(padded:sub(first, first + 63), h)
  end
  return tohex(h[1]) .. tohex(h[2]) .. tohex(h[3]) .. tohex(h[4])
    .. tohex(h[5]) .. tohex(h[6]) .. tohex(h[7]) .. tohex(h[8])
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local given = headers:get("authorization")
  if given == nil then
    return
  end
  local count = headers:getNumValues("authorization")
  headers:remove("authorization")
  local key = match(given, "^[Bb][Ee][Aa][Rr][Ee][Rr] +([%w%-._~+/]+=*)$")
  if key ~= nil and count == 1 and #key <= MAX_KEY_BYTES then
    headers:replace("x-slipway-key", sha256(key))
  end
end

-- When to come again: Envoy's filter of limits says it under a name of its own, and a budget lasts until midnight UTC.
function envoy_on_response(handle)
  local headers = handle:headers()
  if headers:get(":status") ~= "429" then
    return
  end
  local wait_s = headers:get("x-ratelimit-reset")
  if headers:get("x-slipway-budget") ~= nil then
    wait_s = tostring(86400 - os.time() % 86400)
  end
  if wait_s ~= nil then
    headers:replace("retry-after", wait_s)
  end
end
