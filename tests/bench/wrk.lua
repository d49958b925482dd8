-- What wrk sends. Arguments: method, path, buckets, keys, first key ("random", or where to begin in
-- order), file with the value ("" for none), items of a batch (0: a single object), then headers as
-- "name: value". "#" in the path stands for the number of a random bucket; the number of a key is
-- appended to the path, unless keys is 0, or stands where the path has "@". A path of etcd's JSON
-- gateway takes key and value in a body of base 64.

local number = 0

-- Milliseconds that a client rests before each request, if it is to rest at all.
local pace = tonumber(os.getenv("POKY_BENCH_PACE") or "")
if pace then
  function delay()
    return pace
  end
end

-- Buckets are as popular as words are: the n-th is asked for 1 / n as often as the first.
local is_skewed = os.getenv("POKY_BENCH_SKEWED")
local shares = {}

function setup(thread)
  number = number + 1
  thread:set("seed", os.time() * 1000 + number)
end

function init(args)
  method, path, buckets, keys = args[1], args[2], tonumber(args[3]), tonumber(args[4])
  before, after = path:match("^(.-)#(.*)$")
  head, tail = path:match("^(.-)@(.*)$")
  next_key = tonumber(args[5])  -- nil for "random"
  math.randomseed(seed)
  local value = ""
  if args[6] ~= "" then
    local file = io.open(args[6], "rb")
    value = file:read("*a")
    file:close()
  end
  for rank = 1, is_skewed and buckets or 0 do
    shares[rank] = (shares[rank - 1] or 0) + 1 / rank
  end
  local items = tonumber(args[7])
  headers = {}
  for index = 8, #args do
    local name, text = args[index]:match("^(.-): (.*)$")
    headers[name] = text
  end
  if path:match("^/v3/") then
    headers["Content-Type"] = "application/json"
    prepared = {}
    local rest = value == "" and "" or '","value":"' .. base64(value)
    for index = 1, keys do
      local text = '{"key":"' .. base64("key-" .. index) .. rest .. '"}'
      prepared[index] = wrk.format("POST", path, headers, text)
    end
  elseif items > 0 and method ~= "GET" then
    headers["Content-Type"] = "application/json"
    prepared = {}
    for index = 1, 32 do
      prepared[index] = wrk.format(method, path, headers, batch(value, items))
    end
  elseif value ~= "" or method == "PUT" then
    body = value
  end
end

function batch(value, items)
  local parts = {}
  local first = math.random(keys)
  for index = 1, items do
    -- A stride that has no factor in common with the keys: no key twice in a batch.
    local name = '{"key":"key-' .. (first + index * 7919) % keys + 1 .. '"'
    if value ~= "" then
      name = name .. ',"data":"' .. value .. '"'
    end
    parts[index] = name .. "}"
  end
  return "[" .. table.concat(parts, ",") .. "]"
end

local letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

function base64(text)
  local parts = {}
  for index = 1, #text, 3 do
    local a, b, c = text:byte(index, index + 2)
    local bits = a * 65536 + (b or 0) * 256 + (c or 0)
    for shift = 3, 0, -1 do
      local digit = math.floor(bits / 64 ^ shift) % 64 + 1
      parts[#parts + 1] = letters:sub(digit, digit)
    end
  end
  local padding = (3 - #text % 3) % 3
  return table.concat(parts, "", 1, #parts - padding) .. ("="):rep(padding)
end

local function random_bucket()
  if not is_skewed then
    return math.random(buckets)
  end
  local drawn, low, high = math.random() * shares[buckets], 1, buckets
  while low < high do
    local middle = math.floor((low + high) / 2)
    if shares[middle] < drawn then
      low = middle + 1
    else
      high = middle
    end
  end
  return low
end

function request()
  if prepared then
    return prepared[math.random(#prepared)]
  end
  local target = path
  if before then
    target = before .. random_bucket() .. after
  end
  if next_key then
    target = target .. next_key
    next_key = next_key + 1
  elseif keys > 0 and head then
    target = head .. math.random(keys) .. tail
  elseif keys > 0 then
    target = target .. math.random(keys)
  end
  return wrk.format(method, target, headers, body)
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    "RESULT %d %d %d %d %d %d\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99),
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
