import { assertEquals, assertStringIncludes, assertThrows } from "@std/assert";
import {
  errnoName,
  linuxErrno,
  LinuxError,
  UsageError,
  VmsgError,
} from "../../src/linux/errors.ts";
import { createSealedMemory, openFile, resizeFile } from "../../src/linux/fd.ts";
import { linuxError } from "../../src/linux/libc.ts";
import { mapShared } from "../../src/linux/mapping.ts";
import { cleanTest } from "../support/leaks.ts";

Deno.test("errno: names agree with what libc says of them", () => {
  const texts: [string, string][] = [
    ["EPERM", "Operation not permitted"],
    ["ENOENT", "No such file or directory"],
    ["EAGAIN", "Resource temporarily unavailable"],
    ["EPIPE", "Broken pipe"],
    ["EDEADLK", "Resource deadlock avoided"],
    ["ENOTEMPTY", "Directory not empty"],
    ["ENOMSG", "No message of desired type"],
    ["EBADFD", "File descriptor in bad state"],
    ["EPROTO", "Protocol error"],
    ["EOVERFLOW", "Value too large for defined data type"],
    ["EMSGSIZE", "Message too long"],
    ["EADDRINUSE", "Address already in use"],
    ["ETIMEDOUT", "Connection timed out"],
    ["ESTALE", "Stale file handle"],
    ["EHWPOISON", "Memory page has hardware error"],
  ];
  for (const [name, text] of texts) {
    const error = linuxError(linuxErrno(name), "test");
    assertEquals([error.code, error.message], [name, `test: ${text} (${name})`]);
  }
});

Deno.test("errno: every name is libc's own", () => {
  const libc = Deno.dlopen("libc.so.6", {
    strerrorname_np: { parameters: ["i32"], result: "pointer", optional: true },
  });
  using _library = { [Symbol.dispose]: () => libc.close() };
  const nameOf = libc.symbols.strerrorname_np;
  if (nameOf === null) return console.log("NOT RUN: errno: every name: glibc is older than 2.32");
  // ENOTSUP and EOPNOTSUPP are one number; 0 is no error.
  const alias = new Map([["ENOTSUP", "EOPNOTSUPP"], ["0", "OK"]]);
  let compared = 0;
  for (let number = 0; number <= 133; number++) {
    const pointer = nameOf(number);
    const theirs = pointer === null ? `E${number}` : Deno.UnsafePointerView.getCString(pointer);
    assertEquals(errnoName(number), alias.get(theirs) ?? theirs);
    compared++;
  }
  assertEquals(compared, 134);
});

Deno.test("errno: a number Linux does not know, a name nobody has", () => {
  assertEquals(errnoName(999), "E999");
  assertThrows(() => linuxErrno("ENONSENSE"), Error, "ENONSENSE");
});

cleanTest("errors of real calls carry the errno's name and what was done to what", () => {
  using sealed = createSealedMemory("vmsg-test", 4096);
  const failures: [() => unknown, string, string][] = [
    [() => openFile("/nonexistent/file"), "ENOENT", "open /nonexistent/file"],
    [() => openFile("/"), "EISDIR", "open /"],
    [() => resizeFile(sealed, 0), "EPERM", `ftruncate fd ${sealed.number}`],
    [() => mapShared(1_000_000, 4096), "EBADF", "mmap 4096 bytes of fd 1000000"],
    [() => mapShared(sealed.number, 4096, 1), "EINVAL", "mmap"],
    [() => mapShared(sealed.number, 0), "EINVAL", "mmap"],
  ];
  for (const [call, code, what] of failures) {
    const error = assertThrows(call, LinuxError);
    assertEquals(error.code, code);
    assertEquals(error.errno, linuxErrno(code));
    assertStringIncludes(error.message, what);
    assertEquals(error.message.includes("\n"), false);
  }
});

Deno.test("error classes keep their codes and names", () => {
  const usage = new UsageError("bad option");
  assertEquals([usage.code, usage.name, usage instanceof VmsgError], ["USAGE", "UsageError", true]);
  assertEquals(new VmsgError("X", "y", { cause: usage }).cause, usage);
});
