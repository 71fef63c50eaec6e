/**
 * Errors for people, and errors of Linux.
 *
 * A {@link VmsgError} is one line that says what was wrong, where, and what to do; the command line
 * prints it and exits with 2 for a usage error, 1 for everything else. A {@link LinuxError} is a
 * failed system call. Every error has a `code` that a program can test.
 */

/** An error a user can act on. Its message is one line without a final full stop. */
export class VmsgError extends Error {
  /** The class, for printing. */
  override readonly name: string = "VmsgError";

  /**
   * An error with a code and one line.
   *
   * @param code stable, upper case, for programs: "USAGE", "SOCKET_IN_USE", ...
   * @param message one line for people
   */
  constructor(readonly code: string, message: string, options?: ErrorOptions) {
    super(message, options);
  }
}

/** A wrong option or argument: exit code 2. */
export class UsageError extends VmsgError {
  /** The class, for printing. */
  override readonly name: string = "UsageError";

  /** Its code is always USAGE. */
  constructor(message: string) {
    super("USAGE", message);
  }
}

/** A system call that failed. `code` is the errno's name, such as "ENOENT". */
export class LinuxError extends VmsgError {
  /** The class, for printing. */
  override readonly name: string = "LinuxError";

  /**
   * Use `lastError` or `linuxError` of libc.ts, which know the text.
   *
   * @param errno the number the kernel gave
   * @param what the call and its object, as in "open /dev/vfio/1"
   */
  constructor(readonly errno: number, what: string, text: string) {
    super(errnoName(errno), `${what}: ${text} (${errnoName(errno)})`);
  }
}

/** asm-generic/errno-base.h and errno.h, shared by x86-64 and arm64; the index is the number. */
const NAMES = (
  "OK EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT " +
  "ENOTBLK EBUSY EEXIST EXDEV ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG " +
  "ENOSPC ESPIPE EROFS EMLINK EPIPE EDOM ERANGE EDEADLK ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY " +
  "ELOOP E41 ENOMSG EIDRM ECHRNG EL2NSYNC EL3HLT EL3RST ELNRNG EUNATCH ENOCSI EL2HLT EBADE EBADR " +
  "EXFULL ENOANO EBADRQC EBADSLT E58 EBFONT ENOSTR ENODATA ETIME ENOSR ENONET ENOPKG EREMOTE " +
  "ENOLINK EADV ESRMNT ECOMM EPROTO EMULTIHOP EDOTDOT EBADMSG EOVERFLOW ENOTUNIQ EBADFD EREMCHG " +
  "ELIBACC ELIBBAD ELIBSCN ELIBMAX ELIBEXEC EILSEQ ERESTART ESTRPIPE EUSERS ENOTSOCK EDESTADDRREQ " +
  "EMSGSIZE EPROTOTYPE ENOPROTOOPT EPROTONOSUPPORT ESOCKTNOSUPPORT EOPNOTSUPP EPFNOSUPPORT " +
  "EAFNOSUPPORT EADDRINUSE EADDRNOTAVAIL ENETDOWN ENETUNREACH ENETRESET ECONNABORTED ECONNRESET " +
  "ENOBUFS EISCONN ENOTCONN ESHUTDOWN ETOOMANYREFS ETIMEDOUT ECONNREFUSED EHOSTDOWN EHOSTUNREACH " +
  "EALREADY EINPROGRESS ESTALE EUCLEAN ENOTNAM ENAVAIL EISNAM EREMOTEIO EDQUOT ENOMEDIUM " +
  "EMEDIUMTYPE ECANCELED ENOKEY EKEYEXPIRED EKEYREVOKED EKEYREJECTED EOWNERDEAD ENOTRECOVERABLE " +
  "ERFKILL EHWPOISON"
).split(" ");

/** The name of an errno, "E999" for one that Linux does not define. */
export function errnoName(errno: number): string {
  return NAMES[errno] ?? `E${errno}`;
}

/** The number behind an errno's name. */
export function linuxErrno(name: string): number {
  const number = NAMES.indexOf(name);
  if (number < 0) throw new Error(`no errno is called ${name}`);
  return number;
}

/** A signal came during the call. */
export const EINTR: number = linuxErrno("EINTR");
/** Nothing to be had, or no room, at the moment. */
export const EAGAIN: number = linuxErrno("EAGAIN");
