/** `--device` and `--net`: what they become. */

import { assertEquals, assertThrows } from "@std/assert";
import { parseOptions } from "../../src/cli/command.ts";
import { deviceCommand } from "../../src/cli/device.ts";
import { pairThreadsOf } from "../../src/cli/device_option.ts";
import { UsageError } from "../../src/linux/errors.ts";

/** What the Worker is told of the devices, after its way there. */
function devices(...args: string[]) {
  const options = parseOptions(deviceCommand, ["--bus", "linux-user,socket=lu.sock", ...args]);
  return structuredClone(deviceCommand.parse(options)).devices;
}

/** The last byte of the MAC address that a card gets by its number. */
function lastByte({ settings }: ReturnType<typeof devices>[number]): number {
  return (settings as { mac: Uint8Array }).mac.at(-1)!;
}

Deno.test("devices: --net is short for --device net", () => {
  for (const port of ["responder", "tap=tap0,address=10.0.2.2/24,mtu=9000", "hub=lan,pcap=x"]) {
    assertEquals(devices("--device", `net,${port}`), devices("--net", port));
  }
  assertEquals(devices("--device", "net"), devices("--net", "responder"));
});

Deno.test("devices: without any there is one network card with the responder", () => {
  assertEquals(devices(), devices("--net", "responder"));
});

Deno.test("devices: numbers count in the order of the options, over both", () => {
  const given = ["--net", "responder", "--device", "rng", "--net=hub", "--device=net,hub"];
  const parsed = devices(...given);
  assertEquals(parsed.map(({ kind }) => kind), ["net", "rng", "net", "net"]);
  assertEquals([0, 2, 3].map((number) => lastByte(parsed[number]!)), [0, 2, 3]);
});

Deno.test("devices: more than 64 are refused", () => {
  const many = (count: number) => Array.from({ length: count }, () => "--device=rng");
  assertEquals(devices(...many(64)).length, 64);
  assertThrows(() => devices(...many(64), "--net=hub"), UsageError, "at most 64");
});

Deno.test("options: a flag has no text, given or not", () => {
  for (const args of [[], ["--confined"]]) {
    const options = parseOptions(deviceCommand, ["--bus", "linux-user,socket=lu.sock", ...args]);
    assertEquals([options.text("confined"), options.flag("confined")], [
      undefined,
      args.length > 0,
    ]);
  }
});

Deno.test("devices: a card has one queue pair, or as many as are given", () => {
  const queues = (port: string) =>
    (devices("--net", port)[0]!.settings as { queues: number }).queues;
  assertEquals(["tap", "tap,queues=1", "responder,queues=8"].map(queues), [1, 1, 8]);
  for (const wrong of ["0", "9", "two", ""]) {
    assertThrows(
      () => queues(`tap,queues=${wrong}`),
      UsageError,
      "queues is a whole number from 1 to 8",
    );
  }
});

Deno.test("devices: pairs behind the first would have threads where the queues of a tap are theirs alone", () => {
  const threads = (...ports: string[]) =>
    pairThreadsOf(devices(...ports.flatMap((p) => ["--net", p])));
  assertEquals(threads("tap"), 0);
  assertEquals(threads("tap,queues=4", "tap=tap1,queues=2", "hub=lan"), 4);
  assertEquals(threads("tap,queues=4,pcap=x", "responder,queues=8"), 0);
});
