/**
 * The one table of C functions vmsg calls, and the only user of `Deno.dlopen`.
 *
 * Signatures follow what is fast in Deno's FFI: pointers are `u64` given as bigint, lengths that fit
 * are `u32`, results are `i32`; a Number given to a 64-bit parameter would take a slow path. Variadic
 * functions (open, fcntl, ioctl) are bound with fixed arguments, which the x86-64 and the arm64 Linux
 * calling conventions allow. `buffer` is used for strings only: they are read during the call and
 * never kept. Everything the kernel keeps or fills lives in the arena (arena.ts).
 */

import { EINTR, LinuxError } from "./errors.ts";

const library = Deno.dlopen("libc.so.6", {
  /** int *__errno_location(void) */
  __errno_location: { parameters: [], result: "pointer" },
  /** char *strerror(int errnum) */
  strerror: { parameters: ["i32"], result: "pointer" },
  /** int pipe2(int pipefd[2], int flags) */
  pipe2: { parameters: ["u64", "i32"], result: "i32" },
  /** int open(const char *path, int flags, mode_t mode) */
  open: { parameters: ["buffer", "i32", "u32"], result: "i32" },
  /** int close(int fd) */
  close: { parameters: ["i32"], result: "i32" },
  /** The same in another thread: a peer's file may wait for the peer */
  close_elsewhere: { name: "close", parameters: ["i32"], result: "i32", nonblocking: true },
  /** ssize_t read(int fd, void *buf, size_t count) */
  read: { parameters: ["i32", "u64", "u32"], result: "i32" },
  /** ssize_t write(int fd, const void *buf, size_t count) */
  write: { parameters: ["i32", "u64", "u32"], result: "i32" },
  /** ssize_t pread(int fd, void *buf, size_t count, off_t offset) */
  pread: { parameters: ["i32", "u64", "u32", "i64"], result: "i32" },
  /** ssize_t pwrite(int fd, const void *buf, size_t count, off_t offset) */
  pwrite: { parameters: ["i32", "u64", "u32", "i64"], result: "i32" },
  /** ssize_t readv(int fd, const struct iovec *iov, int iovcnt) */
  readv: { parameters: ["i32", "u64", "i32"], result: "i32" },
  /** ssize_t writev(int fd, const struct iovec *iov, int iovcnt) */
  writev: { parameters: ["i32", "u64", "i32"], result: "i32" },
  /** ssize_t preadv(int fd, const struct iovec *iov, int iovcnt, off_t offset) */
  preadv: { parameters: ["i32", "u64", "i32", "i64"], result: "i32" },
  /** ssize_t pwritev(int fd, const struct iovec *iov, int iovcnt, off_t offset) */
  pwritev: { parameters: ["i32", "u64", "i32", "i64"], result: "i32" },
  /** int aio_write(struct aiocb *aiocbp): in libc since glibc 2.34 */
  aio_write: { parameters: ["u64"], result: "i32", optional: true },
  /** int aio_error(const struct aiocb *aiocbp) */
  aio_error: { parameters: ["u64"], result: "i32", optional: true },
  /** ssize_t aio_return(struct aiocb *aiocbp) */
  aio_return: { parameters: ["u64"], result: "i32", optional: true },
  /** int malloc_trim(size_t pad), in another thread: glibc's own */
  malloc_trim: { parameters: ["u64"], result: "i32", nonblocking: true, optional: true },
  /** int fdatasync(int fd) */
  fdatasync: { parameters: ["i32"], result: "i32" },
  /** ssize_t preadv2(int fd, const struct iovec *iov, int iovcnt, off_t offset, int flags) */
  preadv2: { parameters: ["i32", "u64", "i32", "i64", "i32"], result: "i32" },
  /** int getsockopt(int sockfd, int level, int optname, void *optval, socklen_t *optlen) */
  getsockopt: { parameters: ["i32", "i32", "i32", "u64", "u64"], result: "i32" },
  /** off_t lseek(int fd, off_t offset, int whence) */
  lseek: { parameters: ["i32", "i64", "i32"], result: "i64" },
  /** int ftruncate(int fd, off_t length) */
  ftruncate: { parameters: ["i32", "i64"], result: "i32" },
  /** int fallocate(int fd, int mode, off_t offset, off_t len) */
  fallocate: { parameters: ["i32", "i32", "i64", "i64"], result: "i32" },
  /** int flock(int fd, int operation) */
  flock: { parameters: ["i32", "i32"], result: "i32" },
  /** int getrlimit(int resource, struct rlimit *rlim) */
  getrlimit: { parameters: ["i32", "u64"], result: "i32" },
  /** ssize_t readlink(const char *path, char *buf, size_t bufsiz) */
  readlink: { parameters: ["buffer", "u64", "u32"], result: "i32" },
  /** DIR *opendir(const char *name), 0 for failure */
  opendir: { parameters: ["buffer"], result: "u64" },
  /** struct dirent *readdir(DIR *dirp), null at the end */
  readdir: { parameters: ["u64"], result: "pointer" },
  /** int closedir(DIR *dirp) */
  closedir: { parameters: ["u64"], result: "i32" },
  /** int mkdir(const char *path, mode_t mode) */
  mkdir: { parameters: ["buffer", "u32"], result: "i32" },
  /** int prctl(int op, unsigned long arg2, ... arg5) */
  prctl: { parameters: ["i32", "u64", "u64", "u64", "u64"], result: "i32" },
  /** int rename(const char *oldpath, const char *newpath) */
  rename: { parameters: ["buffer", "buffer"], result: "i32" },
  /** int renameat2(int olddirfd, const char *oldpath, int newdirfd, const char *newpath, unsigned int flags): since
   * glibc 2.28 */
  renameat2: {
    parameters: ["i32", "buffer", "i32", "buffer", "u32"],
    result: "i32",
    optional: true,
  },
  /** int unlink(const char *path) */
  unlink: { parameters: ["buffer"], result: "i32" },
  /** int fchmod(int fd, mode_t mode) */
  fchmod: { parameters: ["i32", "u32"], result: "i32" },
  /** int chmod(const char *path, mode_t mode) */
  chmod: { parameters: ["buffer", "u32"], result: "i32" },
  /** int chown(const char *path, uid_t owner, gid_t group) */
  chown: { parameters: ["buffer", "u32", "u32"], result: "i32" },
  /** uid_t geteuid(void) */
  geteuid: { parameters: [], result: "u32" },
  /** int fcntl(int fd, int cmd, void *arg): F_OFD_SETLK and its kind */
  fcntl: { parameters: ["i32", "i32", "u64"], result: "i32" },
  /** int ioctl(int fd, unsigned long request, void *arg): requests are 32 bits long */
  ioctl: { parameters: ["i32", "u64", "u64"], result: "i32" },
  /** ssize_t getrandom(void *buf, size_t buflen, unsigned int flags) */
  getrandom: { parameters: ["u64", "u32", "u32"], result: "i32" },
  /** int clock_gettime(clockid_t clockid, struct timespec *tp) */
  clock_gettime: { parameters: ["i32", "u64"], result: "i32" },
  /** long syscall(long number, ...): fstat, which older glibc does not export; io_setup */
  syscall: { parameters: ["i64", "i64", "u64"], result: "i32" },
  /** The same for io_submit(aio_context_t ctx, long nr, struct iocb **iocbs) */
  io_submit: { name: "syscall", parameters: ["i64", "u64", "i64", "u64"], result: "i32" },
  /** The same for io_uring_enter(int fd, u32 to_submit, u32 min_complete, u32 flags, sigset_t *sig, size_t size) */
  io_uring_enter: {
    name: "syscall",
    parameters: ["i64", "i32", "u32", "u32", "u32", "u64", "u64"],
    result: "i32",
  },
  /** int fstatfs(int fd, struct statfs *buf) */
  fstatfs: { parameters: ["i32", "u64"], result: "i32" },
  /** int memfd_create(const char *name, unsigned int flags) */
  memfd_create: { parameters: ["buffer", "u32"], result: "i32" },
  /** void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset) */
  mmap: { parameters: ["u64", "u64", "i32", "i32", "i32", "i64"], result: "u64" },
  /** int munmap(void *addr, size_t length) */
  munmap: { parameters: ["u64", "u64"], result: "i32" },
  /** void *mremap(void *old_address, size_t old_size, size_t new_size, int flags, void *new_address) */
  mremap: { parameters: ["u64", "u64", "u64", "i32", "u64"], result: "u64" },
  /** int mprotect(void *addr, size_t len, int prot) */
  mprotect: { parameters: ["u64", "u64", "i32"], result: "i32" },
  /** int sigaction(int signum, const struct sigaction *act, struct sigaction *oldact) */
  sigaction: { parameters: ["i32", "u64", "u64"], result: "i32" },
  /** int nice(int inc), on Linux of the calling thread alone */
  nice: { parameters: ["i32"], result: "i32" },
  /** int madvise(void *addr, size_t length, int advice) */
  madvise: { parameters: ["u64", "u64", "i32"], result: "i32" },
  /** void *memcpy(void *dest, const void *src, size_t n), result not wanted */
  memcpy: { parameters: ["u64", "u64", "u32"], result: "void" },
  /** int eventfd(unsigned int initval, int flags) */
  eventfd: { parameters: ["u32", "i32"], result: "i32" },
  /** int epoll_create1(int flags) */
  epoll_create1: { parameters: ["i32"], result: "i32" },
  /** int epoll_ctl(int epfd, int op, int fd, struct epoll_event *event) */
  epoll_ctl: { parameters: ["i32", "i32", "i32", "u64"], result: "i32" },
  /** int epoll_wait(int epfd, struct epoll_event *events, int maxevents, int timeout) */
  epoll_wait: { parameters: ["i32", "u64", "i32", "i32"], result: "i32" },
  /** int poll(struct pollfd *fds, nfds_t nfds, int timeout) */
  poll: { parameters: ["u64", "u64", "i32"], result: "i32" },
  /** int socket(int domain, int type, int protocol) */
  socket: { parameters: ["i32", "i32", "i32"], result: "i32" },
  /** int bind(int sockfd, const struct sockaddr *addr, socklen_t addrlen) */
  bind: { parameters: ["i32", "u64", "u32"], result: "i32" },
  /** int setsockopt(int sockfd, int level, int optname, const void *optval, socklen_t optlen) */
  setsockopt: { parameters: ["i32", "i32", "i32", "u64", "u32"], result: "i32" },
  /** unsigned int if_nametoindex(const char *ifname) */
  if_nametoindex: { parameters: ["buffer"], result: "u32" },
  /** int listen(int sockfd, int backlog) */
  listen: { parameters: ["i32", "i32"], result: "i32" },
  /** int connect(int sockfd, const struct sockaddr *addr, socklen_t addrlen) */
  connect: { parameters: ["i32", "u64", "u32"], result: "i32" },
  /** int accept4(int sockfd, struct sockaddr *addr, socklen_t *addrlen, int flags) */
  accept4: { parameters: ["i32", "u64", "u64", "i32"], result: "i32" },
  /** int shutdown(int sockfd, int how) */
  shutdown: { parameters: ["i32", "i32"], result: "i32" },
  /** int socketpair(int domain, int type, int protocol, int sv[2]) */
  socketpair: { parameters: ["i32", "i32", "i32", "u64"], result: "i32" },
  /** int waitid(idtype_t idtype, id_t id, siginfo_t *infop, int options) */
  waitid: { parameters: ["i32", "u32", "u64", "i32"], result: "i32" },
  /** ssize_t send(int sockfd, const void *buf, size_t len, int flags) */
  send: { parameters: ["i32", "u64", "u32", "i32"], result: "i32" },
  /** ssize_t sendmsg(int sockfd, const struct msghdr *msg, int flags) */
  sendmsg: { parameters: ["i32", "u64", "i32"], result: "i32" },
  /** ssize_t recvmsg(int sockfd, struct msghdr *msg, int flags) */
  recvmsg: { parameters: ["i32", "u64", "i32"], result: "i32" },
});

