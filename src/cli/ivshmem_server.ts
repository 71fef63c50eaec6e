/** `vmsg ivshmem-server`: shared memory and doorbells for processes and guests on this host. */

import { MAX_VECTORS } from "../ivshmem/protocol.ts";
import {
  IvshmemServer,
  type IvshmemServerOptions,
  MAX_CLIENTS,
  memorySizeProblem,
} from "../ivshmem/server.ts";
import { UsageError } from "../linux/errors.ts";
import { Group } from "./groups.ts";
import { type PlaneCommand, planeCommand } from "./plane.ts";

type IvshmemServerSettings = Omit<IvshmemServerOptions, "log" | "trace">;

/** Bytes as they are given everywhere, and of a size that the memory can have. */
function parseSize(text: string): number {
  const size = new Group("--size", "", new Map([["it", text]])).bytes("it");
  const problem = memorySizeProblem(size);
  if (problem !== undefined) throw new UsageError(`--size ${text}: ${problem}`);
  return size;
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
      help:
        "share this file, as in /dev/shm or on a hugetlbfs; it is made or extended if need be, " +
        "and stays (default: anonymous memory that nobody can cut off)",
    },
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
  }),
  open: (settings, { reactor, log, tracer, stack }) => {
    // The tracer knows virtio-msg; of it counts here that one is wanted.
    const trace = tracer === undefined ? undefined : (line: string) => log.info(line);
    stack.use(new IvshmemServer(reactor, { ...settings, log, trace }));
    return {};
  },
});
