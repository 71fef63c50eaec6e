/**
 * The dissector for Wireshark and tshark, in Lua: made of the table of messages and the dialects' forms, so that it knows
 * what the codec knows, and finds malformed what the codec refuses.
 *
 * The script is data, which is written here, and a body that is the same for all (dissector_body.ts). It reads the packets
 * that capture.ts writes and shows each field of the table as `vmsg.NAME`, words in small letters: `vmsg.queue_size`.
 * It wants a Wireshark of version 3.6 or later and uses no operators on bits, which not all versions of Lua have.
 */

import { FORMS } from "../message/codecs.ts";
import { type Dialect, FIELDS, MAX_MESSAGE } from "../message/message.ts";
import type { Layout } from "../message/layout.ts";
import { MESSAGES, wireOf } from "../message/table.ts";
import { DEVICE_KINDS, featureNames, statusNames } from "../message/text.ts";
import { DIALECTS, HEAD_SIZE, MARK, REASONS } from "./capture.ts";
import { DISSECTOR_BODY } from "./dissector_body.ts";

type Value = string | number | boolean | undefined | readonly Value[] | ValueTable;
interface ValueTable extends ReadonlyMap<string | number, Value> {}

/** A value as Lua has it. */
function lua(value: Value): string {
  if (value === undefined) return "nil";
  if (typeof value !== "object") return JSON.stringify(value);
  if (value instanceof Map) {
    const entries = [...value as ValueTable].filter(([, each]) => each !== undefined);
    return `{${entries.map(([key, each]) => `[${lua(key)}]=${lua(each)}`).join(", ")}}`;
  }
  return `{${(value as readonly Value[]).map(lua).join(", ")}}`;
}

function record(entries: Readonly<Record<string, Value>>): ValueTable {
  return new Map(Object.entries(entries));
}

/** `queueSize` as Wireshark would have it: `queue_size`. */
function snake(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

function layoutOf(layout: Layout | undefined): Value {
  if (layout === undefined) return undefined;
  const fields = layout.fields.filter(([, , name]) => name !== "reserved");
  return record({
    size: layout.size,
    below: layout.below,
    fields: fields.map(([offset, type, name]) => [offset, type, snake(name)]),
  });
}

/** Messages of a dialect by id, those of the bus from 256 on. */
function messagesOf(dialect: Dialect): ValueTable {
  const messages = new Map<number, Value>();
  for (const definition of MESSAGES) {
    const wire = wireOf(definition, dialect);
    if (wire === undefined) continue;
    const { name, bus, event } = definition;
    const request = layoutOf(wire.request);
    const response = layoutOf(wire.response);
    messages.set((bus ? 256 : 0) + wire.id, record({ name, event, request, response }));
  }
  return messages;
}

function formOf(dialect: Dialect): ValueTable {
  const { headerSize, tokenAt, sizeAt, busBit, fixedSize, exactEvents } = FORMS[dialect];
  return record({ headerSize, tokenAt, sizeAt, busBit, fixedSize, exactEvents });
}

/** Fields that are wider than 32 bits somewhere. */
function wideFields(): Set<string> {
  const wide = new Set<string>(["next_wrap"]);
  for (const { wire } of MESSAGES) {
    for (const { request, response } of Object.values(wire)) {
      for (const [, type, name] of [...request.fields, ...response?.fields ?? []]) {
        if (type === "u64") wide.add(snake(name));
      }
    }
  }
  return wide;
}

/** Numbers that people read as hexadecimal. */
const HEX = ["status", "flags", "vendor_id", "data", "nonce", "prot", "capabilities"];
/** Of these the wide ones are no addresses. */
const DECIMAL = ["length", "offset", "next_offset", "next_wrap"];

const FEATURE_BITS = 128;
const ANY_DEVICE = 0;

/** Names of feature bits by device id; those of rings and transport as device 0's. */
function features(): ValueTable {
  const nameOf = (bit: number, id: number) => {
    const [name] = featureNames([2 ** (bit % 32)], id, Math.floor(bit / 32));
    return name!.startsWith("bit ") ? undefined : name;
  };
  const bits = Array.from({ length: FEATURE_BITS }, (_, bit) => bit);
  const named = (id: number) => new Map(bits.map((bit) => [bit, nameOf(bit, id)]));
  return new Map([ANY_DEVICE, ...DEVICE_KINDS.keys()].map((id) => [id, named(id)]));
}

function statuses(): ValueTable {
  const bits = Array.from({ length: 8 }, (_, bit) => bit);
  return new Map(bits.map((bit) => [bit, statusNames(2 ** bit)[0]!]));
}

/** The whole script. @param version of the program that writes it */
export function dissector(version: string): string {
  const dialects = DIALECTS.filter((dialect) => dialect !== undefined);
  const numbered = (of: (dialect: Dialect) => Value) =>
    new Map(dialects.map((dialect) => [DIALECTS.indexOf(dialect), of(dialect)]));
  const wide = wideFields();
  const fields = FIELDS.map(snake).filter((name) => name !== "omit_data").map((name) =>
    record({
      name,
      wide: wide.has(name),
      hex: HEX.includes(name) || (wide.has(name) && !DECIMAL.includes(name)),
    })
  );
  const data: Record<string, Value> = {
    MARK,
    HEAD_SIZE,
    MAX_MESSAGE,
    DIALECTS: numbered((dialect) => dialect),
    REASONS,
    FORMS: numbered(formOf),
    MESSAGES: numbered(messagesOf),
    FIELDS: fields,
    KINDS: DEVICE_KINDS,
    FEATURES: features(),
    STATUSES: statuses(),
  };
  const lines = Object.entries(data).map(([name, value]) => `local ${name} = ${lua(value)}`);
  return [
    `-- virtio-msg for Wireshark, made by vmsg ${version}: tshark -X lua_script:vmsg.lua -r FILE`,
    ...lines,
    DISSECTOR_BODY,
  ].join("\n");
}
