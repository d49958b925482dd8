-- What wrk sends. Arguments: method, path, buckets, keys, first key ("random", or where to begin in
-- order), file with the value ("" for none), items of a batch (0: a single object), then headers as
-- "name: value". "#" in the path stands for the number of a random bucket; the number of a key is
-- appended to the path, unless keys is 0.

local number = 0

function setup(thread)
  number = number + 1
  thread:set("seed", os.time() * 1000 + number)
end

function init(args)
  method, path, buckets, keys = args[1], args[2], tonumber(args[3]), tonumber(args[4])
  before, after = path:match("^(.-)#(.*)$")
  next_key = tonumber(args[5])  -- nil for "random"
  math.randomseed(seed)
  local value = ""
  if args[6] ~= "" then
    local file = io.open(args[6], "rb")
    value = file:read("*a")
    file:close()
  end
  local items = tonumber(args[7])
  headers = {}
  for index = 8, #args do
    local name, text = args[index]:match("^(.-): (.*)$")
    headers[name] = text
  end
  if items > 0 and method ~= "GET" then
    headers["Content-Type"] = "application/json"
    batches = {}
    for index = 1, 32 do
      batches[index] = wrk.format(method, path, headers, batch(value, items))
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

function request()
  if batches then
    return batches[math.random(#batches)]
  end
  local target = path
  if before then
    target = before .. math.random(buckets) .. after
  end
  if next_key then
    target = target .. next_key
    next_key = next_key + 1
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
