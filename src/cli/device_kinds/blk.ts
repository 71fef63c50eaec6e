/** `--device blk,...`: a disk. */

import { BlkDevice } from "../../devices/blk/blk_device.ts";
import { Disk } from "../../devices/blk/disk.ts";
import { BlkRequest } from "../../virtio/blk.ts";
import { parseGroup } from "../groups.ts";
import type { DeviceKind } from "./device_kind.ts";

/** As many as a guest with so many processors asks for; more than are used cost nothing. */
const QUEUES = 8;
const MOST_QUEUES = 64;

interface BlkSettings {
  readonly file: string;
  readonly readonly: boolean;
  readonly serial: string;
  readonly discard: boolean;
  readonly queues: number;
}

/** A file or block device as the guest's disk. */
export const blkKind: DeviceKind<BlkSettings> = {
  name: "blk",
  usage: "blk,file=PATH[,readonly][,serial=TEXT][,discard][,queues=N]",
  help:
    "a disk: a file, as large as the disk, or a block device; locked as QEMU locks it. discard " +
    `gives room back that the guest does not need; queues ${QUEUES} unless given`,
  parse: (text, option) => {
    const group = parseGroup(option, text, ["file", "readonly", "serial", "discard", "queues"]);
    const serial = group.text("serial") ?? "";
    if (new TextEncoder().encode(serial).length > BlkRequest.ID_SIZE) {
      throw group.error(`serial has at most ${BlkRequest.ID_SIZE} bytes`);
    }
    return {
      file: group.required("file"),
      readonly: group.flag("readonly", false),
      serial,
      discard: group.flag("discard", false),
      queues: group.number("queues", 1, MOST_QUEUES, QUEUES),
    };
  },
  open: ({ file, readonly, serial, discard, queues }, context) => {
    const { reactor, log, number, forwarded, mayBlock } = context;
    using stack = new DisposableStack();
    const disk = stack.use(
      new Disk({ path: file, readonly, ...mayBlock ? {} : { patienceMs: 0 } }),
    );
    const options = { serial, discard, queues, forwarded, name: `${number} blk` };
    const model = new BlkDevice(reactor, disk, options, log);
    stack.move();
    const refresh = () => model.refresh();
    return { model, description: `blk ${file}`, counters: model.counters, refresh };
  },
};
