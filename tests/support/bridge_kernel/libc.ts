/**
 * What the kernel's side of the bridge needs of libc, by an FFI table of its own: it shares no code with src.
 *
 * Waiting is done on a thread of Deno's ({@link waitReadable}), all else at once.
 */

const library = Deno.dlopen("libc.so.6", {
  socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
  bind: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  connect: { parameters: ["i32", "buffer", "u32"], result: "i32" },
  listen: { parameters: ["i32", "i32"], result: "i32" },
  accept4: { parameters: ["i32", "pointer", "pointer", "i32"], result: "i32" },
  sendmsg: { parameters: ["i32", "buffer", "i32"], result: "isize" },
  recvmsg: { parameters: ["i32", "buffer", "i32"], result: "isize" },
  memfd_create: { parameters: ["buffer", "u32"], result: "i32" },
  ftruncate: { parameters: ["i32", "i64"], result: "i32" },
  lseek: { parameters: ["i32", "i64", "i32"], result: "i64" },
  mmap: { parameters: ["usize", "usize", "i32", "i32", "i32", "i64"], result: "pointer" },
  munmap: { parameters: ["pointer", "usize"], result: "i32" },
  eventfd: { parameters: ["u32", "i32"], result: "i32" },
  read: { parameters: ["i32", "buffer", "usize"], result: "isize" },
  write: { parameters: ["i32", "buffer", "usize"], result: "isize" },
  close: { parameters: ["i32"], result: "i32" },
});
const waiting = Deno.dlopen("libc.so.6", {
  poll: { parameters: ["buffer", "u64", "i32"], result: "i32", nonblocking: true },
});
const libc = library.symbols;

const AF_UNIX = 1, SOCK_STREAM = 1, SOCK_CLOEXEC = 0o2000000, SOCK_NONBLOCK = 0o4000;
const MSG_NOSIGNAL = 0x4000, MSG_DONTWAIT = 0x40, MSG_CMSG_CLOEXEC = 0x4000_0000;
const SOL_SOCKET = 1, SCM_RIGHTS = 1;
const PROT_READ_WRITE = 3, MAP_SHARED = 1;
const POLLIN = 1;
const SEEK_END = 2;

function check(result: number | bigint, what: string): number {
  if (Number(result) < 0) throw new Error(`${what} failed`);
  return Number(result);
}

function addressOf(bytes: Uint8Array<ArrayBuffer>): bigint {
  return Deno.UnsafePointer.value(Deno.UnsafePointer.of(bytes));
}

function unixAddress(path: string): Uint8Array<ArrayBuffer> {
  const name = new TextEncoder().encode(path);
  if (name.length > 107) throw new Error(`${path} is too long for a socket`);
  const address = new Uint8Array(110);
  new DataView(address.buffer).setUint16(0, AF_UNIX, true);
  address.set(name, 2);
  return address;
}

/** A socket that listens at a path. */
export function listenAt(path: string): number {
  const fd = check(libc.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), "socket");
  check(libc.bind(fd, unixAddress(path), 110), `bind to ${path}`);
  check(libc.listen(fd, 8), "listen");
  return fd;
}

/** The next connection; undefined if there is none. */
export function accept(fd: number): number | undefined {
  const connection = libc.accept4(fd, null, null, SOCK_CLOEXEC | SOCK_NONBLOCK);
  return connection < 0 ? undefined : connection;
}

