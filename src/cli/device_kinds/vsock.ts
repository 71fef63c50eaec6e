/** `--device vsock,...`: sockets between programs of the guest and of this machine. */

import { MOST_PREFIX } from "../../devices/vsock/host_sockets.ts";
import { VsockDevice } from "../../devices/vsock/vsock_device.ts";
import { HOST_CID, MOST_CID } from "../../virtio/vsock.ts";
import { parseGroup } from "../groups.ts";
import type { DeviceKind } from "./device_kind.ts";

/** The first that a guest may have. */
const CID = HOST_CID + 1;

interface VsockSettings {
  readonly prefix: string;
  readonly cid: number;
}

/** Streams (AF_VSOCK) whose other end is a Unix socket. */
export const vsockKind: DeviceKind<VsockSettings> = {
  name: "vsock",
  usage: "vsock,socket=PREFIX[,cid=N]",
  help:
    "sockets (AF_VSOCK) as firecracker has them: who connects to the Unix socket PREFIX and says " +
    "`CONNECT PORT` has the guest's port, a guest that connects to the host's has PREFIX_PORT; " +
    `cid is the guest's, ${CID} unless given`,
  parse: (text, option) => {
    const group = parseGroup(option, text, ["socket", "cid"]);
    const prefix = group.required("socket");
    if (new TextEncoder().encode(prefix).length > MOST_PREFIX) {
      throw group.error(`socket has at most ${MOST_PREFIX} bytes, as _PORT is put behind it`);
    }
    return { prefix, cid: group.number("cid", CID, MOST_CID, CID) };
  },
  open: ({ prefix, cid }, { reactor, log, number, forwarded }) => {
    const options = { prefix, cid, forwarded, name: `${number} vsock` };
    const model = new VsockDevice(reactor, options, log);
    return { model, description: `vsock ${prefix}`, counters: model.counters };
  },
};