/** The bound functions. A failing one returns -1 and leaves its reason in {@link errno}. */
export const libc = library.symbols;

// errno is thread-local; each Worker loads this module anew, so each maps its own thread's word.
const errnoWord = new Int32Array(
  Deno.UnsafePointerView.getArrayBuffer(libc.__errno_location()!, 4),
);

/** The calling thread's errno; read it directly after the failed call. */
export function errno(): number {
  return errnoWord[0];
}

/** The {@link LinuxError} for the call that has just failed. */
export function lastError(what: string): LinuxError {
  return linuxError(errno(), what);
}

/** The {@link LinuxError} for an errno that is known already. */
export function linuxError(number: number, what: string): LinuxError {
  return new LinuxError(number, what, Deno.UnsafePointerView.getCString(libc.strerror(number)!));
}

/**
 * Passes a result through, throws the errno's {@link LinuxError} for a negative one.
 *
 * @param what the call and its object, as in "open /dev/vfio/1"
 */
export function check(result: number, what: string): number {
  if (result < 0) throw lastError(what);
  return result;
}

/** Repeats a call that a signal interrupted (EINTR); for the few that block. */
export function uninterrupted(call: () => number): number {
  for (;;) {
    const result = call();
    if (result >= 0 || errno() !== EINTR) return result;
  }
}

/** A NUL-terminated copy of a string. */
export function cString(text: string): Uint8Array<ArrayBuffer> {
  if (text.includes("\0")) throw new Error("a string for C must not contain NUL");
  return new TextEncoder().encode(text + "\0");
}
