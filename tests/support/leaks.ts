/**
 * Tests that leave nothing behind. Deno's sanitizers see what Deno opens; descriptors and mappings made
 * through libc are counted here, before and after.
 */

import { assertEquals } from "@std/assert";
import { allClosed } from "../../src/linux/received_fd.ts";

/** What belongs to us: sockets, eventfds, epolls, memfds and files of a test's directory; mappings of the latter. */
export function held(): string[] {
  const found: string[] = [];
  for (const { name } of Deno.readDirSync("/proc/self/fd")) {
    try {
      const target = Deno.readLinkSync(`/proc/self/fd/${name}`);
      if (/^socket:|eventfd|eventpoll|\/memfd:|vmsg-test/.test(target)) {
        found.push(target.replace(/\d+/, "n"));
      }
    } catch {
      // The descriptor of readDirSync itself.
    }
  }
  for (const line of Deno.readTextFileSync("/proc/self/maps").split("\n")) {
    const path = /(\/memfd:vmsg.*|\/\S*vmsg-test.*)$/.exec(line)?.[0];
    if (path !== undefined) found.push(`mapping of ${path}`);
  }
  return found.sort();
}

/** What is held now and was not before. */
export function leftBehind(before: readonly string[]): string[] {
  const rest = [...before];
  return held().filter((name) => {
    const at = rest.indexOf(name);
    if (at >= 0) rest.splice(at, 1);
    return at < 0;
  });
}

/**
 * Registers a test that must close every descriptor and mapping it opens. What was there before may go
 * meanwhile: Deno closes the descriptors of an earlier test's thread some time after that ended.
 */
export function cleanTest(name: string, body: () => void | Promise<void>): void {
  Deno.test(name, async () => {
    const before = held();
    await body();
    // Another thread closes what a peer sent.
    await allClosed();
    assertEquals(leftBehind(before), [], "descriptors or mappings were left behind");
  });
}

/** A directory for a test, gone afterwards. */
export async function withDirectory(body: (path: string) => void | Promise<void>): Promise<void> {
  const path = Deno.makeTempDirSync({ prefix: "vmsg-test-" });
  try {
    await body(path);
  } finally {
    Deno.removeSync(path, { recursive: true });
  }
}
