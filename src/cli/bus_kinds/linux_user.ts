/** `--bus linux-user`: two processes of one host. */

import type { BusOptions } from "../../bus/bus.ts";
import { LinuxUserBus, type LinuxUserOptions } from "../../bus/linux_user.ts";
import { ACCESS_HELP, ACCESS_KEYS, ACCESS_USAGE, parseAccess } from "../access_option.ts";
import type { BusKind } from "./bus_kind.ts";

type LinuxUserSettings = Omit<LinuxUserOptions, keyof BusOptions | "reset" | "lock" | "log">;

export const linuxUserKind: BusKind<LinuxUserSettings> = {
  name: "linux-user",
  usage: "linux-user,socket=PATH[,name=NAME][,dir=DIR][,listen[=off]][,wait=off]" +
    ACCESS_USAGE,
  help: "two queue files (queue-NAME-driver, queue-NAME-device in DIR, by default the current " +
    "directory) and a socket on which the device side listens unless told otherwise; wait=off fails " +
    `at once when nobody is there. ${ACCESS_HELP}, and use the files`,
  keys: ["name", "dir", "socket", "listen", "wait", ...ACCESS_KEYS],
  parse: (group, side) => ({
    name: group.text("name") ?? "linux-user",
    directory: group.text("dir") ?? ".",
    socket: group.required("socket"),
    access: parseAccess(group),
    listen: group.flag("listen", side === "device"),
    wait: group.flag("wait", true),
  }),
  open: (settings, { side, reactor, isV1, isAuto, reset, common }) =>
    new LinuxUserBus(side, reactor, {
      ...common,
      ...settings,
      reset,
      // Only vmsg processes lock the files, and only what they left is known to be stale.
      lock: isV1,
      discardOnAttach: isAuto ? "from vmsg" : isV1,
    }),
};
