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

/** A value as Lua has it; what is undefined is left out of tables. */
function lua(value: unknown): string {
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  if (Array.isArray(value)) return `{${value.map(lua).join(", ")}}`;
  const entries = value instanceof Map ? [...value] : Object.entries(value);
  const known = entries.filter(([, each]) => each !== undefined);
  return `{${known.map(([key, each]) => `[${lua(key)}]=${lua(each)}`).join(", ")}}`;
}

/** `queueSize` as Wireshark would have it: `queue_size`. */
function snake(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

function layoutOf(layout: Layout | undefined) {
  if (layout === undefined) return undefined;
  const fields = layout.fields.filter(([, , name]) => name !== "reserved");
  const { size, below } = layout;
  return { size, below, fields: fields.map(([offset, type, name]) => [offset, type, snake(name)]) };
}

/** Messages of a dialect by id, those of the bus from 256 on. */
function messagesOf(dialect: Dialect) {
  const messages = new Map<number, unknown>();
  for (const definition of MESSAGES) {
    const wire = wireOf(definition, dialect);
    if (wire === undefined) continue;
    const { name, bus, event } = definition;
    const request = layoutOf(wire.request);
    const response = layoutOf(wire.response);
    messages.set((bus ? 256 : 0) + wire.id, { name, event, request, response });
  }
  return messages;
}

/** Numbers that people read as hexadecimal: bits, ids and addresses. */
const HEX = /^(status|flags|vendor_id|data|nonce|prot|capabilities|.*epoch|.*address)$/;

const FEATURE_BITS = 128;
const ANY_DEVICE = 0;

/** Names of feature bits by device id; those of rings and transport as device 0's. */
function features() {
  const nameOf = (bit: number, id: number) => {
    const [name] = featureNames([2 ** (bit % 32)], id, Math.floor(bit / 32));
    return name!.startsWith("bit ") ? undefined : name;
  };
  const bits = Array.from({ length: FEATURE_BITS }, (_, bit) => bit);
  const named = (id: number) => new Map(bits.map((bit) => [bit, nameOf(bit, id)]));
  return new Map([ANY_DEVICE, ...DEVICE_KINDS.keys()].map((id) => [id, named(id)]));
}

function statuses() {
  const bits = Array.from({ length: 8 }, (_, bit) => bit);
  return new Map(bits.map((bit) => [bit, statusNames(2 ** bit)[0]!]));
}

/** The whole script. @param version of the program that writes it */
export function dissector(version: string): string {
  const dialects = DIALECTS.filter((dialect) => dialect !== undefined);
  const numbered = (of: (dialect: Dialect) => unknown) =>
    new Map(dialects.map((dialect) => [DIALECTS.indexOf(dialect), of(dialect)]));
  const fields = FIELDS.filter((name) => name !== "omitData").map(snake);
  const data = {
    MARK,
    HEAD_SIZE,
    MAX_MESSAGE,
    DIALECTS: numbered((dialect) => dialect),
    REASONS,
    FORMS: numbered((dialect) => ({ ...FORMS[dialect], limits: undefined })),
    MESSAGES: numbered(messagesOf),
    FIELDS: new Map(fields.map((name) => [name, HEX.test(name)])),
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
