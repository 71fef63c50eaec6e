/** `--device vhost-user,...`: a device that another program serves. */

import {
  DEVICE_TYPES,
  FS_TAG_SIZE,
  QUEUE_SIZE,
  typeOf,
} from "../../devices/vhost_user/device_types.ts";
import {
  VhostUserDevice,
  type VhostUserOptions,
} from "../../devices/vhost_user/vhost_user_device.ts";
import { parseGroup } from "../groups.ts";
import type { DeviceKind } from "./device_kind.ts";

const MOST_ENTRIES = 32768;
const MOST_QUEUES = 129;
const MOST_ID = 0xffff;
/** As much as a message has room for, and more than any device type has. */
const MOST_CONFIG = 256;

const NAMES = DEVICE_TYPES.map(({ name }) => name);

function parseConfig(text: string): Uint8Array | undefined {
  const isHex = /^([0-9a-f]{2})+$/i.test(text) && text.length <= 2 * MOST_CONFIG;
  return isHex ? Uint8Array.from(text.match(/../g)!, (byte) => parseInt(byte, 16)) : undefined;
}

/** What a file system's driver reads: the tag, and how many queues there are for requests. */
function fileSystemConfig(tag: string, queues: number): Uint8Array {
  const config = new Uint8Array(FS_TAG_SIZE + 4);
  new TextEncoder().encodeInto(tag, config);
  new DataView(config.buffer).setUint32(FS_TAG_SIZE, queues, true);
  return config;
}

/** A vhost-user back end as a device. */
export const vhostUserKind: DeviceKind<Omit<VhostUserOptions, "name">> = {
  name: "vhost-user",
  usage: "vhost-user,socket=PATH,id=ID[,queues=N][,queue-size=N][,config=HEX][,tag=NAME]",
  help: `what a vhost-user back end at a Unix socket serves (virtiofsd, qemu-storage-daemon, ` +
    `vhost-device-*). id is the virtio device id or one of ${NAMES.join(", ")}; queues and ` +
    "config are the back end's unless given; tag is what a guest mounts a file system by. The device is " +
    "there as soon as its back end is; one that is started anew goes on",
  parse: (text, option) => {
    const keys = ["socket", "id", "queues", "queue-size", "config", "tag"];
    const group = parseGroup(option, text, keys);
    const socket = group.required("socket");
    const id = group.required("id");
    const type = DEVICE_TYPES.find(({ name }) => name === id);
    if (type === undefined && !/^\d+$/.test(id)) {
      throw group.error(`id is a number or one of ${NAMES.join(", ")}, not ${id}`);
    }
    const deviceId = type?.id ?? group.number("id", 1, MOST_ID, 0);
    const given = group.text("queues");
    const queues = given === undefined ? undefined : group.number("queues", 1, MOST_QUEUES, 1);
    const usual = typeOf(deviceId).queueSize ?? QUEUE_SIZE;
    const queueSize = group.number("queue-size", 1, MOST_ENTRIES, usual);
    if ((queueSize & (queueSize - 1)) !== 0) throw group.error("queue-size is a power of two");
    const [hex, tag] = [group.text("config"), group.text("tag")];
    if (hex !== undefined && tag !== undefined) throw group.error("give one of config= and tag=");
    let config: Uint8Array | undefined;
    if (hex !== undefined) {
      config = parseConfig(hex);
      if (config === undefined) {
        throw group.error(`config has 1 to ${MOST_CONFIG} bytes, each two digits in hexadecimal`);
      }
    } else if (tag !== undefined) {
      if (tag === "" || new TextEncoder().encode(tag).length > FS_TAG_SIZE) {
        throw group.error(`tag has 1 to ${FS_TAG_SIZE} bytes`);
      }
      config = fileSystemConfig(tag, (queues ?? 2) - 1);
    }
    return { socket, deviceId, queues, queueSize, config };
  },
  open: (settings, { reactor, log, number }) => {
    const description = `vhost-user ${settings.socket}`;
    const model = new VhostUserDevice(
      reactor,
      { ...settings, name: `${number} ${description}` },
      log,
    );
    return { model, description, counters: model.counters, ready: model.ready };
  },
};
