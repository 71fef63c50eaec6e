/**
 * The plan of the house, held against the house: who imports whom (docs/house.md), who may call
 * dlopen and Atomics, and the forms every file keeps.
 */

import { assert, assertEquals } from "@std/assert";

/** Room by room what it may import, itself excepted. Files directly in src/ count as cli. */
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  cli: [
    "check",
    "drivers",
    "devices",
    "vhost_user",
    "sharing",
    "network",
    "transport",
    "bus",
    "ivshmem",
    "xen",
    "virtio",
    "observe",
    "message",
    "memory",
    "linux",
  ],
  check: ["transport", "bus", "message", "virtio", "memory", "linux"],
  drivers: [
    "xen",
    "vhost_user",
    "sharing",
    "transport",
    "bus",
    "virtio",
    "network",
    "message",
    "observe",
    "memory",
    "linux",
  ],
  devices: ["vhost_user", "virtio", "network", "observe", "memory", "linux"],
  sharing: ["transport", "bus", "virtio", "message", "observe", "memory", "linux"],
  transport: ["bus", "virtio", "message", "observe", "memory", "linux"],
  bus: ["ivshmem", "message", "observe", "memory", "linux"],
  ivshmem: ["observe", "memory", "linux"],
  xen: ["observe", "memory", "linux"],
  vhost_user: ["linux"],
  network: ["virtio", "observe", "memory", "linux"],
  observe: ["message", "memory", "linux"],
  message: ["virtio"],
  virtio: ["memory"],
  memory: ["linux"],
  linux: [],
};

/** From outside the house: the standard library, and what Deno brings along. */
const FROM_OUTSIDE = /^(@std\/|node:)/;

const ROOT = new URL("../src/", import.meta.url);

interface Source {
  /** As in "bus/bus.ts". */
  readonly path: string;
  readonly room: string;
  readonly text: string;
  /** The text without comments and without the contents of strings. */
  readonly code: string;
  /** What it imports, as written. */
  readonly imports: readonly string[];
}

