/** Terminals: a pseudo-terminal of our own, a window's size, and the modes in which bytes pass as they are. */

import { allocate } from "./arena.ts";
import { Fd, O_CLOEXEC, O_RDWR, setNonBlocking } from "./fd.ts";
import { check, cString, libc } from "./libc.ts";

const O_NOCTTY = 0o400;
const F_DUPFD_CLOEXEC = 1030;
const TCGETS = 0x5401n, TCSETS = 0x5402n;
const TIOCGWINSZ = 0x5413n;
const TIOCGPTN = 0x8004_5430n, TIOCSPTLCK = 0x4004_5431n;

const number = allocate(4);
/** struct winsize: u16 rows, columns, and two in pixels. */
const winsize = allocate(8);
/** struct termios: u32 iflag, oflag @4, cflag @8, lflag @12, then characters. */
const TERMIOS_SIZE = 36;
const termios = allocate(TERMIOS_SIZE);

/** A pseudo-terminal's master, and the path of what a person opens. Nobody has it open, and bytes pass as they are. */
export function openPty(): { readonly master: Fd; readonly path: string } {
  using stack = new DisposableStack();
  const flags = O_RDWR | O_NOCTTY | O_CLOEXEC;
  const opened = check(libc.open(cString("/dev/ptmx"), flags, 0), "open /dev/ptmx");
  const master = stack.use(new Fd(opened));
  number.view.setInt32(0, 0, true);
  check(libc.ioctl(master.number, TIOCSPTLCK, number.address), "unlock a pty");
  check(libc.ioctl(master.number, TIOCGPTN, number.address), "number of a pty");
  const path = `/dev/pts/${number.view.getInt32(0, true)}`;
  // Only once it was opened and closed does the master tell whether somebody has it open.
  using slave = new Fd(check(libc.open(cString(path), flags, 0), `open ${path}`));
  passBytes(slave, 0);
  setNonBlocking(master);
  stack.move();
  return { master, path };
}

/** Keeps the signals that keys send (Ctrl-C). */
export const ISIG = 1;

/**
 * Has a terminal pass bytes as they are: no echo, no lines, no conversion.
 *
 * @param keep flags of its local modes that stay, as {@link ISIG}
 * @returns what brings its modes back; undefined if it is no terminal
 */
export function passBytes(fd: Fd, keep: number): (() => void) | undefined {
  if (libc.ioctl(fd.number, TCGETS, termios.address) < 0) return undefined;
  const before = termios.bytes.slice();
  const { view } = termios;
  // A person's terminal, whose signals are kept, keeps its output's conversion too.
  for (const at of keep === 0 ? [0, 4] : [0]) view.setUint32(at, 0, true);
  view.setUint32(12, view.getUint32(12, true) & keep, true);
  libc.ioctl(fd.number, TCSETS, termios.address);
  return () => {
    termios.bytes.set(before);
    libc.ioctl(fd.number, TCSETS, termios.address);
  };
}

/** Columns and rows of a terminal's window; zeros where it has none. */
export function windowSize(fd: Fd): { readonly columns: number; readonly rows: number } {
  if (libc.ioctl(fd.number, TIOCGWINSZ, winsize.address) < 0) return { columns: 0, rows: 0 };
  return { rows: winsize.view.getUint16(0, true), columns: winsize.view.getUint16(2, true) };
}

/** Another descriptor of the same open file. */
export function duplicate(fd: number): Fd {
  return new Fd(check(libc.fcntl(fd, F_DUPFD_CLOEXEC, 3n), `duplicate fd ${fd}`));
}
