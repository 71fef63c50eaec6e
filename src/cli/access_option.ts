/** `mode=`, `group=` and `owner=`: who besides this user may use a socket, and whose a file is. */

import type { Access } from "../linux/own_file.ts";
import { readText } from "../linux/sysfs.ts";
import type { Group } from "./groups.ts";

/** The keys of {@link parseAccess}. */
export const ACCESS_KEYS: readonly string[] = ["mode", "group"];
/** How they are written, for a kind's usage. */
export const ACCESS_USAGE = "[,mode=OCTAL][,group=GROUP]";
/** What they are, for its help. */
export const ACCESS_HELP =
  "mode (default 0600, or 0660 with group) and group say who else may connect";

/** The number behind a name in /etc/passwd or /etc/group, or a number as it is. */
function numberOf(group: Group, key: "owner" | "group", file: string): number | undefined {
  const text = group.text(key);
  if (text === undefined) return undefined;
  if (/^\d{1,9}$/.test(text)) return Number(text);
  // A root directory may be without one.
  const lines = (readText(file) ?? "").split("\n");
  const found = lines.map((line) => line.split(":")).find(([name]) => name === text)?.[2];
  if (found === undefined) throw group.error(`${key}=${text} is not in ${file}: give its number`);
  return Number(found);
}

/** `owner=`: the number of the user whose file it is. */
export function parseOwner(group: Group): number | undefined {
  return numberOf(group, "owner", "/etc/passwd");
}

/** `mode=` and `group=`. */
export function parseAccess(group: Group): Access {
  const text = group.text("mode");
  if (text !== undefined && !/^0?[0-7]{3}$/.test(text)) {
    throw group.error(`mode is three octal digits such as 0660, not ${text}`);
  }
  const mode = text === undefined ? undefined : parseInt(text, 8);
  return { mode, group: numberOf(group, "group", "/etc/group") };
}
