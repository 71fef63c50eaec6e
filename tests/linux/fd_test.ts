import { assert, assertEquals, assertNotEquals, assertThrows } from "@std/assert";
import {
  createSealedMemory,
  F_SEAL_GROW,
  F_SEAL_SHRINK,
  Fd,
  fileIdentity,
  fileSeals,
  fileSize,
  isSocketFile,
  O_CREAT,
  openFile,
  resizeFile,
  setNonBlocking,
  tryLockByte,
  unlinkFile,
  unlockByte,
} from "../../src/linux/fd.ts";
import { LinuxError, VmsgError } from "../../src/linux/errors.ts";
import { createEventFd } from "../../src/linux/eventfd.ts";
import { check, cString, libc } from "../../src/linux/libc.ts";
import { listenUnix } from "../../src/linux/unix_socket.ts";
import { cleanTest, withDirectory } from "../support/leaks.ts";
import { until } from "../support/processes.ts";

const F_DUPFD_CLOEXEC = 1030;

cleanTest("fd: dispose closes once, also when the number is somebody else's by then", () => {
  // The lowest free number from there on: those below are Deno's too, whose threads open and close what they like.
  const moved = (fd: Fd) => {
    using _fd = fd;
    return new Fd(check(libc.fcntl(fd.number, F_DUPFD_CLOEXEC, 200n), "dup"));
  };
  const first = moved(createSealedMemory("vmsg-test", 4096));
  const { number } = first;
  first[Symbol.dispose]();
  using second = moved(createSealedMemory("vmsg-test", 8192));
  assertEquals(second.number, number, "the kernel gives the lowest free number");
  first[Symbol.dispose]();
  assertEquals(fileSize(second), 8192);
});

cleanTest("fd: use after close throws instead of reaching another file", () => {
  const fd = createSealedMemory("vmsg-test", 4096);
  fd[Symbol.dispose]();
  assertThrows(() => fd.number, Error, "after it was closed");
  assertThrows(() => fileSize(fd), Error, "after it was closed");
});

Deno.test("fd: what is no descriptor is refused", () => {
  for (const number of [-1, NaN]) {
    assertThrows(() => new Fd(number), Error, "not a file descriptor");
  }
});

Deno.test("cString: ends with NUL and holds none", () => {
  assertEquals([...cString("aé")], [0x61, 0xc3, 0xa9, 0]);
  assertThrows(() => cString("a\0b"), Error, "NUL");
});

cleanTest(
  "files: created with mode 0600, sized, identified, removed",
  () =>
    withDirectory((directory) => {
      const path = `${directory}/file`;
      using fd = openFile(path, O_CREAT);
      assertEquals(Deno.statSync(path).mode! & 0o777, 0o600);
      assertEquals(fileSize(fd), 0);
      resizeFile(fd, 5 * 2 ** 30);
      assertEquals(fileSize(fd), 5 * 2 ** 30);
      using again = openFile(path);
      using other = openFile(`${directory}/other`, O_CREAT);
      assertEquals(fileIdentity(again), fileIdentity(fd));
      assertNotEquals(fileIdentity(other), fileIdentity(fd));
      unlinkFile(path);
      assertThrows(() => Deno.statSync(path), Deno.errors.NotFound);
      unlinkFile(path);
      assertEquals(fileIdentity(again), fileIdentity(fd));
    }),
);

cleanTest("sealed memory: neither shrinks nor grows", () => {
  using fd = createSealedMemory("vmsg-test", 8192);
  assertEquals(fileSize(fd), 8192);
  assertEquals(fileSeals(fd), F_SEAL_SHRINK | F_SEAL_GROW);
  for (const size of [0, 4096, 8191, 8193, 1 << 20]) {
    assertEquals(assertThrows(() => resizeFile(fd, size), LinuxError).code, "EPERM");
  }
  using bell = createEventFd();
  assertEquals(fileSeals(bell), undefined);
});

cleanTest("sealed memory: has all its room at once, or is refused with what is left", () => {
  using fd = createSealedMemory("vmsg-test", 1 << 20);
  assertEquals(Deno.statSync(`/proc/self/fd/${fd.number}`).blocks, 2048);
  const error = assertThrows(
    () => createSealedMemory("vmsg-test", 2 ** 45),
    VmsgError,
    "bytes left",
  );
  assertEquals(error.code, "ENOMEM");
});

cleanTest("sealed memory: a size the kernel refuses leaves no descriptor", () => {
  assertThrows(() => createSealedMemory("vmsg-test", -1), LinuxError);
});

