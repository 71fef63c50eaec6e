/**
 * The responder against the kernel's own TCP/IP and common tools, through a TAP in a namespace of its own.
 *
 * Once with frames of the MTU and checksums in them, once with the kernel's segmentation and checksum
 * offload towards us, so that it sends segments of up to 64 KiB with partial checksums.
 */

import { assert, assertEquals } from "@std/assert";
import { createHash } from "node:crypto";
import { Reactor } from "../../src/linux/reactor.ts";
import { ResponderPort } from "../../src/network/responder_port.ts";
import { TapPort } from "../../src/network/tap.ts";
import { pattern } from "./responder_support.ts";
import { ip, Namespace, networkTest, Relay, turnUntil } from "./support.ts";

const SIZE = 8 << 20;

/** The MD5 sum of what `GET /bytes/N` has to send. */
function expectedSum(): string {
  return md5(Uint8Array.from({ length: SIZE }, (_, i) => i % 251));
}

function md5(bytes: Uint8Array): string {
  return createHash("md5").update(bytes).digest("hex");
}

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
    this.port = new ResponderPort({}, this.reactor);
    this.relay = new Relay(this.reactor, [this.tap, this.port]);
  }

  /** Runs a shell's command while frames pass; returns what it printed. */
  async run(command: string, timeoutMs = 20_000): Promise<string> {
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
    await turnUntil(this.reactor, ready, "an address from our prefix", 15_000);
  }

  [Symbol.dispose](): void {
    this.relay.dispose();
    this.port[Symbol.dispose]();
    this.tap[Symbol.dispose]();
    this.reactor[Symbol.dispose]();
    this.namespace[Symbol.dispose]();
  }
}

for (const offloads of [false, true]) {
  const how = offloads ? "with offloads" : "without offloads";
  networkTest(`responder: curl has 8 MiB with the right sum, ${how}`, ["ip", "curl"], async () => {
    using link = new Link(offloads);
    const get = "curl -s --max-time 15";
    const sum = await link.run(`${get} http://10.0.2.2/bytes/${SIZE} | md5sum`);
    assertEquals(sum.split(" ")[0], expectedSum());
    assert((await link.run(`${get} http://10.0.2.2/`)).includes("vmsg responder"));
    assertEquals(
      await link.run(`${get} -o /dev/null -w '%{http_code}' http://10.0.2.2/nowhere`),
      "404",
    );
    // A port where nobody listens is refused at once, not by a timeout.
    assertEquals(await link.run(`${get} http://10.0.2.2:81/; echo $?`), "7");
    const { tcpConnections, checksumErrors, malformed } = link.port.responder.counters;
    assertEquals({ tcpConnections, checksumErrors, malformed }, {
      tcpConnections: 3,
      checksumErrors: 0,
      malformed: 0,
    });
  });

  networkTest(
    `responder: autoconfiguration, ping and curl over IPv6, ${how}`,
    ["ip", "curl", "ping"],
    async () => {
      using link = new Link(offloads);
      await link.configured();
      await link.run("ping -6 -c 2 -i 0.1 -W 2 fd00::2");
      await link.run("ping -6 -c 2 -i 0.1 -W 2 fe80::5055:aff:fe00:202%resp0");
      const url = `'http://[fd00::2]/bytes/${SIZE}'`;
      const sum = await link.run(`curl -s --max-time 15 ${url} | md5sum`);
      assertEquals(sum.split(" ")[0], expectedSum());
      // An address of ours that the kernel tries to take is defended.
      ip("-6 addr add fd00::2/64 dev resp0");
      await turnUntil(
        link.reactor,
        () => ip("-6 addr show dev resp0").includes("dadfailed"),
        "detection of the duplicate",
        10_000,
      );
      const { checksumErrors, malformed } = link.port.responder.counters;
      assertEquals({ checksumErrors, malformed }, { checksumErrors: 0, malformed: 0 });
    },
  );

  networkTest(
    `responder: the kernel fills discard and empties chargen, ${how}`,
    ["ip", "bash", "head"],
    async () => {
      using link = new Link(offloads);
      const { counters } = link.port.responder;
      await link.run(`bash -c 'head -c ${SIZE} /dev/zero > /dev/tcp/10.0.2.2/9'`);
      await turnUntil(
        link.reactor,
        () => link.port.responder.snapshot().connections.length === 0,
        "the end of the connection",
      );
      assertEquals(counters.tcpBytesIn, SIZE);
      if (offloads) assert(link.relay.seen[0].longest > 60_000, `${link.relay.seen[0].longest}`);
      const sum = await link.run(
        `bash -c 'head -c ${SIZE} < /dev/tcp/10.0.2.2/19 | md5sum'`,
      );
      assertEquals(sum.split(" ")[0], md5(pattern(SIZE)));
      assert(counters.tcpBytesOut >= SIZE);
      assertEquals(counters.tcpConnections, 2);
      const { tcpRetransmits, tcpTimeouts, checksumErrors } = counters;
      assertEquals({ tcpTimeouts, checksumErrors }, { tcpTimeouts: 0, checksumErrors: 0 });
      console.log(`${how}: ${tcpRetransmits} retransmits`);
    },
  );
}
