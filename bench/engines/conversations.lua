-- wrk's load: the body of a file, of 4,096 conversations in turn, so that engines can share them.
-- Arguments after "--": the body's file, then further headers ("Name: value"). Ends with one line of JSON.
local requests, turn = {}, 0

function init(args)
  local file = assert(io.open(args[1], "rb"))
  local body = file:read("*a")
  file:close()
  for number = 1, 4096 do
    local headers = { ["Content-Type"] = "application/json", ["X-Prefloop-Conversation"] = "conversation-" .. number }
    for i = 2, #args do
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
    '{"seconds":%.6f,"answers":%d,"failed":%d}\n',
    summary.duration / 1e6,
    summary.requests - errors.status,
    errors.status + errors.connect + errors.read + errors.write + errors.timeout
  ))
end