/** Blanks comments, strings and regular expressions out; template literals keep their `${}` parts. */
function codeOf(text: string): string {
  const token =
    /\/\*[\s\S]*?\*\/|\/\/[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\[\s\S]|[^`\\])*`|(?<=[(=,:?&|!]\s*)\/(?![*\/])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^\/\\\n[])+\/[a-z]*/g;
  return text.replace(token, (found) => {
    if (found.startsWith("`")) return (found.match(/\$\{[^}]*\}/g) ?? []).join(" ") || "``";
    return found.startsWith("/") ? " " : '""';
  });
}

function importsOf(text: string): string[] {
  const withoutComments = text.replace(/\/\*[\s\S]*?\*\/|^\s*\/\/[^\n]*/gm, "");
  const forms = [
    /^(?:import|export)\b[^;"']*?\bfrom\s*["']([^"']+)["']/gm,
    /^import\s*["']([^"']+)["']/gm,
    /\bimport\(\s*["']([^"']+)["']\s*\)/g,
    /\bnew URL\(\s*["'](\.[^"']*\.ts)["']/g,
  ];
  return forms.flatMap((form) => [...withoutComments.matchAll(form)].map((match) => match[1]!));
}

function* filesIn(directory: URL, prefix = ""): Generator<string> {
  for (const entry of Deno.readDirSync(directory)) {
    const path = `${prefix}${entry.name}`;
    if (entry.isDirectory) yield* filesIn(new URL(`${entry.name}/`, directory), `${path}/`);
    else if (entry.name.endsWith(".ts")) yield path;
  }
}

function roomOf(path: string): string {
  return path.includes("/") ? path.slice(0, path.indexOf("/")) : "cli";
}

const SOURCES: readonly Source[] = [...filesIn(ROOT)].sort().map((path) => {
  const text = Deno.readTextFileSync(new URL(path, ROOT));
  return { path, room: roomOf(path), text, code: codeOf(text), imports: importsOf(text) };
});

/** The path under src/ that an import means; undefined if it leaves src/. */
function target(from: string, specifier: string): string | undefined {
  const { href } = new URL(specifier, new URL(from, ROOT));
  return href.startsWith(ROOT.href) ? href.slice(ROOT.href.length) : undefined;
}

/** Arrows that the table does not allow, as lines for people. */
function badArrows(sources: readonly Pick<Source, "path" | "room" | "imports">[]): string[] {
  const bad: string[] = [];
  for (const { path, room, imports } of sources) {
    for (const specifier of imports) {
      if (!specifier.startsWith(".")) {
        if (!FROM_OUTSIDE.test(specifier)) bad.push(`${path} -> ${specifier}`);
        continue;
      }
      const to = target(path, specifier);
      const allowed = to !== undefined &&
        (roomOf(to) === room || (MAY_IMPORT[room] ?? []).includes(roomOf(to)));
      if (!allowed) bad.push(`${path} -> ${to ?? specifier}`);
    }
  }
  return bad;
}

/**
 * The groups of files that import each other in a circle, by Tarjan's algorithm: a file whose way leads back to
 * none in front of it closes a group of all that were found behind it.
 *
 * @param arrows of each file, those it imports
 */
function circles(arrows: ReadonlyMap<string, readonly string[]>): string[][] {
  const found: string[][] = [];
  /** In which order files were met, and the earliest that each one's way leads back to. */
  const order = new Map<string, number>();
  const earliest = new Map<string, number>();
  /** Files of no group yet. */
  const open: string[] = [];
  const visit = (file: string): number => {
    order.set(file, order.size);
    earliest.set(file, order.get(file)!);
    open.push(file);
    for (const to of arrows.get(file) ?? []) {
      const back = !order.has(to) ? visit(to) : open.includes(to) ? order.get(to)! : Infinity;
      earliest.set(file, Math.min(earliest.get(file)!, back));
    }
    if (earliest.get(file) === order.get(file)) {
      const group = open.splice(open.indexOf(file));
      if (group.length > 1 || arrows.get(file)?.includes(file)) found.push(group.sort());
    }
    return earliest.get(file)!;
  };
  for (const file of arrows.keys()) if (!order.has(file)) visit(file);
  return found;
}

/**
 * Who asks a clock, or has Deno wait, besides linux/clock.ts: the main thread, which has no reactor and keeps
 * Deno's own loop.
 */
const OWN_TIME: Readonly<Record<string, string>> = {
  "cli/data_plane.ts": "gives the Worker, which has the reactor, a moment to end",
  "observe/live_figures.ts": "shows what others count; keys and the window's signals are Deno's",
  "cli/watchdog.ts": "looks at the Worker, whose reactor may stand still",
};

/** Files whose code (comments and strings aside) matches. */
function filesWith(pattern: RegExp, except: (source: Source) => boolean = () => false): string[] {
  return SOURCES.filter((source) => !except(source) && pattern.test(source.code))
    .map(({ path }) => path);
}

Deno.test("architecture: the walk finds the house and its imports", () => {
  const rooms = new Set(SOURCES.map(({ room }) => room));
  for (const room of ["linux", "memory", "message", "bus", "transport", "virtio", "cli"]) {
    assert(rooms.has(room), `no file of ${room} was found`);
  }
  const bus = SOURCES.find(({ path }) => path === "bus/linux_user.ts");
  assert(bus?.imports.includes("../linux/fd.ts"), "an import over several lines is not seen");
  const commands = SOURCES.find(({ path }) => path === "cli/commands.ts");
  assert(commands?.imports.includes("./device.ts"), "a dynamic import is not seen");
});

Deno.test("architecture: every room is in the table", () => {
  const unknown = SOURCES.filter(({ room }) => MAY_IMPORT[room] === undefined);
  assertEquals(unknown.map(({ path }) => path), []);
});

Deno.test("architecture: no import but the arrows of docs/house.md", () => {
  assertEquals(badArrows(SOURCES), []);
});

Deno.test("architecture: a wrong arrow would be found", () => {
  const wrong = [
    { path: "message/x.ts", room: "message", imports: ["../linux/fd.ts", "./table.ts"] },
    { path: "virtio/x.ts", room: "virtio", imports: ["../linux/fd.ts", "../memory/mod.ts"] },
    { path: "bus/x.ts", room: "bus", imports: ["../transport/epoch.ts", "npm:left-pad"] },
    { path: "linux/x.ts", room: "linux", imports: ["../../tests/x.ts", "node:timers"] },
  ];
  assertEquals(badArrows(wrong), [
    "message/x.ts -> linux/fd.ts",
    "virtio/x.ts -> linux/fd.ts",
    "bus/x.ts -> transport/epoch.ts",
    "bus/x.ts -> npm:left-pad",
    "linux/x.ts -> ../../tests/x.ts",
  ]);
});

Deno.test("architecture: no circle between files", () => {
  const arrows = new Map(SOURCES.map(({ path, imports }) => {
    const targets = imports.filter((specifier) => specifier.startsWith("."))
      // Who names main.ts starts the program anew, as another process.
      .map((specifier) => target(path, specifier)).filter((to) => to !== "main.ts");
    return [path, targets.filter((to) => to !== undefined)];
  }));
  assertEquals(circles(arrows), []);
});

Deno.test("architecture: circles would be found", () => {
  const arrows = new Map([
    ["a", ["b", "f"]],
    ["b", ["c", "d"]],
    ["c", ["a"]],
    ["d", ["e"]],
    ["e", ["d", "f"]],
    ["f", []],
    ["g", ["a", "g"]],
  ]);
  assertEquals(circles(arrows), [["d", "e"], ["a", "b", "c"], ["g"]]);
});

Deno.test("architecture: mod.ts of the library only re-exports from src", () => {
  const text = Deno.readTextFileSync(new URL("../mod.ts", import.meta.url));
  const rest = codeOf(text).replace(/export\s+(?:type\s+)?(?:\{[^}]*\}|\*)\s+from\s+"";?/g, "");
  assertEquals(rest.trim(), "");
});

Deno.test("architecture: one place makes files, so that links and files of others are refused everywhere", () => {
  assertEquals(filesWith(/\bO_CREAT\b/), ["linux/fd.ts", "linux/own_file.ts"]);
});

Deno.test("architecture: only src/linux calls Deno.dlopen", () => {
  assertEquals(filesWith(/\bdlopen\b/), ["linux/libc.ts"]);
});

Deno.test("architecture: files are not Deno's, for which there is no permission", () => {
  const api =
    /\bDeno\.(open|read|write|l?stat|mkdir|remove(?!Signal)|rename|link|symlink|truncate|real|make|copy|ch(own|mod|dir)|[ug]id|network|host|listen|connect)/;
  // Without a shell it keeps the demo's directory itself.
  assertEquals(filesWith(api), ["cli/keeper.ts"]);
});

Deno.test("architecture: only src/memory uses Atomics", () => {
  assertEquals(filesWith(/\bAtomics\b/, ({ room }) => room === "memory"), []);
  assertEquals(filesWith(/\bAtomics\b/), ["memory/atomics.ts"]);
});

Deno.test("architecture: time is the reactor's", () => {
  const asks = filesWith(/\b(performance\s*\.|Date\b|setTimeout\b|setInterval\b)/);
  assertEquals(asks, [...Object.keys(OWN_TIME), "linux/clock.ts"].sort());
});

Deno.test("architecture: no any", () => {
  assertEquals(filesWith(/[:<|&,(]\s*any\b|\bas any\b|\bany\[\]/), []);
});

Deno.test("architecture: no default exports", () => {
  assertEquals(filesWith(/\bexport\s+default\b|\bas\s+default\b/), []);
});

Deno.test("architecture: every file opens with what it is for", () => {
  const headless = SOURCES.filter(({ text }) =>
    !/^(?:#![^\n]*\n)?\/\*\*[\s\S]{10,}?\*\//.test(text)
  );
  assertEquals(headless.map(({ path }) => path), []);
});

/** The most lines of a file: what one can hold in mind. The transport's state machines are kept smaller. */
const MAX_LINES = 600;
const MAX_TRANSPORT_LINES = 400;

Deno.test("architecture: no file is too long to be read at one go", () => {
  const long = SOURCES.filter(({ room, text }) =>
    text.trimEnd().split("\n").length > (room === "transport" ? MAX_TRANSPORT_LINES : MAX_LINES)
  );
  assertEquals(long.map(({ path }) => path), []);
});

/** All of src. It was meant to be 24,000: what is added from here on has to make room for itself. */
const MAX_HOUSE_LINES = 57_000;

/** The lines that a room should have: what it is for does not need more. */
const ROOM_LINES: Readonly<Record<string, number>> = {
  virtio: 1750,
  message: 1700,
  memory: 620,
  linux: 2400,
  ivshmem: 1600,
  xen: 900,
  // With the kernel's bridge (a life of its own and the memory that comes with it), a second layout and cards' registers.
  bus: 2400,
  transport: 2250,
  sharing: 1400,
  drivers: 3300,
  devices: 3000,
  vhost_user: 300,
  network: 4500,
  // With what doctor knows of links and of a kernel's bridge, from captures and from what processes count.
  observe: 2250,
  check: 1400,
  // With a kind of bus more, the bridge of kernels.
  cli: 3400,
};

Deno.test("architecture: no room has twice the size it should have, and the house has a limit", () => {
  const lines = new Map<string, number>();
  for (const { room, text } of SOURCES) {
    lines.set(room, (lines.get(room) ?? 0) + text.trimEnd().split("\n").length);
  }
  const large = [...lines].filter(([room, count]) => count >= 2 * (ROOM_LINES[room] ?? 0));
  assertEquals(large, []);
  const all = [...lines.values()].reduce((sum, count) => sum + count, 0);
  assert(all <= MAX_HOUSE_LINES, `src has ${all} lines`);
});

Deno.test("architecture: comments name only documents that are here", () => {
  const elsewhere = SOURCES.filter(({ text }) =>
    /wire document|\bdesign (?:section )?\d/.test(text)
  );
  assertEquals(elsewhere.map(({ path }) => path), []);
});

Deno.test("architecture: comments and strings are no code, templates are", () => {
  const code = codeOf('a("Atomics"); // Atomics\n/* any */ b(`x ${Atomics.y}`); c(/any/);');
  assertEquals(code.match(/Atomics|any/g), ["Atomics"]);
});
