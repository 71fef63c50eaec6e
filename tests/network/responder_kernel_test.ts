/**
 * The responder against the kernel's own TCP/IP and common tools, through a TAP in a namespace of its own.
 *
 * Once with checksums in the kernel's frames, once with its checksum offload towards us.
 */

import { assert, assertEquals } from "@std/assert";
import { createHash } from "node:crypto";
import { Reactor } from "../../src/linux/reactor.ts";
import { ResponderPort } from "../../src/network/responder_port.ts";
import { TapPort } from "../../src/network/tap.ts";
import { pattern } from "./responder_support.ts";
import { PATIENCE_MS } from "../support/processes.ts";
import {
  ip,
  lookPatiently,
  Namespace,
  networkTest,
  Relay,
  setNet,
  THREE_PINGS,
  turnUntil,
} from "./support.ts";

/** Datagrams that are asked for at once: as many as any socket buffer holds, so none is lost. */
const WINDOW = 32;
/** 3 MB. */
const WINDOWS = 64;

/** A kernel's network with the responder behind its TAP. */
class Link implements Disposable {
  readonly namespace = new Namespace();
  readonly reactor = new Reactor();
  readonly tap: TapPort;
  readonly port: ResponderPort;
  readonly relay: Relay;

  constructor(offloads: boolean) {
    this.tap = new TapPort({ name: "resp0", address: "10.0.2.15/24", offloads }, this.reactor);
    const features = new Uint32Array(2);
    for (const bit of this.tap.features) features[bit >> 5] |= 1 << (bit & 31);
    this.tap.setFeatures(features);
    lookPatiently("resp0");
    this.port = new ResponderPort({}, this.reactor);
    this.relay = new Relay(this.reactor, [this.tap, this.port]);
  }

  /** Runs a shell's command while frames pass; returns what it printed. */
  async run(command: string, timeoutMs = PATIENCE_MS): Promise<string> {
    const child = new Deno.Command("sh", {
      args: ["-c", command],
      stdin: "null",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    let output: Deno.CommandOutput | undefined;
    const ended = child.output().then((result) => output = result);
    try {
      await turnUntil(this.reactor, () => output !== undefined, command, timeoutMs);
    } catch (error) {
      child.kill("SIGKILL");
      await ended;
      throw error;
    }
    const { success, stdout, stderr } = await ended;
    const text = new TextDecoder().decode(stdout);
    assert(success, `${command}: ${text}${new TextDecoder().decode(stderr)}`);
    return text.trim();
  }

  /** Waits until the kernel has an address from our prefix that it found to be unique. */
  async configured(): Promise<void> {
    const ready = () => {
      const text = ip("-6 addr show dev resp0");
      return text.includes("inet6 fd00:") && !text.includes("tentative");
    };
    await turnUntil(this.reactor, ready, "an address from our prefix");
  }

  [Symbol.dispose](): void {
    this.relay.dispose();
    this.port[Symbol.dispose]();
    this.tap[Symbol.dispose]();
    this.reactor[Symbol.dispose]();
    this.namespace[Symbol.dispose]();
  }
}

/** The MD5 sum of so many windows of {@link WINDOW} datagrams: numbers from 0, and the pattern. */
function expectedSum(windows: number, size: number): string {
  const datagram = pattern(size);
  const window = new Uint8Array(WINDOW * size);
  for (let number = 0; number < WINDOW; number++) {
    window.set(datagram, number * size);
    window.set([0, 0, 0, number], number * size);
  }
  const hash = createHash("md5");
  for (let i = 0; i < windows; i++) hash.update(window);
  return hash.digest("hex");
}

/** bash: asks for window after window, and prints the MD5 sum of what came, datagram by datagram. */
function fetchWindows(host: string, windows: number, size: number): string {
  const request = [0, 0, 0, WINDOW, size >> 8, size & 0xff, 0, 0].map((byte) =>
    `\\x${byte.toString(16)}`
  ).join("");
  return `bash -c 'exec 3<>/dev/udp/${host}/19
    for window in $(seq ${windows}); do
      printf "${request}" >&3
      dd bs=2048 count=${WINDOW} <&3 2>/dev/null
    done' | md5sum`;
}

for (const offloads of [false, true]) {
  const how = offloads ? "with offloads" : "without offloads";
  networkTest(
    `responder: chargen's sequence is whole, ${how}`,
    ["ip", "bash", "dd", "md5sum"],
    async () => {
      using link = new Link(offloads);
      const sum = await link.run(fetchWindows("10.0.2.2", WINDOWS, 1472));
      assertEquals(sum.split(" ")[0], expectedSum(WINDOWS, 1472));
      const { chargenFrames, checksumErrors, malformed, dropped } = link.port.responder.counters;
      assertEquals({ chargenFrames, checksumErrors, malformed, dropped }, {
        chargenFrames: WINDOWS * WINDOW,
        checksumErrors: 0,
        malformed: 0,
        dropped: 0,
      });
    },
  );

  networkTest(
    `responder: autoconfiguration, ping and chargen over IPv6, ${how}`,
    ["ip", "bash", "dd", "md5sum", "ping"],
    async () => {
      using link = new Link(offloads);
      await link.configured();
      for (const address of ["fd00::2", "fe80::5055:aff:fe00:202%resp0"]) {
        await link.run(["ping", "-6", ...THREE_PINGS, address].join(" "));
      }
      const sum = await link.run(fetchWindows("fd00::2", WINDOWS, 1452));
      assertEquals(sum.split(" ")[0], expectedSum(WINDOWS, 1452));
      // An address of ours that the kernel tries to take is defended. By itself it would wait one second for an objection.
      setNet("ipv6/conf/resp0/dad_transmits", PATIENCE_MS / 1000);
      ip("-6 addr add fd00::2/64 dev resp0");
      await turnUntil(
        link.reactor,
        () => ip("-6 addr show dev resp0").includes("dadfailed"),
        "detection of the duplicate",
      );
      const { checksumErrors, malformed } = link.port.responder.counters;
      assertEquals({ checksumErrors, malformed }, { checksumErrors: 0, malformed: 0 });
    },
  );

  networkTest(
    `responder: the kernel fills discard, ${how}`,
    ["ip", "bash", "dd", "ping"],
    async () => {
      using link = new Link(offloads);
      const { counters } = link.port.responder;
      // A TAP keeps 1000 frames that nobody has read yet.
      const count = 500;
      // Of what waits for an answer to ARP the kernel keeps only some.
      await link.run(["ping", ...THREE_PINGS, "10.0.2.2"].join(" "));
      await link.run(
        `bash -c 'dd if=/dev/zero bs=1472 count=${count} >/dev/udp/10.0.2.2/9 2>/dev/null'`,
      );
      await turnUntil(link.reactor, () => counters.discardedFrames === count, "the last datagram");
      assertEquals(counters.discardedBytes, 1472 * count);
      assertEquals(counters.checksumErrors, 0);
      // The kernel leaves the checksum to a device that offers to make it.
      const { partial } = link.relay.seen[0];
      assert(offloads ? partial >= count : partial === 0, `${partial} partial checksums`);
    },
  );
}
