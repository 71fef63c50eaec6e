/**
 * The dissector in Debian's tshark: every message of every dialect says there what it says here, and what the codec
 * refuses is malformed there, for the same reason.
 */

import { assert, assertEquals } from "@std/assert";
import { codecFor, FORMS } from "../../src/message/codecs.ts";
import { type Dialect, DIALECTS, FIELDS, MAX_MESSAGE, Message } from "../../src/message/message.ts";
import { kindName } from "../../src/message/table.ts";
import { fieldsOf } from "../../src/message/text.ts";
import { dissector } from "../../src/observe/dissector.ts";
import { BRIDGE_SLOT, readFrames } from "../message/bridge_kernel.ts";
import { readVectors } from "../message/vectors.ts";
import { type Seen, writeCapture } from "../support/capture_of_messages.ts";
import { testUnless } from "../support/needs.ts";
import { findProgram } from "../../src/linux/programs.ts";

const NEEDS = findProgram("tshark") === undefined
  ? [{ what: "no tshark (Debian: apt-get install tshark)" }]
  : [];

const snake = (name: string) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
const NUMBERS = FIELDS.filter((field) => field !== "omitData");

/** What tshark says of a packet. */
interface Told {
  readonly message: string;
  readonly isMalformed: boolean;
  readonly info: string;
  readonly values: ReadonlyMap<string, string>;
}

/** Has tshark read messages with the dissector. */
async function tell(messages: readonly Seen[]): Promise<Told[]> {
  const directory = await Deno.makeTempDir();
  try {
    const script = `${directory}/vmsg.lua`;
    await Deno.writeTextFile(script, dissector("test"));
    const path = `${directory}/m.pcapng`;
    writeCapture(path, messages);
    const names = [
      ...["vmsg.message", "_ws.malformed", "vmsg.malformed", "_ws.col.Info", "_ws.lua.error"],
      ...["vmsg.device", "vmsg.token", "vmsg.words", "vmsg.bytes", "vmsg.uuid"],
      ...NUMBERS.map((field) => `vmsg.${snake(field)}`),
    ];
    const { code, stdout, stderr } = await new Deno.Command("tshark", {
      args: [
        ...["-X", `lua_script:${script}`, "-r", path, "-T", "fields", "-E", "occurrence=a"],
        ...names.flatMap((name) => ["-e", name]),
      ],
      stdin: "null",
    }).output();
    const complaints = new TextDecoder().decode(stderr).split("\n")
      .filter((line) => line !== "" && !line.startsWith("Running as user"));
    assertEquals([code, complaints], [0, []]);
    return new TextDecoder().decode(stdout).replace(/\n$/, "").split("\n").map((line) => {
      const values = new Map(line.split("\t").map((value, i) => [names[i]!, value]));
      return {
        message: values.get("vmsg.message")!,
        isMalformed: values.get("vmsg.malformed") !== "" || values.get("_ws.malformed") !== "",
        info: values.get("_ws.col.Info")!,
        values,
      };
    });
  } finally {
    await Deno.remove(directory, { recursive: true });
  }
}

/** A private copy of a message in a slot. */
function decode(dialect: Dialect, bytes: Uint8Array, message: Message, slot = MAX_MESSAGE) {
  const view = new DataView(new ArrayBuffer(MAX_MESSAGE));
  new Uint8Array(view.buffer).set(bytes);
  return codecFor(dialect, slot).decode(view, 0, message);
}

/** Are all fields those that the codec reads? */
function assertSame({ dialect, bytes }: Seen, told: Told): void {
  const message = new Message();
  assertEquals(decode(dialect, bytes, message), undefined);
  const where = `${dialect} ${kindName(message.kind)} ${message.response ? "answer" : ""}`;
  assertEquals([told.message, told.isMalformed], [kindName(message.kind), false], where);
  assertEquals(told.values.get("vmsg.device"), `${message.device}`, where);
  const mark = told.info.startsWith(`bus ${told.message}`) ? "bus" : `dev ${message.device}`;
  assert(told.info.startsWith(`${mark} ${told.message}`), told.info);
  for (const [name, value] of Object.entries(fieldsOf(message))) {
    const seen = told.values.get(`vmsg.${snake(name)}`)!;
    // Where it counts devices the codec makes bits of it ("bits[count]~" in layout.ts).
    if (name === "count" && ["v1-2025", "rfc"].includes(dialect) && Number(seen) % 8 !== 0) {
      continue;
    }
    // There are always two blocks, whatever is said.
    if (name === "count" && dialect === "rfc-q" && value === 2) continue;
    if (name === "words") {
      const words = seen === "" ? [] : seen.split(",").map(Number);
      assertEquals(words.slice(0, message.count), value, where);
    } else if (typeof value === "string") assertEquals(seen, value, `${where} ${name}`);
    else assertEquals(Number(seen), value, `${where} ${name}`);
  }
}

