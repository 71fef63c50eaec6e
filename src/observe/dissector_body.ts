/** What of the dissector (dissector.ts) does not depend on the table of messages: Lua, for Wireshark. */

export const DISSECTOR_BODY: string = String.raw`
local vmsg = Proto("vmsg", "virtio-msg")

local f = {
  bus = ProtoField.uint8("vmsg.bus", "Bus"),
  dialect = ProtoField.uint8("vmsg.dialect", "Dialect", base.DEC, DIALECTS),
  to_driver = ProtoField.bool("vmsg.to_driver", "To the driver"),
  sent = ProtoField.bool("vmsg.sent", "Sent by who captured it"),
  note = ProtoField.string("vmsg.note", "Note"),
  type = ProtoField.uint8("vmsg.type", "Type", base.HEX),
  id = ProtoField.uint8("vmsg.id", "Id", base.HEX),
  message = ProtoField.string("vmsg.message", "Message"),
  response = ProtoField.bool("vmsg.response", "Answer"),
  device = ProtoField.uint16("vmsg.device", "Device"),
  token = ProtoField.uint16("vmsg.token", "Token"),
  size = ProtoField.uint16("vmsg.size", "Size"),
  words = ProtoField.uint32("vmsg.words", "Feature block", base.HEX),
  bytes = ProtoField.bytes("vmsg.bytes", "Bytes"),
  uuid = ProtoField.bytes("vmsg.uuid", "UUID"),
  request_in = ProtoField.framenum("vmsg.request_in", "Request in", base.NONE, frametype.REQUEST),
  answer_in = ProtoField.framenum("vmsg.answer_in", "Answer in", base.NONE, frametype.RESPONSE),
  latency = ProtoField.relative_time("vmsg.latency", "Latency"),
}
local hex = {}
for _, field in ipairs(FIELDS) do
  local make = field.wide and ProtoField.uint64 or ProtoField.uint32
  f[field.name] = make("vmsg." .. field.name, field.name, field.hex and base.HEX or base.DEC)
  hex[field.name] = field.hex
end
vmsg.fields = f

local malformed = ProtoExpert.new("vmsg.malformed", "Malformed", expert.group.MALFORMED, expert.severity.ERROR)
local refused = ProtoExpert.new("vmsg.refused", "Not understood", expert.group.PROTOCOL, expert.severity.WARN)
vmsg.experts = { malformed, refused }

-- What is learned in the first pass: requests that wait for their answer, pairs of both, kinds of devices.
local waiting, request_of, answer_of, kind_of = {}, {}, {}, {}
function vmsg.init()
  waiting, request_of, answer_of, kind_of = {}, {}, {}, {}
end

local function bit(value, n)
  return math.floor(value / 2 ^ n) % 2 == 1
end

local function names_of(value, bits, names, first)
  local words = {}
  for n = 0, bits - 1 do
    if bit(value, n) then words[#words + 1] = names(n + first) end
  end
  return table.concat(words, " ")
end

local function status_words(value)
  if value == 0 then return "0 (reset)" end
  return names_of(value, 32, function(n) return STATUSES[n] or "bit " .. n end, 0)
end

local function feature_words(value, first, kind)
  local own = FEATURES[kind] or FEATURES[0]
  return names_of(value, 32, function(n) return FEATURES[0][n] or own[n] or "bit " .. n end, first)
end

local function short_hex(range)
  local text = range:len() == 8 and range:le_uint64():tohex() or string.format("%x", range:le_uint())
  return "0x" .. text:gsub("^0+(%x)", "%1")
end

local WIDTHS = { u8 = 1, u16 = 2, u24 = 3, u32 = 4, u64 = 8 }

-- Shows a payload, as the codec reads it; what is wrong with it, or nil, and its words.
local function show(tvb, at, room, layout, exact, tree, kind)
  if room < layout.size then return "short" end
  if layout.below and room >= layout.below then return "long" end
  local values, words = {}, {}
  local used = layout.size
  local function say(name, text) words[#words + 1] = name:gsub("_", " ") .. " " .. text end
  local function show_words(from, count)
    local names = {}
    for n = 0, count - 1 do
      local range = tvb(from + 4 * n, 4)
      local text = feature_words(range:le_uint(), 32 * ((values.index or 0) + n), kind)
      tree:add_le(f.words, range):append_text(text == "" and "" or " " .. text)
      if text ~= "" then names[#names + 1] = text end
    end
    words[#words + 1] = #names > 0 and table.concat(names, " ") or "none"
  end
  local function show_bytes(from, count)
    if count == 0 then return end
    tree:add(f.bytes, tvb(from, count))
    say("bytes", tvb(from, count):bytes():tohex():lower())
  end
  for _, field in ipairs(layout.fields) do
    local from, type, name = at + field[1], field[2], field[3]
    local rest = at + room - from
    if WIDTHS[type] then
      local range = tvb(from, WIDTHS[type])
      local item = tree:add_le(f[name], range)
      if type == "u64" then
        local value = range:le_uint64()
        values[name] = value:tonumber()
        say(name, hex[name] and short_hex(range) or tostring(value))
      else
        local value = range:le_uint()
        values[name] = value
        local text = hex[name] and short_hex(range) or tostring(value)
        if name == "status" then text = status_words(value) item:append_text(" " .. text) end
        if name == "device_id" and KINDS[value] then text = KINDS[value] item:append_text(" " .. text) end
        say(name, text)
      end
    elseif type == "u32/32" then
      values[name] = math.ceil(tvb(from, 4):le_uint() / 32)
      tree:add(f[name], tvb(from, 4), values[name])
      say(name, tostring(values[name]))
    elseif type == "next" then
      local value = tvb(from, 4):le_uint()
      tree:add(f.next_offset, tvb(from, 4), UInt64(value % 0x80000000))
      tree:add(f.next_wrap, tvb(from, 4), UInt64(math.floor(value / 0x80000000)))
      if value ~= 0 then say("next", string.format("%d wrap %d", value % 0x80000000, math.floor(value / 0x80000000))) end
    elseif type == "uuid" then
      tree:add(f.uuid, tvb(from, 16))
    elseif type == "words[2]" then
      show_words(from, 2)
    elseif type == "bytes[8]" or type == "bytes[16]" then
      if values.length > tonumber(type:match("%d+")) then return "bad length" end
      show_bytes(from, values.length)
    elseif type == "words[count]" or type == "words[count]+" then
      if 4 * values.count > rest then return "short" end
      local count = type == "words[count]" and values.count or math.floor(rest / 4)
      show_words(from, count)
      used = used + 4 * count
    elseif type == "bytes[length]" or type == "bytes[length]?" then
      local length = values.length
      if length > rest then
        if type == "bytes[length]" then return "short" end
        length = 0
      end
      show_bytes(from, length)
      used = used + length
    else
      local count = values.count
      if type == "bits[count]~" and count % 8 ~= 0 then count = 8 * rest end
      local bytes = math.ceil(count / 8)
      if bytes > rest then return "short" end
      show_bytes(from, bytes)
      used = used + bytes
    end
  end
  if exact and used ~= room then return "long" end
  return nil, table.concat(words, ", "), values
end

-- Pairs an answer with its request, in the first pass.
local function pair(pinfo, key, response)
  if pinfo.visited then return end
  if not response then
    waiting[key] = { number = pinfo.number, time = pinfo.rel_ts }
  elseif waiting[key] then
    request_of[pinfo.number] = { number = waiting[key].number, latency = pinfo.rel_ts - waiting[key].time }
    answer_of[waiting[key].number] = pinfo.number
    waiting[key] = nil
  end
end

local function dissect(tvb, at, dialect, to_driver, bus_number, pinfo, tree)
  local form = FORMS[dialect]
  local room = tvb:len() - at
  if room < form.headerSize then return "bad size" end
  local type, id = tvb(at, 1):uint(), tvb(at + 1, 1):uint()
  tree:add(f.type, tvb(at, 1))
  tree:add(f.id, tvb(at + 1, 1))
  local device = tvb(at + 2, 2):le_uint()
  tree:add_le(f.device, tvb(at + 2, 2))
  local token = 0
  if form.tokenAt ~= 0 then
    token = tvb(at + form.tokenAt, 2):le_uint()
    tree:add_le(f.token, tvb(at + form.tokenAt, 2))
  end
  local size = form.fixedSize
  if form.sizeAt ~= 0 then
    size = tvb(at + form.sizeAt, 2):le_uint()
    tree:add_le(f.size, tvb(at + form.sizeAt, 2))
  end
  if size < form.headerSize or size > room then return "bad size" end
  local of_bus = form.busBit ~= 0 and math.floor(type / form.busBit) % 2 == 1
  local message = MESSAGES[dialect][id + (of_bus and 256 or 0)]
  if not message then return "unknown id" end
  local response = type % 2 == 1
  local layout = message.request
  if response then layout = message.response end
  if not layout then return "no answer exists" end
  tree:add(f.message, tvb(at, 2), message.name)
  tree:add(f.response, tvb(at, 1), response)
  local about = bus_number * 65536 + device
  local from, payload = at + form.headerSize, size - form.headerSize
  local exact = message.event and form.exactEvents
  local problem, words, values = show(tvb, from, payload, layout, exact, tree, kind_of[about] or 1)
  if problem then return problem end
  if values.device_id then kind_of[about] = values.device_id end
  local mark = message.event and "" or response and " =" or "?"
  if words == "" and response then words = "done" end
  local where = of_bus and "bus" or "dev " .. device
  pinfo.cols.info = where .. " " .. message.name .. mark .. (words == "" and "" or " " .. words)
  if message.event or not message.response then return end
  local asked_by_driver = to_driver == response
  pair(pinfo, table.concat({ bus_number, id, of_bus and 1 or 0, device, token, asked_by_driver and 1 or 0 }, ":"), response)
  local request = request_of[pinfo.number]
  if request then
    tree:add(f.request_in, request.number):set_generated()
    local seconds = math.floor(request.latency)
    local time = NSTime.new(seconds, math.floor((request.latency - seconds) * 1e9 + 0.5))
    tree:add(f.latency, time):set_generated()
  end
  if answer_of[pinfo.number] then tree:add(f.answer_in, answer_of[pinfo.number]):set_generated() end
end

function vmsg.dissector(tvb, pinfo, root)
  if tvb:len() < HEAD_SIZE or tvb(0, 4):le_uint() ~= MARK or tvb(4, 1):uint() ~= 1 then return 0 end
  pinfo.cols.protocol = "virtio-msg"
  local tree = root:add(vmsg, tvb())
  local dialect, to_driver = tvb(5, 1):uint(), tvb(6, 1):uint() == 1
  local flags, bus_number, reason = tvb(7, 1):uint(), tvb(8, 1):uint(), tvb(9, 1):uint()
  tree:add(f.dialect, tvb(5, 1))
  tree:add(f.to_driver, tvb(6, 1), to_driver)
  tree:add(f.sent, tvb(7, 1), bit(flags, 0))
  tree:add(f.bus, tvb(8, 1))
  pinfo.cols.src = to_driver and "device" or "driver"
  pinfo.cols.dst = to_driver and "driver" or "device"
  if bit(flags, 2) then
    local note = tvb(HEAD_SIZE)
    tree:add(f.note, note)
    pinfo.cols.src, pinfo.cols.dst = "", ""
    pinfo.cols.info = note:string()
  elseif bit(flags, 1) then
    local why = "not understood: " .. (REASONS[reason] or "")
    tree:add_proto_expert_info(refused, why)
    tree:add(f.bytes, tvb(HEAD_SIZE))
    pinfo.cols.info = why
  else
    local problem = "unknown dialect"
    if FORMS[dialect] then
      problem = dissect(tvb, HEAD_SIZE, dialect, to_driver, bus_number, pinfo, tree)
    end
    if problem then
      tree:add_proto_expert_info(malformed, "Malformed: " .. problem)
      pinfo.cols.info = "[Malformed: " .. problem .. "]"
    end
  end
  return tvb:len()
end

DissectorTable.get("wtap_encap"):add((wtap_encaps or wtap).USER0, vmsg)
`;
