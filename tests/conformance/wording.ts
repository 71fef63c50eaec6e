/** What the rules say, as docs/wire.md has it. */

const TEXT = Deno.readTextFileSync(new URL("../../docs/wire.md", import.meta.url));

/** By the rule's number, in the order of docs/wire.md. */
export const WORDING: ReadonlyMap<string, string> = new Map(
  [...TEXT.matchAll(/^\| ([GVRBPU]\d+) \| (.*) \|$/gm)].map(([, number, words]) =>
    [number!, words!] as const
  ),
);
/** The numbers of the sections. */
export const SECTIONS: ReadonlySet<string> = new Set(
  TEXT.match(/^### (7\.\d)/gm)?.map((line) => line.slice(4)),
);
