/** `vmsg ivshmem-server`: shared memory and doorbells for processes and guests on this host. */

import { MAX_VECTORS } from "../ivshmem/protocol.ts";
import {
  IvshmemServer,
  type IvshmemServerOptions,
  MAX_CLIENTS,
  memorySizeProblem,
} from "../ivshmem/server.ts";
import { UsageError } from "../linux/errors.ts";
import { parseAccess, parseOwner } from "./access_option.ts";
import { type Group, parseBytes, parseGroup } from "./groups.ts";
import type { Options } from "./command.ts";
import { type PlaneCommand, planeCommand } from "./plane.ts";

type IvshmemServerSettings = Omit<IvshmemServerOptions, "log" | "trace">;

/** Bytes as they are given everywhere, and of a size that the memory can have. */
function parseSize(text: string): number {
  const size = parseBytes("--size", text);
  const problem = memorySizeProblem(size);
  if (problem !== undefined) throw new UsageError(`--size ${text}: ${problem}`);
  return size;
}

/** One of the options that are keys of a group elsewhere. */
function asKey(options: Options, key: string): Group {
  const text = options.text(key);
  return parseGroup(`--${key}`, text === undefined ? "" : `${key}=${text}`, [key]);
}

/** See `vmsg ivshmem-server --help`. */
export const ivshmemServerCommand: PlaneCommand<IvshmemServerSettings> = planeCommand({
  name: "ivshmem-server",
  summary: "shared memory and doorbells between guests and processes of this host",
  description:
    "Serves QEMU's ivshmem-doorbell devices, and vmsg processes that are peers themselves: all get the " +
    `same memory, an id each (0, 1, ... as they come), and ring one another. At most ${MAX_CLIENTS} at a time. ` +
    "Runs until it is told to stop; those who have met then go on without it, but meet nobody new.",
  options: [
    {
      name: "socket",
      value: "PATH",
      required: true,
      help: "listen on PATH; one that a killed process left is replaced",
    },
    {
      name: "size",
      value: "BYTES",
      default: "4M",
      help: "how much memory is shared: a power of two from 4K to 64G, as in 4096, 0x1000, 64M",
    },
    {
      name: "vectors",
      value: "N",
      default: "2",
      help: `doorbells per peer, 0 to ${MAX_VECTORS}; not less than the vectors= of QEMU's devices`,
    },
    {
      name: "file",
      value: "PATH",
      help: "share this file, as in /dev/shm or on a hugetlbfs; it is made if there is none, " +
        "and stays (default: anonymous memory that nobody can cut off)",
    },
    { name: "owner", value: "USER", help: "whose the file is, if it is not this user's" },
    {
      name: "mode",
      value: "OCTAL",
      help: "the permissions of the socket (default: 0600, or 0660 with --group)",
    },
    { name: "group", value: "GROUP", help: "the group that the socket is given to" },
  ],
  examples: [
    "vmsg ivshmem-server --socket shm.sock --size 1M --vectors 2",
    "qemu-system-x86_64 ... -chardev socket,path=shm.sock,id=shm \\\n" +
    "      -device ivshmem-doorbell,vectors=2,chardev=shm",
  ],
  parse: (options) => ({
    socket: options.text("socket")!,
    size: parseSize(options.text("size")!),
    vectors: options.wholeNumber("vectors", 0, MAX_VECTORS)!,
    file: options.text("file"),
    owner: parseOwner(asKey(options, "owner")),
    access: {
      mode: parseAccess(asKey(options, "mode")).mode,
      group: parseAccess(asKey(options, "group")).group,
    },
  }),
  open: (settings, { reactor, log, trace, stack }) => {
    stack.use(new IvshmemServer(reactor, { ...settings, log, trace }));
    return {};
  },
});