/** A connection to who listens at a path. */
export function connectTo(path: string): number {
  const fd = check(libc.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
  check(libc.connect(fd, unixAddress(path), 110), `connect to ${path}`);
  return fd;
}

/** A struct msghdr over some bytes, with room for descriptors behind it. */
function messageHeader(bytes: Uint8Array<ArrayBuffer>, control: Uint8Array<ArrayBuffer>) {
  const vector = new BigUint64Array([addressOf(bytes), BigInt(bytes.length)]);
  const words = new BigUint64Array(7);
  words[2] = addressOf(new Uint8Array(vector.buffer));
  words[3] = 1n;
  words[4] = control.length === 0 ? 0n : addressOf(control);
  words[5] = BigInt(control.length);
  // All that the header points to has to live as long as it.
  return { header: new Uint8Array(words.buffer), keep: [vector, bytes, control] };
}

/** Sends some bytes, with descriptors; false if nobody is there any more. */
export function sendBytes(
  fd: number,
  bytes: Uint8Array<ArrayBuffer>,
  fds: readonly number[] = [],
): boolean {
  const control = new Uint8Array(fds.length === 0 ? 0 : 16 + 8 * Math.ceil(fds.length / 2));
  if (fds.length > 0) {
    const view = new DataView(control.buffer);
    view.setBigUint64(0, BigInt(16 + 4 * fds.length), true);
    view.setInt32(8, SOL_SOCKET, true);
    view.setInt32(12, SCM_RIGHTS, true);
    fds.forEach((number, i) => view.setInt32(16 + 4 * i, number, true));
  }
  const { header, keep } = messageHeader(bytes, control);
  const sent = Number(libc.sendmsg(fd, header, MSG_NOSIGNAL));
  if (sent >= 0 && sent !== bytes.length) throw new Error(`sent ${sent} of ${bytes.length} bytes`);
  return sent >= 0 && keep.length > 0;
}

/** What came on a socket: `bytes` is empty at the end of file, undefined if there is nothing. */
export interface Received {
  readonly bytes: Uint8Array<ArrayBuffer> | undefined;
  readonly fds: readonly number[];
}

/** Receives up to `room` bytes and the descriptors that come with them. */
export function receiveBytes(fd: number, room: number): Received {
  const bytes = new Uint8Array(room);
  const control = new Uint8Array(64);
  const { header, keep } = messageHeader(bytes, control);
  const count = Number(libc.recvmsg(fd, header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC));
  // A reset connection is as good as one at its end; nothing there is EAGAIN, which poll told apart before.
  if (count < 0) return { bytes: undefined, fds: [] };
  const view = new DataView(control.buffer);
  const length = Number(view.getBigUint64(0, true));
  const isRights = keep.length > 0 && length > 16 && view.getInt32(12, true) === SCM_RIGHTS;
  const fds = isRights
    ? Array.from({ length: (length - 16) / 4 }, (_, i) => view.getInt32(16 + 4 * i, true))
    : [];
  return { bytes: bytes.slice(0, count), fds };
}

/** Waits until one of the descriptors can be read or is at its end; which of them. */
export async function waitReadable(fds: readonly number[], timeoutMs: number): Promise<boolean[]> {
  const set = new Uint8Array(8 * fds.length);
  const view = new DataView(set.buffer);
  fds.forEach((fd, i) => {
    view.setInt32(8 * i, fd, true);
    view.setInt16(8 * i + 4, POLLIN, true);
  });
  await waiting.symbols.poll(set, BigInt(fds.length), timeoutMs);
  return fds.map((_, i) => view.getInt16(8 * i + 6, true) !== 0);
}

/** A memory file. */
export function memoryFile(name: string, size: number): number {
  const cString = new TextEncoder().encode(`${name}\0`);
  const fd = check(libc.memfd_create(cString, 1), "memfd_create");
  check(libc.ftruncate(fd, BigInt(size)), "ftruncate");
  return fd;
}

export function fileSize(fd: number): number {
  return check(libc.lseek(fd, 0n, SEEK_END), "lseek");
}

/** Memory that others see too. */
export interface SharedMemory {
  readonly buffer: ArrayBuffer;
  unmap(): void;
}

/** Maps the first bytes of a file. */
export function mapFile(fd: number, size: number): SharedMemory {
  const pointer = libc.mmap(0n, BigInt(size), PROT_READ_WRITE, MAP_SHARED, fd, 0n);
  if (pointer === null || Deno.UnsafePointer.value(pointer) === 0xffff_ffff_ffff_ffffn) {
    throw new Error("mmap failed");
  }
  const buffer = Deno.UnsafePointerView.getArrayBuffer(pointer, size);
  return { buffer, unmap: () => void check(libc.munmap(pointer, BigInt(size)), "munmap") };
}

export function eventFd(): number {
  return check(libc.eventfd(0, SOCK_CLOEXEC | SOCK_NONBLOCK), "eventfd");
}

const one = new Uint8Array(new BigUint64Array([1n]).buffer);
const count = new Uint8Array(8);

/** Signals an eventfd. */
export function signal(fd: number): void {
  libc.write(fd, one, 8n);
}

/** Takes an eventfd's signals back; whether it had any. It does not block. */
export function unsignal(fd: number): boolean {
  return Number(libc.read(fd, count, 8n)) > 0;
}

export function closeFd(fd: number): void {
  libc.close(fd);
}
