/** Where a guest's memory is, for a device side that is given it by name. */

/** The memory file of the User-Mode Linux whose card is at this socket, once it runs. */
export async function umlMemory(socket: string): Promise<string | undefined> {
  for await (const { name } of Deno.readDir("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    try {
      const command = await Deno.readTextFile(`/proc/${name}/cmdline`);
      if (!command.includes(`virtio_uml.device=${socket}:`)) continue;
      for await (const fd of Deno.readDir(`/proc/${name}/fd`)) {
        const path = `/proc/${name}/fd/${fd.name}`;
        if (/^\/.* \(deleted\)$/.test(await Deno.readLink(path))) return path;
      }
    } catch {
      // It has ended meanwhile.
    }
  }
  return undefined;
}
