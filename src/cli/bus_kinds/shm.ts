/** `--bus shm`: any memory that both sides share. */

import type { BusOptions } from "../../bus/bus.ts";
import {
  type Doorbell,
  type Registers,
  SHM_MINIMUM,
  ShmBus,
  type ShmBusOptions,
} from "../../bus/shm.ts";
import { parseOwner } from "../access_option.ts";
import type { Group } from "../groups.ts";
import {
  type BusKind,
  LAYOUT_HELP,
  LAYOUT_USAGE,
  parseLayout,
  unseenPeerOptions,
} from "./bus_kind.ts";

type ShmSettings = Omit<ShmBusOptions, keyof BusOptions | "reset" | "named" | "log">;

function doorbellOf(group: Group, register: Registers | undefined): Doorbell | undefined {
  const number = (key: string, otherwise: number) => group.number(key, 0, 0xffff_ffff, otherwise);
  if (register === undefined) return undefined;
  const pulse = number("doorbell-then", -1);
  return {
    ...register,
    value: number("doorbell-value", 1),
    pulse: pulse < 0 ? undefined : pulse,
  };
}

export const shmKind: BusKind<ShmSettings> = {
  name: "shm",
  usage: "shm,file=PATH[,owner=USER][,offset=N][,size=N][,notify=poll|uio][,uio=/dev/uioN]" +
    LAYOUT_USAGE +
    "[,doorbell=OFFSET[,doorbell-file=PATH][,doorbell-value=N][,doorbell-then=N]]" +
    "[,acknowledge=OFFSET[,acknowledge-file=PATH]]" +
    "[,mailbox=OFFSET[,mailbox-file=PATH][,mailbox-base=N]]",
  help:
    "the same queues at an offset of any memory that both sides map: a file, /dev/mem, /dev/uioN. " +
    "The other side is heard by polling, or by the interrupts of a UIO device (by default the file), " +
    "and rung by writing a 32-bit register, if there is one. A plain file, also in /dev/shm, is this user's or owner's. " +
    LAYOUT_HELP +
    ". For cards: doorbell-then is written right behind doorbell-value, acknowledge is a " +
    "register where interrupts are taken back, mailbox three by which the device side is told where in size bytes of " +
    "the file the queues are: the driver side says mailbox-base, by default its offset",
  keys: [
    ...["file", "owner", "offset", "size", "notify", "uio", "layout"],
    ...["doorbell", "doorbell-file", "doorbell-value", "doorbell-then"],
    ...["acknowledge", "acknowledge-file", "mailbox", "mailbox-file", "mailbox-base"],
  ],
  parse: (group, side) => {
    const file = group.required("file");
    const notify = group.choice("notify", ["poll", "uio"], "poll");
    if (notify === "poll" && group.text("uio") !== undefined) {
      throw group.error("uio needs notify=uio");
    }
    const registers = (key: string) =>
      group.text(key) === undefined
        ? undefined
        : { file: group.text(`${key}-file`) ?? file, offset: group.bytes(key) };
    for (const key of shmKind.keys) {
      const of = key.split("-")[0]!;
      if (group.text(key) === undefined || group.text(of) !== undefined) continue;
      throw group.error(`${key} goes with ${of}=`);
    }
    const acknowledge = registers("acknowledge");
    if (acknowledge !== undefined && notify !== "uio") {
      throw group.error("acknowledge needs notify=uio: there are no interrupts otherwise");
    }
    const isTold = side === "device" && group.text("mailbox") !== undefined;
    if (isTold && group.text("mailbox-base") !== undefined) {
      throw group.error("mailbox-base is for the driver side: the device side is told");
    }
    const offset = group.bytes("offset", 0);
    return {
      file,
      owner: parseOwner(group),
      offset,
      size: group.bytes("size", SHM_MINIMUM),
      layout: parseLayout(group),
      uio: notify === "uio" ? group.text("uio") ?? file : undefined,
      doorbell: doorbellOf(group, registers("doorbell")),
      acknowledge,
      mailbox: registers("mailbox"),
      mailboxBase: group.bytes("mailbox-base", offset),
    };
  },
  open: (settings, context) => {
    const { side, reactor, common } = context;
    return new ShmBus(side, reactor, { ...common, ...settings, ...unseenPeerOptions(context) });
  },
};
