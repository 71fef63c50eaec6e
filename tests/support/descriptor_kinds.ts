/**
 * A descriptor of every kind there is, as a hostile peer sends them: none with O_NONBLOCK, counts and pipes full.
 * What a kind needs that is not there (root, /dev/fuse, huge pages) is said, and the kind left out.
 */

import { fromFileUrl } from "@std/path";
import { allocate } from "../../src/linux/arena.ts";
import { createEventFd } from "../../src/linux/eventfd.ts";
import {
  createSealedMemory,
  Fd,
  O_CREAT,
  openFile,
  openPipe,
  resizeFile,
} from "../../src/linux/fd.ts";
import { check, cString, libc } from "../../src/linux/libc.ts";
import { growPool } from "./huge_pages.ts";

const EFD_SEMAPHORE = 1;
const MFD_HUGETLB = 4;
const O_DIRECTORY = Deno.build.arch === "x86_64" ? 0o200000 : 0o40000;
const O_PATH = 0o10000000;
const SYS_TIMERFD_CREATE = Deno.build.arch === "x86_64" ? 283n : 85n;
const EPOLL_CTL_ADD = 1;
const F_SETFL = 4;
const AF_UNIX = 1, AF_INET = 2, SOCK_STREAM = 1;

const word = allocate(16);

/** Sets a count as high as it goes: the next write to it waits for a reader. */
export function fillEventFd(fd: Fd): void {
  word.view.setBigUint64(0, 0xffff_ffff_ffff_fffen, true);
  check(libc.write(fd.number, word.address, 8), "fill an eventfd");
}

/** Descriptors by the name of their kind, and what makes way for their being closed. */
export interface Kinds extends AsyncDisposable {
  readonly fds: ReadonlyMap<string, Fd>;
}

function eventFd(flags: number): Fd {
  return new Fd(check(libc.eventfd(0, flags), "eventfd"));
}

function fullPipe(): { read: Fd; write: Fd } {
  const pipe = openPipe();
  const nonBlocking = 0o4000n;
  libc.fcntl(pipe.write.number, F_SETFL, nonBlocking);
  const block = allocate(4096);
  while (libc.write(pipe.write.number, block.address, 4096) > 0);
  libc.fcntl(pipe.write.number, F_SETFL, 0n);
  return pipe;
}

function readyEpoll(keep: (fd: Fd) => void): Fd {
  const ready = createEventFd();
  keep(ready);
  fillEventFd(ready);
  const epoll = new Fd(check(libc.epoll_create1(0), "epoll_create1"));
  const event = allocate(16);
  event.view.setUint32(0, 1, true);
  check(libc.epoll_ctl(epoll.number, EPOLL_CTL_ADD, ready.number, event.address), "epoll_ctl");
  return epoll;
}

async function command(name: string, ...args: string[]): Promise<void> {
  const { success, stderr } = await new Deno.Command(name, { args }).output();
  if (!success) throw new Error(`${name}: ${new TextDecoder().decode(stderr)}`);
}

/** Memory of one huge page. @param stack gives the page back to the machine */
function hugeMemory(stack: AsyncDisposableStack): Fd {
  stack.use(growPool(2));
  const number = libc.memfd_create(cString("vmsg-test-huge"), MFD_HUGETLB);
  const fd = stack.use(new Fd(check(number, "memfd_create")));
  resizeFile(fd, 1 << 21);
  return fd;
}

/** A file whose every page, and close, waits for a process that does not answer. */
async function fuseFile(
  directory: string,
  size: number,
  stack: AsyncDisposableStack,
): Promise<Fd> {
  const mount = `${directory}/fuse`;
  Deno.mkdirSync(mount);
  const program = fromFileUrl(new URL("fuse_server.ts", import.meta.url));
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", program, mount, `${size}`],
    stdin: "null",
    stdout: "piped",
  }).spawn();
  stack.defer(() => command("umount", "-l", mount).catch(() => {}));
  const reader = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  // It ends first of all: whoever waits for the file is let go.
  const end = async () => {
    child.kill("SIGKILL");
    await reader.cancel();
    await child.status;
  };
  const { value } = await reader.read();
  if (value !== "mounted\n") {
    await end();
    throw new Error(value);
  }
  const fd = stack.use(openFile(`${mount}/file`));
  stack.defer(end);
  return fd;
}

/** Makes one of each. @param size of those that are memory */
export async function everyKind(directory: string, size: number): Promise<Kinds> {
  await using stack = new AsyncDisposableStack();
  const fds = new Map<string, Fd>();
  const add = (name: string, fd: Fd) => fds.set(name, stack.use(fd));
  const perhaps = async (name: string, make: () => Fd | Promise<Fd>) => {
    try {
      fds.set(name, await make());
    } catch (error) {
      if (Deno.env.get("VMSG_GUEST_TESTS") === "required" && Deno.uid() === 0) throw error;
      console.log(`NOT RUN: ${name} as descriptor: ${error}`);
    }
  };

  add("eventfd", eventFd(0));
  add("full eventfd", eventFd(0));
  fillEventFd(fds.get("full eventfd")!);
  add("full semaphore", eventFd(EFD_SEMAPHORE));
  fillEventFd(fds.get("full semaphore")!);
  const pipe = fullPipe();
  add("reading end of a full pipe", pipe.read);
  add("writing end of a full pipe", pipe.write);
  await command("mkfifo", `${directory}/fifo`);
  add("FIFO", openFile(`${directory}/fifo`));
  const pair = allocate(8);
  check(libc.socketpair(AF_UNIX, SOCK_STREAM, 0, pair.address), "socketpair");
  add("blocking socket", new Fd(pair.view.getInt32(0, true)));
  stack.use(new Fd(pair.view.getInt32(4, true)));
  add("TCP socket", new Fd(check(libc.socket(AF_INET, SOCK_STREAM, 0), "socket")));
  add("epoll that is always ready", readyEpoll((fd) => stack.use(fd)));
  add("timerfd", new Fd(check(libc.syscall(SYS_TIMERFD_CREATE, 1n, 0n), "timerfd_create")));
  const file = openFile(`${directory}/regular`, O_CREAT);
  resizeFile(file, size);
  add("regular file", file);
  add("sealed memfd", createSealedMemory("vmsg-test", size));
  const unsealed = new Fd(check(libc.memfd_create(cString("vmsg-test-open"), 0), "memfd_create"));
  resizeFile(unsealed, size);
  add("unsealed memfd", unsealed);
  const place = libc.open(cString(directory), O_DIRECTORY, 0);
  add("directory", new Fd(check(place, "open a directory")));
  add("device node", openFile("/dev/zero"));
  add("O_PATH", openFile("/dev/null", O_PATH));
  await perhaps("huge-page memfd", () => hugeMemory(stack));
  await perhaps("FUSE file", () => fuseFile(directory, size, stack));

  const owned = stack.move();
  return { fds, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}
