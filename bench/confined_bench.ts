/**
 * What confined mode costs: its copies beside memcpy, and whole frames beside direct mode.
 *
 *     deno task bench:confined [--quick] [copy] [guests]
 *
 * `copy` is a shadow queue alone, a batch at a time: the guest is the mock's ring whose buffers are all
 * offered once, the device uses every buffer at once and touches no byte. The twin in C does the memcpy calls
 * of the same frames in the same segments, and nothing else. A frame has a virtio-net header of 12 bytes
 * besides; the largest is 65226 bytes, in pages, or in larger segments as hosts with huge pages have them.
 *
 * `guests` is processes: `vmsg device` with two TAPs on a bridge in a network namespace of its own, `vmsg
 * proxy`, and this one, which is the guests behind two front ends (confined_guests.ts). One sends, the other counts or
 * echoes. The modes take turns, the segment of confined mode has three sizes; direct mode is the twin.
 */

import { CopiedQueue, copiedRingsSize } from "../src/sharing/copied_queue.ts";
import { mapAnonymous } from "../src/linux/mapping.ts";
import { measureGuests } from "./confined_guests.ts";
import { measureCase, printHead, report, startTwin, type Twin } from "./harness.ts";
import { offeredRing } from "./offered_ring.ts";
import { isSelected, say } from "./options.ts";

const HEADER = 12;
const PAGE = 4096;

/** One row. */
interface Copy {
  /** Of the frame, header included. */
  readonly length: number;
  /** The guest's segments. */
  readonly segment: number;
  readonly ringSize: number;
  readonly batch: number;
}

const COPIES: readonly Copy[] = [
  { length: HEADER + 64, segment: PAGE, ringSize: 256, batch: 32 },
  { length: HEADER + 1500, segment: PAGE, ringSize: 256, batch: 32 },
  { length: HEADER + 65226, segment: PAGE, ringSize: 64, batch: 16 },
  { length: HEADER + 65226, segment: 32768, ringSize: 64, batch: 16 },
];

/** Cuts a frame into segments. */
function cut(length: number, segment: number): number[] {
  const lengths: number[] = [];
  for (let left = length; left > 0; left -= segment) lengths.push(Math.min(left, segment));
  return lengths;
}

async function measureCopy(copy: Copy, toDevice: boolean, twin: Twin | undefined): Promise<void> {
  const { length, segment, ringSize, batch } = copy;
  const lengths = cut(length, segment);
  const stride = Math.ceil(length / 2048) * 2048;
  using ring = offeredRing({
    size: ringSize,
    lengths,
    stride,
    indirect: lengths.length > 1,
    negotiated: true,
    writable: !toDevice,
  });
  const size = copiedRingsSize(ringSize) + (length + 63) * batch;
  using memory = mapAnonymous(size);
  // As memory of a machine that is up: every page is there.
  new Uint8Array(memory.buffer).fill(1);
  const shadow = new CopiedQueue(ring.open(), { memory, offset: 0, size, at: 0 }, true);
  const { driverAddress, deviceAddress } = shadow.setup;
  const avail = new Uint16Array(memory.buffer, driverAddress, 2 + ringSize);
  const used = new Uint16Array(memory.buffer, deviceAddress, 2);
  const elements = new Uint32Array(memory.buffer, deviceAddress + 4, 2 * ringSize);
  let index = 0;
  const medians = await measureCase({
    name: `copy ${toDevice ? "to" : "from"} the device, ${length - HEADER} B in ${
      segment / 1024
    } KiB`,
    granularity: batch,
    twin: `copy ${Number(toDevice)} ${length} ${segment} ${stride} ${ringSize} ${batch}`,
    run: (operations) => {
      const before = shadow.counters.returned;
      for (let done = 0; done < operations; done += batch) {
        ring.offer(batch);
        shadow.giveBack();
        shadow.forward();
        for (let i = 0; i < batch; i++, index++) {
          const slot = index % ringSize;
          elements[2 * slot] = avail[2 + slot];
          elements[2 * slot + 1] = toDevice ? 0 : length;
        }
        used[1] = index;
        shadow.giveBack();
      }
      const frames = shadow.counters.returned - before;
      if (frames !== operations) throw new Error(`${frames} frames: ${shadow.broken}`);
    },
  }, twin);
  if (medians === undefined || length < 65536 / 2) return;
  const rate = (ns: number) => `${(length / ns).toFixed(1)} GB/s`;
  const { ours, twin: theirs } = medians;
  const line = `  ${rate(ours)}, memcpy ${rate(theirs)}: ${(100 * theirs / ours).toFixed(0)} %`;
  say(line);
}

if (import.meta.main) {
  if (isSelected("copy")) {
    printHead("shadow queue, per frame");
    await using twin = await startTwin("copy");
    for (const toDevice of [true, false]) {
      for (const copy of COPIES) await measureCopy(copy, toDevice, twin);
    }
  }
  if (isSelected("guests")) await measureGuests(report);
  report.finish(isSelected("guests"));
}
