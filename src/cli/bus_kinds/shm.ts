/** `--bus shm`: any memory that both sides share. */

import type { BusOptions } from "../../bus/bus.ts";
import { SHM_MINIMUM, ShmBus, type ShmBusOptions } from "../../bus/shm.ts";
import { parseOwner } from "../access_option.ts";
import {
  type BusKind,
  LAYOUT_HELP,
  LAYOUT_USAGE,
  parseLayout,
  unseenPeerOptions,
} from "./bus_kind.ts";

type ShmSettings = Omit<ShmBusOptions, keyof BusOptions | "reset" | "named" | "log">;

export const shmKind: BusKind<ShmSettings> = {
  name: "shm",
  usage: "shm,file=PATH[,owner=USER][,offset=N][,size=N][,notify=poll|uio][,uio=/dev/uioN]" +
    LAYOUT_USAGE +
    "[,doorbell=OFFSET[,doorbell-file=PATH][,doorbell-value=N]]",
  help:
    "the same queues at an offset of any memory that both sides map: a file, /dev/mem, /dev/uioN. " +
    "The other side is heard by polling, or by the interrupts of a UIO device (by default the file), " +
    "and rung by writing a 32-bit register, if there is one. A plain file, also in /dev/shm, is this user's or owner's. " +
    LAYOUT_HELP,
  keys: [
    ...["file", "owner", "offset", "size", "notify", "uio", "layout"],
    ...["doorbell", "doorbell-file", "doorbell-value"],
  ],
  parse: (group) => {
    const file = group.required("file");
    const notify = group.choice("notify", ["poll", "uio"], "poll");
    if (notify === "poll" && group.text("uio") !== undefined) {
      throw group.error("uio needs notify=uio");
    }
    return {
      file,
      owner: parseOwner(group),
      offset: group.bytes("offset", 0),
      size: group.bytes("size", SHM_MINIMUM),
      layout: parseLayout(group),
      uio: notify === "uio" ? group.text("uio") ?? file : undefined,
      doorbell: group.text("doorbell") === undefined ? undefined : {
        file: group.text("doorbell-file") ?? file,
        offset: group.bytes("doorbell"),
        value: group.number("doorbell-value", 0, 0xffff_ffff, 1),
      },
    };
  },
  open: (settings, context) => {
    const { side, reactor, common } = context;
    return new ShmBus(side, reactor, { ...common, ...settings, ...unseenPeerOptions(context) });
  },
};
