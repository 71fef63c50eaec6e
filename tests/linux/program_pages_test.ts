import { assert } from "@std/assert";
import { forgetProgramPages, trimHeaps } from "../../src/linux/program_pages.ts";

/** Resident pages of files, in kB. */
function resident(): number {
  return Number(/^RssFile:\s+(\d+) kB$/m.exec(Deno.readTextFileSync("/proc/self/status"))![1]);
}

/** Reads something of all pages of programs: where memory is short, the kernel may have taken any of them back. */
function touchPrograms(): void {
  const text = Deno.readTextFileSync("/proc/self/maps");
  for (const [, from, to] of text.matchAll(/^([\da-f]+)-([\da-f]+) r-xp .* \//gm)) {
    const end = BigInt(`0x${to}`);
    for (let at = BigInt(`0x${from}`); at < end; at += 4096n) {
      new Deno.UnsafePointerView(Deno.UnsafePointer.create(at)!).getUint8();
    }
  }
}

Deno.test("program pages: what starting up touched is given back", () => {
  touchPrograms();
  const before = resident();
  forgetProgramPages();
  const after = resident();
  // Other threads touch some again at once.
  assert(after < before - 8000, `${before} kB, then ${after} kB`);
});

Deno.test("program pages: free memory of the heaps is given back", async () => {
  const allocate = Deno.dlopen("libc.so.6", {
    malloc: { parameters: ["usize"], result: "u64" },
    free: { parameters: ["u64"], result: "void" },
    memset: { parameters: ["u64", "i32", "usize"], result: "u64" },
  });
  try {
    const { malloc, free, memset } = allocate.symbols;
    // Small ones lie in a heap; the last one, which stays, keeps the C library from giving back what is before it by itself.
    const blocks = Array.from({ length: 400 }, () => malloc(100_000n));
    for (const block of blocks) memset(block, 1, 100_000n);
    const last = malloc(100_000n);
    for (const block of blocks) free(block);
    const anonymous = () =>
      Number(/^RssAnon:\s+(\d+) kB$/m.exec(Deno.readTextFileSync("/proc/self/status"))![1]);
    const before = anonymous();
    await trimHeaps();
    const after = anonymous();
    free(last);
    assert(after < before - 20_000, `${before} kB, then ${after} kB`);
  } finally {
    allocate.close();
  }
});