cleanTest("a file can be made non-blocking", () =>
  withDirectory((directory) => {
    using fd = openFile(`${directory}/file`, O_CREAT);
    const flags = () => {
      const info = Deno.readTextFileSync(`/proc/self/fdinfo/${fd.number}`);
      return parseInt(/flags:\s*(\d+)/.exec(info)![1]!, 8);
    };
    const before = flags();
    setNonBlocking(fd);
    assertEquals(flags(), before | 0o4000);
    assert((before & 0o2000000) !== 0, "O_CLOEXEC is set");
  }));

cleanTest("a socket file is told from others", () =>
  withDirectory((directory) => {
    using _file = openFile(`${directory}/file`, O_CREAT);
    using _listener = listenUnix(`${directory}/socket`);
    assertEquals(isSocketFile(`${directory}/socket`), true);
    assertEquals(isSocketFile(`${directory}/file`), false);
    assertEquals(isSocketFile(directory), false);
    assertEquals(isSocketFile(`${directory}/nothing`), false);
  }));

cleanTest(
  "byte locks: one holder among open file descriptions, byte by byte",
  () =>
    withDirectory((directory) => {
      using a = openFile(`${directory}/lock`, O_CREAT);
      const b = openFile(`${directory}/lock`);
      using c = openFile(`${directory}/lock`);
      assertEquals(tryLockByte(a, 1), true);
      assertEquals(tryLockByte(a, 1), true, "the holder may ask again");
      assertEquals(tryLockByte(b, 1), false);
      assertEquals(tryLockByte(b, 0), true);
      assertEquals(tryLockByte(b, 2), true);
      assertEquals(tryLockByte(a, 2), false);
      unlockByte(a, 2);
      assertEquals(tryLockByte(a, 2), false, "nobody can give another's lock back");
      unlockByte(a, 1);
      assertEquals(tryLockByte(b, 1), true);
      b[Symbol.dispose]();
      for (const byte of [0, 1, 2]) assertEquals(tryLockByte(c, byte), true);
    }),
);

/** Another process that holds byte 1 until it gets a line or is killed. */
async function holder(path: string) {
  const fdModule = new URL("../../src/linux/fd.ts", import.meta.url).href;
  const script = `
    import { openFile, tryLockByte, unlockByte } from ${JSON.stringify(fdModule)};
    const fd = openFile(${JSON.stringify(path)});
    console.log(tryLockByte(fd, 1) ? "locked" : "refused");
    const bytes = new Uint8Array(16);
    if (await Deno.stdin.read(bytes) === null) Deno.exit();
    setTimeout(() => unlockByte(fd, 1), 30);
    await Deno.stdin.read(bytes);`;
  const config = new URL("../../deno.json", import.meta.url).pathname;
  const file = await Deno.makeTempFile({ suffix: ".ts" });
  await Deno.writeTextFile(file, script);
  const process = new Deno.Command(Deno.execPath(), {
    args: ["run", "--quiet", "--allow-all", "--config", config, file],
    stdin: "piped",
    stdout: "piped",
  }).spawn();
  const output = process.stdout.getReader();
  const { value } = await output.read();
  const said = new TextDecoder().decode(value).trim();
  const input = process.stdin.getWriter();
  return {
    said,
    letGo: () => input.write(new TextEncoder().encode("now\n")),
    kill: () => process.kill("SIGKILL"),
    async [Symbol.asyncDispose]() {
      try {
        process.kill("SIGKILL");
      } catch {
        // It has ended.
      }
      await process.status;
      await output.cancel();
      await input.abort().catch(() => {});
      await Deno.remove(file);
    },
    status: process.status,
  };
}

cleanTest(
  "byte locks: another process's lock is seen, waited for, and gone with SIGKILL",
  () =>
    withDirectory(async (directory) => {
      const path = `${directory}/lock`;
      using fd = openFile(path, O_CREAT);
      await using first = await holder(path);
      assertEquals(first.said, "locked");
      assertEquals(tryLockByte(fd, 1), false);
      assertEquals(tryLockByte(fd, 0), true);
      await first.letGo();
      await until(() => tryLockByte(fd, 1));
      using other = openFile(path);
      assertEquals(tryLockByte(other, 1), false);
      unlockByte(fd, 1);

      await using second = await holder(path);
      assertEquals(second.said, "locked");
      assertEquals(tryLockByte(fd, 1), false);
      second.kill();
      await second.status;
      assertEquals(tryLockByte(fd, 1), true);
    }),
);
