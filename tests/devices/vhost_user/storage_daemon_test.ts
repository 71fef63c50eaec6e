/**
 * A back end that others have written: Debian's qemu-storage-daemon, which completes requests in any order, is killed with many
 * of them under way, again and again. Each comes back once, and the disk holds what was written.
 */

import { assertEquals } from "@std/assert";
import { findProgram } from "../../../scripts/lab/libraries.ts";
import { storageDaemonCommand } from "../../../scripts/lab/back_ends.ts";
import { VhostUserDevice } from "../../../src/devices/vhost_user/vhost_user_device.ts";
import { createSealedMemory, type Fd } from "../../../src/linux/fd.ts";
import { mapShared } from "../../../src/linux/mapping.ts";
import { Reactor } from "../../../src/linux/reactor.ts";
import type { MemoryRegion } from "../../../src/memory/mod.ts";
import { createLog } from "../../../src/observe/log.ts";
import { waitUntil } from "../../support/front_end.ts";
import { withDirectory } from "../../support/leaks.ts";
import { MockDriver, MockMemory, Random } from "../../support/mock_driver.ts";
import { testUnless } from "../../support/needs.ts";
import { ACCEPTED, AT, BLOCK, Host } from "./support.ts";

const DISK_BYTES = 64 << 20, SECTOR = 512;
/** Three descriptors each. */
const REQUESTS = 64, ENTRIES = 256;
/** Where each has its header, status and data, and how much of that. */
const BUFFERS = AT + 0x10000, ROOM = 0x11000, STATUS = 16, DATA = 0x1000, MOST = 0x10000;
const IN = 0, OUT = 1;
const ROUNDS = 6;
/** Of a daemon that starts on a busy machine, and all it has to do. */
const PATIENCE_MS = 60_000;

const LACKS = await findProgram("qemu-storage-daemon") !== undefined ? [] : [{
  what: "qemu-storage-daemon is missing: apt-get install qemu-system-common",
  requiredBy: "VMSG_GUEST_TESTS" as const,
}];

testUnless(
  "vhost-user device: qemu-storage-daemon is killed with many requests under way, and each comes back once",
  LACKS,
  () =>
    withDirectory(async (directory) => {
      const disk = `${directory}/disk.img`, socket = `${directory}/back.sock`;
      Deno.writeFileSync(disk, new Uint8Array(DISK_BYTES));
      const daemons: Deno.ChildProcess[] = [];
      const start = () => {
        const [program, ...args] = storageDaemonCommand(socket, disk);
        daemons.push(new Deno.Command(program!, { args, stdout: "null" }).spawn());
      };
      start();
      try {
        await drive(socket, async (reactor) => {
          const daemon = daemons.at(-1)!;
          daemon.kill("SIGKILL");
          // The next one would find them in use: the socket, and the disk, which is locked until the last thread has ended.
          Deno.removeSync(socket);
          await waitUntil(reactor, () => hasEnded(daemon.pid), PATIENCE_MS);
          start();
        });
      } finally {
        daemons.at(-1)!.kill("SIGKILL");
        for (const daemon of daemons) await daemon.status;
      }
    }),
);

/** Is nothing of a child left but how it ended? */
function hasEnded(pid: number): boolean {
  try {
    const isAlone = [...Deno.readDirSync(`/proc/${pid}/task`)].length <= 1;
    return isAlone && /^\d+ \(.*\) Z/.test(Deno.readTextFileSync(`/proc/${pid}/stat`));
  } catch {
    return true;
  }
}

async function drive(
  socket: string,
  kill: (reactor: Reactor) => Promise<void>,
): Promise<void> {
  const seed = Random.seed();
  const random = new Random(seed);
  using reactor = new Reactor();
  using stack = new DisposableStack();
  let fd: Fd | undefined;
  const size = BUFFERS - AT + REQUESTS * ROOM;
  using memory = new MockMemory([{ at: AT, size }], 0, (bytes) => {
    fd = stack.use(createSealedMemory("vmsg-guest", bytes));
    return mapShared(fd.number, bytes);
  });
  const offset = memory.offset(AT);
  const region: MemoryRegion = {
    ...{ at: AT, size, memory: memory.memory, offset },
    ...{ fd: fd!, fileOffset: offset },
  };
  const driver = new MockDriver(memory, { size: ENTRIES, at: AT, eventIndex: true });
  const lines: string[] = [];
  const log = createLog("test", "debug", (line) => lines.push(line));
  const options = { socket, deviceId: BLOCK, queueSize: ENTRIES, name: "0 test" };
  using device = new VhostUserDevice(reactor, options, log);
  const host = new Host();
  host.memory.add(AT, size, memory.memory, offset);

  const disk = new Uint8Array(DISK_BYTES);
  const runRound = async (killsIt: boolean) => {
    const open = new Map<number, () => void>();
    for (let i = 0; i < REQUESTS; i++) {
      // Each in a part of its own, so that their order does not matter.
      const part = DISK_BYTES / REQUESTS;
      const length = SECTOR * (1 + random.below(random.pick([1, 8, MOST / SECTOR])));
      const sector = (i * part) / SECTOR + random.below((part - length) / SECTOR);
      const type = random.chance(0.5) ? OUT : IN;
      const at = BUFFERS + i * ROOM;
      const header = { address: at, length: 16 }, data = { address: at + DATA, length };
      const status = { address: at + STATUS, length: 1 };
      memory.write32(at, type);
      memory.write64(at + 8, BigInt(sector));
      memory.bytes(at + STATUS, 1)[0] = 0xff;
      const bytes = memory.bytes(data.address, length);
      for (let at = 0; at < length; at += 8) bytes[at] = random.u32();
      const onDisk = disk.subarray(sector * SECTOR, sector * SECTOR + length);
      if (type === OUT) onDisk.set(bytes);
      const head = type === OUT
        ? driver.add([header, data], [status])
        : driver.add([header], [data, status]);
      open.set(head!, () => {
        assertEquals(memory.bytes(at + STATUS, 1)[0], 0);
        assertEquals(bytes, onDisk, `seed ${seed}, sector ${sector}`);
      });
    }
    driver.wantCalls();
    driver.publish();
    device.available(0);
    const takeBack = () => {
      for (let used = driver.takeUsed(); used !== undefined; used = driver.takeUsed()) {
        const check = open.get(used.head);
        if (check === undefined) throw new Error(`seed ${seed}: ${used.head} came back twice`);
        open.delete(used.head);
        check();
      }
      driver.wantCalls();
      return open.size;
    };
    if (killsIt) {
      await waitUntil(reactor, () => takeBack() < REQUESTS, PATIENCE_MS);
      await kill(reactor);
    }
    await waitUntil(reactor, () => takeBack() === 0, PATIENCE_MS);
  };

  await reactor.until((async () => {
    await device.ready;
    device.connect(host);
    assertEquals(await device.acceptFeatures(ACCEPTED), true);
    assertEquals(await device.memoryAdded([region]), undefined);
    assertEquals(await device.startQueue(0, driver.config), undefined);
    host.isRunning = true;
    device.resume();
    for (let round = 0; round < ROUNDS; round++) await runRound(true);
    await runRound(false);
    assertEquals(host.problems, [], lines.join("\n"));
    assertEquals(await device.stopQueue(0), (ROUNDS + 1) * REQUESTS);
    await device.memoryRemoved([region]);
    await device.reset();
  })());
  console.log(`${device.counters.repeated} requests were done once more`);
}
