-- wrk's load: the body of a file, in the name of so many users or conversations in turn, so that no two requests in a row are alike.
-- Arguments after "--": the body's file, how many there are, the header that names them ("Name: prefix"), then further headers
-- ("Name: value"). Ends with one line of JSON.
local requests, turn = {}, 0

function init(args)
  local file = assert(io.open(args[1], "rb"))
  local body = file:read("*a")
  file:close()
  local named, prefix = args[3]:match("^(.-): (.*)$")
  for number = 1, tonumber(args[2]) do
    local headers = { ["Content-Type"] = "application/json", [named] = prefix .. number }
    for i = 4, #args do
      local name, value = args[i]:match("^(.-): (.*)$")
      headers[name] = value
    end
    requests[number] = wrk.format("POST", "/v1/chat/completions", headers, body)
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"seconds":%.6f,"answers":%d,"failed":%d,"whole_p50_us":%d,"whole_p99_us":%d}\n',
    summary.duration / 1e6,
    summary.requests - errors.status,
    errors.status + errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50),
    latency:percentile(99)
  ))
end
