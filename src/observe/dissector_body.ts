/** What of the dissector (dissector.ts) does not depend on the table of messages: Lua, for Wireshark. */

export const DISSECTOR_BODY: string = String.raw`
local vmsg = Proto("vmsg", "virtio-msg")

local f = {
  bus = ProtoField.uint8("vmsg.bus", "Bus"), dialect = ProtoField.uint8("vmsg.dialect", "Dialect", base.DEC, DIALECTS),
  to_driver = ProtoField.bool("vmsg.to_driver", "To the driver"),
  sent = ProtoField.bool("vmsg.sent", "Sent by who captured it"), note = ProtoField.string("vmsg.note", "Note"),
  type = ProtoField.uint8("vmsg.type", "Type", base.HEX), id = ProtoField.uint8("vmsg.id", "Id", base.HEX),
  message = ProtoField.string("vmsg.message", "Message"), response = ProtoField.bool("vmsg.response", "Answer"),
  device = ProtoField.uint16("vmsg.device", "Device"), token = ProtoField.uint16("vmsg.token", "Token"),
  size = ProtoField.uint16("vmsg.size", "Size"),
  words = ProtoField.uint32("vmsg.words", "Feature block", base.HEX),
  bytes = ProtoField.bytes("vmsg.bytes", "Bytes"), uuid = ProtoField.bytes("vmsg.uuid", "UUID"),
  request_in = ProtoField.framenum("vmsg.request_in", "Request in", base.NONE, frametype.REQUEST),
  answer_in = ProtoField.framenum("vmsg.answer_in", "Answer in", base.NONE, frametype.RESPONSE),
  latency = ProtoField.relative_time("vmsg.latency", "Latency"),
}
for name, is_hex in pairs(FIELDS) do
  -- A negative errno, or a positive one.
  local make = name == "result" and ProtoField.int64 or ProtoField.uint64
  f[name] = make("vmsg." .. name, name, is_hex and base.HEX or base.DEC)
end
vmsg.fields = f

local malformed = ProtoExpert.new("vmsg.malformed", "Malformed", expert.group.MALFORMED, expert.severity.ERROR)
local refused = ProtoExpert.new("vmsg.refused", "Not understood", expert.group.PROTOCOL, expert.severity.WARN)
vmsg.experts = { malformed, refused }

-- What is learned in the first pass: requests that wait for their answer, pairs of both, kinds of devices.
local waiting, request_of, answer_of, kind_of
function vmsg.init() waiting, request_of, answer_of, kind_of = {}, {}, {}, {} end

local function bit(value, n) return math.floor(value / 2 ^ n) % 2 == 1 end

-- Names of the bits that are set, of which the lowest is number "first".
local function names_of(value, first, names, others)
  local words = {}
  for n = 0, 31 do
    local name = names[n + first] or others[n + first] or "bit " .. n + first
    if bit(value, n) then words[#words + 1] = name end
  end
  return table.concat(words, " ")
end

local WIDTHS = { u8 = 1, u16 = 2, u24 = 3, u32 = 4, u64 = 8, s32 = 4 }

-- Shows a payload, as the codec reads it, with "behind" bytes of the packet behind it; what is wrong with it, or nil, and its words.
local function show(tvb, at, room, behind, layout, exact, tree, kind)
  if room < layout.size then return "short" end
  if layout.below and room >= layout.below then return "long" end
  local values, words = {}, {}
  local used = layout.size
  local function say(name, text) words[#words + 1] = name:gsub("_", " ") .. " " .. text end
  local function show_words(from, count)
    local names = ""
    for n = 0, count - 1 do
      local range = tvb(from + 4 * n, 4)
      local text = names_of(range:le_uint(), 32 * ((values.index or 0) + n), FEATURES[0], FEATURES[kind] or {})
      tree:add_le(f.words, range):append_text(" " .. text)
      names = (names .. " " .. text):gsub("^ +", ""):gsub(" +$", "")
    end
    words[#words + 1] = names == "" and "none" or names
  end
  for _, field in ipairs(layout.fields) do
    local from, type, name = at + field[1], field[2], field[3]
    local rest = at + room - from
    if type:find("!$") then rest = rest + behind end
    if WIDTHS[type] then
      local range = tvb(from, WIDTHS[type])
      local item = tree:add_le(f[name], range)
      local value = range:le_uint64()
      values[name] = value:tonumber()
      if type == "s32" then value = range:le_int() end
      local text = FIELDS[name] and "0x" .. value:tohex():gsub("^0+(%x)", "%1") or tostring(value)
      local special = name == "status" and (values.status == 0 and "0 (reset)" or names_of(values.status, 0, STATUSES, {})) or name == "device_id" and KINDS[values.device_id]
      if special then item:append_text(" " .. special) end
      say(name, special or text)
    elseif type == "u32/32" then
      values[name] = math.ceil(tvb(from, 4):le_uint() / 32)
      tree:add(f[name], tvb(from, 4), UInt64(values[name]))
      say(name, tostring(values[name]))
    elseif type == "next" then
      local value = tvb(from, 4):le_uint()
      tree:add(f.next_offset, tvb(from, 4), UInt64(value % 0x80000000))
      tree:add(f.next_wrap, tvb(from, 4), UInt64(math.floor(value / 0x80000000)))
      if value ~= 0 then say("next", string.format("%d wrap %d", value % 0x80000000, math.floor(value / 0x80000000))) end
    elseif type == "uuid" then
      tree:add(f.uuid, tvb(from, 16))
    elseif type:find("^words") then
      local count = type == "words[2]" and 2 or values.count
      if 4 * count > rest then return "short" end
      if type == "words[count]+" then count = math.floor(rest / 4) end
      show_words(from, count)
      used = from - at + 4 * count
    else
      local count = type:find("^bits") and math.ceil(values.count / 8) or values.length or tonumber(type:match("%d+"))
      local most = tonumber(type:match("%d+"))
      if type == "bits[count]~" and values.count % 8 ~= 0 then count = rest end
      if most and count > most then return "bad length" end
      if count > rest and type ~= "bytes[length]?" then return "short" end
      if count > rest then count = 0 end
      if count > 0 then
        tree:add(f.bytes, tvb(from, count))
        say("bytes", tvb(from, count):bytes():tohex():lower())
      end
      if not most then used = from - at + count end
    end
  end
  if exact and used ~= room then return "long" end
  return nil, table.concat(words, ", "), values
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
  local size = form.fixedSize
  if form.tokenAt ~= 0 then
    token = tvb(at + form.tokenAt, 2):le_uint()
    tree:add_le(f.token, tvb(at + form.tokenAt, 2))
  end
  if form.sizeAt ~= 0 then
    size = size or tvb(at + form.sizeAt, 2):le_uint()
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
  local problem, words, values = show(tvb, from, payload, room - size, layout, exact, tree, kind_of[about] or 1)
  if problem then return problem end
  if values.device_id then kind_of[about] = values.device_id end
  local mark = message.event and "" or response and " =" or "?"
  if words == "" and response then words = "done" end
  local where = of_bus and "bus" or "dev " .. device
  pinfo.cols.info = where .. " " .. message.name .. mark .. (words == "" and "" or " " .. words)
  if message.event or not message.response then return end
  local key = table.concat({ bus_number, id, of_bus and 1 or 0, device, token, to_driver == response and 1 or 0 }, ":")
  local asked = waiting[key]
  if not pinfo.visited and not response then
    waiting[key] = { number = pinfo.number, time = pinfo.rel_ts }
  elseif not pinfo.visited and asked then
    request_of[pinfo.number] = { number = asked.number, latency = pinfo.rel_ts - asked.time }
    answer_of[asked.number] = pinfo.number
    waiting[key] = nil
  end
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