function vectors(): Seen[] {
  return readVectors().map(
    ({ dialect, name, bytes }, us) => ({
      dialect: dialect as Dialect,
      fromDriver: !/\.resp|EVENT_USED|EVENT_CONFIG/.test(name),
      bytes,
      us,
    }),
  ).filter(({ dialect, bytes }) => decode(dialect, bytes, new Message()) === undefined);
}

testUnless(
  "dissector: every vector of every dialect says in tshark what it says here",
  NEEDS,
  async () => {
    const seen = vectors();
    assert(
      new Set(seen.map(({ dialect }) => dialect)).size === DIALECTS.length && seen.length > 130,
      `${seen.length}`,
    );
    const told = await tell(seen);
    assertEquals(told.length, seen.length);
    seen.forEach((each, i) => assertSame(each, told[i]!));
  },
);

testUnless(
  "dissector: the recorded session of Linux's bridge",
  NEEDS,
  async () => {
    assertEquals(BRIDGE_SLOT, MAX_MESSAGE);
    const seen = readFrames().map(({ from, bytes }, us): Seen => ({
      dialect: "v1",
      fromDriver: from === "kernel",
      bytes,
      us,
    }));
    const told = await tell(seen);
    seen.forEach((each, i) => assertSame(each, told[i]!));
  },
);

/** Numbers that are the same in each run (mulberry32). */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = state + 0x6d2b79f5 | 0;
    let t = Math.imul(state ^ state >>> 15, 1 | state);
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
    return (t ^ t >>> 14) >>> 0;
  };
}

testUnless(
  "dissector: what the codec refuses is malformed in tshark, for the same reason",
  NEEDS,
  async () => {
    const next = random(1);
    const sound = vectors();
    const seen = Array.from({ length: 1500 }, (_, us): Seen => {
      const { dialect, fromDriver, bytes } = sound[next() % sound.length]!;
      // Cut off, longer, or with bytes of another value, most of them small.
      const { fixedSize = 0, sizeAt } = FORMS[dialect];
      const more = fixedSize !== 0 && next() % 8 !== 0 ? 0 : next() % 17 - 8;
      const changed = new Uint8Array(Math.max(4, Math.min(64, bytes.length + more)));
      changed.set(bytes.subarray(0, changed.length));
      if (next() % 4 !== 0 && sizeAt !== 0 && changed.length >= 8) {
        changed[sizeAt] = changed.length;
      }
      for (let n = next() % 3; n > 0; n--) changed[next() % changed.length] = next() % 67;
      return { dialect, fromDriver, bytes: changed, us };
    });
    const told = await tell(seen);
    const reasons = new Set<string>();
    seen.forEach((each, i) => {
      const message = new Message();
      // A size that is larger than what there is: the slot ends there.
      const view = new DataView(each.bytes.buffer);
      const { fixedSize, headerSize, sizeAt } = FORMS[each.dialect];
      const isCut = each.bytes.length < (fixedSize ?? headerSize) ||
        (fixedSize === undefined && view.getUint16(sizeAt, true) > each.bytes.length);
      let reason = isCut ? "bad size" : decode(each.dialect, each.bytes, message);
      // As does what is not in its size ("words[count]!" in layout.ts).
      if (reason === undefined && message.size > each.bytes.length) reason = "short";
      if (reason === undefined) return assertSame(each, told[i]!);
      reasons.add(reason);
      assertEquals(told[i]!.info, `[Malformed: ${reason}]`, each.bytes.toHex());
    });
    assertEquals([...reasons].sort(), [
      ...["bad length", "bad size", "long", "no answer exists", "short", "unknown id"],
    ]);
  },
);
