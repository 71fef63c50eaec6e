/** What others put in the place of our files is refused, and nothing is done to it. */

import { assert, assertEquals, assertThrows } from "@std/assert";
import { VmsgError } from "../../src/linux/errors.ts";
import { fileSize, fileStatus } from "../../src/linux/fd.ts";
import { openOwnFile, openOwnFileOf, type OwnFileOptions } from "../../src/linux/own_file.ts";
import { cleanTest, withDirectory } from "../support/leaks.ts";

const OTHER_USER = 65533;
const WHAT = { what: "queue file" };

/** Everything that can be seen of what is at a path. */
function look(path: string): string {
  const { mode, nlink, size, uid, gid, isSymlink } = Deno.lstatSync(path);
  return JSON.stringify([mode, nlink, size, uid, gid, isSymlink]);
}

function run(program: string, ...args: string[]): void {
  assert(new Deno.Command(program, { args }).outputSync().success, `${program} ${args.join(" ")}`);
}

interface Planted {
  /** Puts it at `place`; `victim` is a file of ours that is to stay as it is. */
  plant(place: string, victim: string): void;
  readonly problem: string;
  readonly options?: Partial<OwnFileOptions>;
  readonly onlyRoot?: boolean;
}

const PLANTED: Readonly<Record<string, Planted>> = {
  "a link to a file of ours": {
    plant: (place, victim) => Deno.symlinkSync(victim, place),
    problem: "is a symbolic link",
  },
  "a link to nothing, to have it made": {
    plant: (place, victim) => Deno.symlinkSync(`${victim}-new`, place),
    problem: "is a symbolic link",
  },
  "another name of a file of ours": {
    plant: (place, victim) => Deno.linkSync(victim, place),
    problem: "has 2 names (hard links)",
  },
  "a pipe": {
    plant: (place) => run("mkfifo", "-m", "600", place),
    problem: "is no file: remove it",
  },
  "a pipe of another user, where pipes will do": {
    plant: (place) => {
      run("mkfifo", "-m", "600", place);
      Deno.chownSync(place, OTHER_USER, null);
    },
    problem: `belongs to user ${OTHER_USER}, not to ${Deno.uid()}`,
    options: { mayBePipe: true },
    onlyRoot: true,
  },
  "a device": {
    plant: (place) => run("mknod", "-m", "600", place, "c", "1", "5"),
    problem: "is no file and no pipe",
    options: { mayBePipe: true },
    onlyRoot: true,
  },
  "a file of another user": {
    plant: (place) => {
      Deno.writeTextFileSync(place, "theirs", { mode: 0o600 });
      Deno.chownSync(place, OTHER_USER, null);
    },
    problem: `belongs to user ${OTHER_USER}, not to ${Deno.uid()}`,
    onlyRoot: true,
  },
  "a file of ours, where another user's is meant": {
    plant: (place) => Deno.writeTextFileSync(place, "ours", { mode: 0o600 }),
    problem: `belongs to user ${Deno.uid()}, not to ${OTHER_USER}`,
    options: { owner: OTHER_USER },
  },
  "a file that everybody may write": {
    plant: (place) => {
      Deno.writeTextFileSync(place, "ours");
      Deno.chmodSync(place, 0o666);
    },
    problem: "can be written by everybody: chmod go-w it",
  },
  "a file that its group may write": {
    plant: (place) => {
      Deno.writeTextFileSync(place, "ours");
      Deno.chmodSync(place, 0o660);
    },
    problem: "can be written by its group: chmod go-w it",
  },
  "a file that everybody may write, where a group is meant": {
    plant: (place) => {
      Deno.writeTextFileSync(place, "ours");
      Deno.chmodSync(place, 0o662);
    },
    problem: "can be written by everybody",
    options: { group: Deno.gid()! },
  },
};

for (const [name, { plant, problem, options, onlyRoot = false }] of Object.entries(PLANTED)) {
  // Whoever is not root can give nothing away.
  if (onlyRoot && Deno.uid() !== 0) continue;
  cleanTest(`own file: ${name}`, () =>
    withDirectory((directory) => {
      const [place, victim] = [`${directory}/place`, `${directory}/victim`];
      Deno.writeTextFileSync(victim, "of value", { mode: 0o600 });
      plant(place, victim);
      const before = [look(place), look(victim)];
      const error = assertThrows(
        () => openOwnFileOf(4096, place, { ...WHAT, ...options }),
        VmsgError,
        problem,
      );
      assertEquals(error.code, "FOREIGN_FILE");
      assertEquals([look(place), look(victim)], before);
      assertEquals(Deno.readTextFileSync(victim), "of value");
      assertThrows(() => Deno.lstatSync(`${victim}-new`), Deno.errors.NotFound);
    }));
}

cleanTest(
  "own file: made for this user alone, found again, and never resized",
  () =>
    withDirectory((directory) => {
      const path = `${directory}/file`;
      const umask = Deno.umask(0);
      try {
        const { fd, isNew } = openOwnFile(path, WHAT);
        using made = fd;
        assertEquals([isNew, fileStatus(made).mode, fileSize(made)], [true, 0o600, 0]);
      } finally {
        Deno.umask(umask);
      }
      {
        using sized = openOwnFileOf(8192, path, WHAT);
        assertEquals(fileSize(sized), 8192);
        assertEquals(Deno.statSync(path).blocks! * 512 >= 8192, true, "it has holes");
      }
      for (const size of [4096, 16384]) {
        const refused = () => openOwnFileOf(size, path, WHAT);
        assertEquals(
          assertThrows(refused, VmsgError, `has 8192 bytes, not ${size}`).code,
          "FILE_SIZE",
        );
      }
      assertEquals(Deno.statSync(path).size, 8192);
      assertThrows(() => openOwnFile(path, { ...WHAT, make: "always" }), VmsgError, "EEXIST");
      assertThrows(() => openOwnFile(`${path}2`, { ...WHAT, make: "never" }), VmsgError, "ENOENT");
    }),
);

cleanTest(
  "own file: a mode and a group hold whatever the umask is",
  () =>
    withDirectory((directory) => {
      const path = `${directory}/file`;
      const group = Deno.gid()!;
      using made = openOwnFile(path, { ...WHAT, group }).fd;
      assertEquals([fileStatus(made).mode, fileStatus(made).group], [0o660, group]);
      using again = openOwnFile(path, { ...WHAT, group, mode: 0o664 }).fd;
      assertEquals(fileStatus(again).mode, 0o664);
    }),
);
