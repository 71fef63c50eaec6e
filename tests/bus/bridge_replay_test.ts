/**
 * The session that was recorded at the bridge of a kernel, played to our bus and device side, through rings: each frame must be
 * answered as the recorded process answered it, byte for byte.
 *
 * Where ours does otherwise: a write to the configuration is a generation of its own (V59), a change of it names no range (V60), and a
 * device that is removed has the session begin anew, which the recorded process had not, and which its kernel stalled over.
 */

import { assertEquals } from "@std/assert";
import { BridgeBus } from "../../src/bus/bridge.ts";
import { Reactor } from "../../src/linux/reactor.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { createLog } from "../../src/observe/log.ts";
import { DeviceSide } from "../../src/transport/device_side.ts";
import { cleanTest } from "../support/leaks.ts";
import { MemoryNode } from "../support/memory_bridge_node.ts";
import {
  BLOCK,
  NET,
  type RecordedDevice,
  recordedDevices,
  recordedDisk,
} from "../support/recorded_devices.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

const LOG = createLog("test", "error", () => {});
const Id = {
  GET_CONFIG: 5,
  SET_CONFIG: 6,
  EVENT_CONFIG: 0x40,
  EVENT_AVAIL: 0x41,
  EVENT_USED: 0x42,
};
const BUS_BIT = 2, RESPONSE_BIT = 1, EVENT_BIT = 0x40;

interface Line {
  readonly text: string;
  /** "K" and "D" sent a frame; "#" is a remark. */
  readonly from: string;
  readonly bytes: Uint8Array<ArrayBuffer>;
}

function readLines(): Line[] {
  const text = Deno.readTextFileSync(new URL("../message/bridge-kernel.txt", import.meta.url));
  return text.trimEnd().split("\n").map((line) => ({
    text: line,
    from: line[0]!,
    bytes: Uint8Array.fromHex(/^[KD]>[KD] (\w+)/.exec(line)?.[1] ?? ""),
  }));
}

const word = (bytes: Uint8Array, at: number) => new DataView(bytes.buffer).getUint32(at, true);
const isBus = ({ bytes }: Line) => (bytes[0]! & BUS_BIT) !== 0;
/** What an answer has in common with its request: the bus bit, the id, the device and the token. */
const key = ({ bytes }: Line) => [bytes[0]! & BUS_BIT, ...bytes.subarray(1, 6)].join();

cleanTest("bridge: the recorded session, replayed through the rings", async () => {
  using reactor = new Reactor(new VirtualClock());
  const node = new MemoryNode();
  const endpoint = { name: "loopback", id: "", create: false };
  const options = { discardOnAttach: false, ringPerMessage: false } as const;
  using bus = new BridgeBus(reactor, node, endpoint, LOG, options);
  using side = new DeviceSide({ reactor, bus, codec: codecFor("v1", bus.slotSize), log: LOG });
  const devices = recordedDevices();
  for (const [number, device] of devices) side.add(number, device);
  const lines = readLines();
  const answers = new Map(
    lines.filter(({ from, bytes }) => from === "D" && (bytes[0]! & RESPONSE_BIT) !== 0)
      .map((line) => [key(line), line]),
  );
  const asked: string[] = [];
  /** By device: writes of its configuration. */
  const writes = new Map<RecordedDevice, number>();
  let compared = 0;
  /** What the process sends next is this, and nothing else. */
  const says = async (expected: string, line: string) => {
    await reactor.sleep(0.1);
    asked.push(...node.take());
    assertEquals([asked.shift(), line], [expected, line]);
    compared++;
  };
  const request = async (line: Line) => {
    node.put(line.bytes);
    const answer = answers.get(key(line))!.bytes.slice();
    const device = devices.get(line.bytes[2]!)!;
    const id = isBus(line) ? -1 : line.bytes[1]!;
    if (id === Id.SET_CONFIG) writes.set(device, (writes.get(device) ?? 0) + 1);
    if (id === Id.GET_CONFIG || id === Id.SET_CONFIG) {
      const generation = word(answer, 8) + (writes.get(device) ?? 0);
      new DataView(answer.buffer).setUint32(8, generation, true);
    }
    await says(answer.toHex(), line.text);
  };
  side.open();
  await reactor.until((async () => {
    for (const line of lines) {
      const { from, bytes, text } = line;
      if (text.includes("hot-unplug")) {
        await side.remove(BLOCK);
      } else if (text.includes("hot-plug")) {
        const disk = recordedDisk();
        // The recorded process kept what the driver had written to it.
        disk.config.set(devices.get(BLOCK)!.config);
        devices.set(BLOCK, disk);
        side.add(BLOCK, disk);
      }
      // Ours is another session by then, in which the card's driver has not come again: its one packet is left out.
      const isGap = node.asked.length > 2 && bytes[2] === NET && !isBus(line);
      if (from === "#" || isGap) continue;
      const device = devices.get(bytes[2]!);
      const isEvent = !isBus(line) && (bytes[1]! & EVENT_BIT) !== 0;
      if (from === "K" && !isEvent) await request(line);
      else if (from === "K") {
        device!.takeCalls();
        node.put(bytes);
        await reactor.sleep(0.1);
        assertEquals(device!.takeCalls(), [`available ${word(bytes, 8)}`], text);
      } else if (isBus(line) && (bytes[0]! & RESPONSE_BIT) === 0) await says(bytes.toHex(), text);
      else if (bytes[1] === Id.EVENT_USED) {
        device!.host.used(word(bytes, 8));
        await says(bytes.toHex(), text);
      } else if (bytes[1] === Id.EVENT_CONFIG) {
        device!.config[6]! ^= 1;
        device!.host.configChanged();
        const named = bytes.slice(0, 24);
        // Size, and no range: all is read again.
        named.set([24, 0], 6);
        named.fill(0, 16);
        await says(named.toHex(), text);
      }
    }
  })());
  const said = lines.filter(({ from }) => from === "D").length;
  assertEquals([compared, asked], [said - 1, []]);
  assertEquals(node.asked, ["RESOLVE", "ATTACH", "DETACH", "ATTACH"]);
});
