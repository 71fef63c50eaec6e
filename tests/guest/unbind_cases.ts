/**
 * A driver that goes while frames pour in: from then on not one byte of the guest's memory is written.
 *
 * The guest unbinds its driver under a flood of broadcast frames, which frees the receive buffers that
 * the device was given. It then fills nearly all free memory with a pattern, so that those very pages
 * hold it, and looks after a while whether the pattern is whole. A device that went on writing into the
 * buffers it knew would be seen (tried with one that did: the checksum differed each time).
 */

import { createHash } from "node:crypto";

import { assert, assertEquals } from "@std/assert";
import { pingScript } from "../../scripts/lab/scripts.ts";
import type { Mode } from "./modes.ts";
import { GUEST_TIMEOUT_MS, guestTest } from "./support.ts";

const BUS = ["--bus", "linux-user,socket=lu.sock"];
/** Frames a second. */
const FLOOD = 2000;
/** What stays free, in MiB: the kernel needs a little to live on. */
const SPARE = 8;
const PATTERN = "not one byte";

const PING = pingScript({ address: "dhcp", peer: "10.0.2.2", count: 3 });
const SCRIPT = `
# rx NAME: so many frames come
rx() {
  enough=$(($(cat /sys/class/net/eth0/statistics/rx_packets) + ${FLOOD / 20}))
  until [ $(cat /sys/class/net/eth0/statistics/rx_packets) -gt $enough ]; do sleep 0.05; done
  echo "RX $1"
}
( ${PING} )
rx before
device=$(basename $(readlink /sys/class/net/eth0/device))
echo "$device" >/sys/bus/virtio/drivers/virtio_net/unbind && echo "UNBOUND $device"
mkdir /fill
mount -t tmpfs -o size=100% fill /fill
free() { awk '/^MemFree:/ { print int($2 / 1024) }' /proc/meminfo; }
size=$(($(free) - ${SPARE}))
yes '${PATTERN}' | dd of=/fill/pattern bs=1M count="$size" iflag=fullblock 2>/dev/null
echo "FILLED $size MiB, $(free) MiB left"
echo "SUM before $(md5sum </fill/pattern)"
sleep 2
echo "SUM after $(md5sum </fill/pattern)"
rm /fill/pattern
echo "CARDS $(ls /sys/class/net)"
echo "$device" >/sys/bus/virtio/drivers/virtio_net/bind && echo "BOUND $device"
( ${PING} )
rx after
`;

/** What md5sum prints for so many MiB of the pattern, line by line. */
function patternSum(mebibytes: number): string {
  const line = new TextEncoder().encode(`${PATTERN}\n`);
  const block = new Uint8Array(line.length << 20);
  for (let at = 0; at < block.length; at += line.length) block.set(line, at);
  const hash = createHash("md5");
  for (let left = mebibytes * 2 ** 20; left > 0; left -= block.length) {
    hash.update(block.subarray(0, left));
  }
  return `${hash.digest("hex")}  -`;
}

/** Registers the test. */
export function unbindTest(mode: Mode): void {
  guestTest(
    `${mode.prefix}unbind under a flood: memory the driver gave back is not touched`,
    "uml",
    async (test) => {
      const { vmsg } = test;
      const device = await vmsg.start(
        "device",
        ...BUS,
        "--net",
        `responder,flood=${FLOOD}`,
        ...mode.device,
      );
      const proxy = await vmsg.start(
        "proxy",
        ...BUS,
        "--vhost-user",
        "socket=vu.sock",
        ...mode.driverSide,
      );
      await proxy.waitFor(/waiting for a front end/);
      const guest = await test.boot({ socket: `${vmsg.directory}/vu.sock`, script: SCRIPT });
      await guest.waitFor(/^GUEST-DONE/, GUEST_TIMEOUT_MS.uml);
      await guest.status;

      const lines = guest.console().split("\n");
      const said = (start: string): string => {
        const line = lines.find((line) => line.startsWith(start));
        if (line === undefined) throw new Error(`the guest did not say ${start}`);
        return line.slice(start.length);
      };
      for (const when of ["before", "after"]) said(`RX ${when}`);
      said("UNBOUND virtio");
      assertEquals(said("CARDS "), "lo");
      const [filled, left] = said("FILLED ").match(/\d+/g)!.map(Number);
      console.log(`filled ${filled} MiB with the pattern, ${left} MiB were left`);
      assert(filled! >= 50, `only ${filled} MiB were filled`);
      assert(left! <= 2 * SPARE, `${left} MiB were left`);
      const expected = patternSum(filled!);
      assertEquals(said("SUM before "), expected, "written before the first look");
      assertEquals(said("SUM after "), expected, "written between the looks");
      said("BOUND virtio");
      assertEquals(lines.filter((line) => line === "PING rc=0").length, 2);
      for (const process of [proxy, device]) {
        assertEquals((await process.end("SIGTERM")).code, 0);
      }
    },
  );
}
