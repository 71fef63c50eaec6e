/**
 * A session with the responder (DHCP, ping, UDP, over IPv4 and IPv6) in a capture, as tshark sees it.
 *
 * The kernel behind `vmsg driver --tap` is the other host. With offloads it leaves checksums to the
 * device, so its own frames may have partial ones; the responder computes each of its own.
 */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { assertSound, readFrames } from "../support/capture.ts";
import { type HeldNamespace, namespacesTest } from "../support/namespaces.ts";
import { PATIENCE_MS } from "../support/processes.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];
const WINDOW = 32;
const WINDOWS = 5;
const RESPONDER = [0x52, 0x55, 0x0a, 0x00, 0x02, 0x02];
const MAC = RESPONDER.map((byte) => byte.toString(16).padStart(2, "0")).join(":");

/** Takes the address that DHCP gives; udhcpc calls it with what happened. */
const LEASE = `#!/bin/sh
[ "$1" = bound ] && ip addr add "$ip/$mask" dev "$interface" && echo "LEASE $ip/$mask"
exit 0
`;

async function configuredByAdvertisement(namespace: HeldNamespace): Promise<void> {
  const deadlineMs = performance.now() + PATIENCE_MS;
  for (;;) {
    const text = (await namespace.run("ip -6 address show dev eth1")).stdout.join("\n");
    if (text.includes("inet6 fd00:") && !text.includes("tentative")) return;
    assert(performance.now() < deadlineMs, `no address from the responder's prefix:\n${text}`);
  }
}

for (const offloads of ["on", "off"]) {
  namespacesTest(
    `capture: a session with the responder in tshark, offloads ${offloads}`,
    ["bash", "busybox", "dd", "ping", "tshark"],
    async (near, far) => {
      const { directory } = near.processes;
      const device = await far.startVmsg("device", ...BUS, "--net", "responder,pcap=frames.pcap");
      const driver = await near.startVmsg("driver", ...BUS, "--tap", `eth1,offloads=${offloads}`);
      await driver.waitFor(/tap eth1: connected/);

      await Deno.writeTextFile(`${directory}/lease.sh`, LEASE, { mode: 0o755 });
      const lease = await near.run(
        "busybox udhcpc -i eth1 -s ./lease.sh -f -q -n -t 60 -T 1",
      );
      assertMatch(lease.stdout.join("\n"), /LEASE 10\.0\.2\.\d+\/24/);
      await near.run("ping -q -c 5 -i 0.01 -W 60 10.0.2.2");
      await configuredByAdvertisement(near);
      await near.run("ping -q -c 5 -i 0.01 -W 60 fd00::2");
      // A kernel that is not answered within three seconds forgets where the responder is, and what it sends then.
      for (const host of ["10.0.2.2", "fd00::2"]) {
        await near.run(`ip neigh replace ${host} lladdr ${MAC} dev eth1 nud permanent`);
      }
      for (const host of ["10.0.2.2", "fd00::2"]) {
        // Datagrams of 1400 bytes, as many as a socket's buffer holds, at a time.
        const fetch = `exec 3<>/dev/udp/${host}/19; for window in $(seq ${WINDOWS}); do ` +
          `printf '\\0\\0\\0\\x${WINDOW.toString(16)}\\x05\\x78\\0\\0' >&3; ` +
          `dd bs=2048 count=${WINDOW} <&3 2>/dev/null; done | wc -c`;
        await using fetched = await near.start("bash", "-c", fetch);
        assertEquals((await fetched.ended()).stdout, [`${WINDOWS * WINDOW * 1400}`]);
      }
      await using udp = await near.start(
        "bash",
        "-c",
        "echo to discard >/dev/udp/10.0.2.2/9; exec 3<>/dev/udp/10.0.2.2/19; echo go >&3; " +
          "head -c 20 <&3 | wc -c",
      );
      assertEquals((await udp.ended()).stdout, ["20"]);
      for (const process of [driver, device]) {
        assertEquals((await process.end("SIGTERM")).code, 0);
      }

      const path = `${directory}/frames.pcap`;
      const frames = readFrames(path);
      const dissection = await assertSound(path, { partial: offloads === "on" });
      const { protocols, badChecksums, goodChecksums } = dissection;
      const wanted = ["ARP", "DHCP", "ICMP", "ICMPv6", "UDP"];
      const seen = [...protocols.keys()];
      // tshark names port 19's protocol otherwise.
      for (const name of wanted) {
        assert(seen.some((one) => one.startsWith(name)), `${name}: ${seen}`);
      }
      // Not even a partial checksum in what the responder sent.
      const own = frames.flatMap((frame, i) =>
        RESPONDER.every((byte, k) => frame[6 + k] === byte) ? [i + 1] : []
      );
      assert(own.length > 2 * WINDOWS * WINDOW, `only ${own.length} frames from the responder`);
      assertEquals(own.filter((number) => badChecksums.includes(number)), []);
      console.log(
        `responder, offloads ${offloads}: ${frames.length} frames, ${badChecksums.length} with a ` +
          `partial checksum; good: ${JSON.stringify(goodChecksums)}`,
      );
    },
  );
}
