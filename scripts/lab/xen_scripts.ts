/** What Dom0 does with a domain: scripts for busybox's sh, in a machine of `xen_machine.ts`. */

import type { XenInstallation } from "../fetch_xen.ts";

/** A domain of the kernel and initrd on the machine's disk. */
export interface DomuOptions {
  readonly name: string;
  /** Words for its kernel, which its script may look for. */
  readonly words?: string;
  readonly vcpus?: number;
  /** How many virtio devices it has. */
  readonly cards?: number;
  /** On x86: it is told of no cards, for an error test. */
  readonly withoutTables?: boolean;
}

/**
 * What libxl 4.17 is told of a virtio device on arm64: a disk that a program of its own serves. The domain is not
 * told what kind of device it is. All behind `target=` is a file's name; one must be there.
 */
const STANDALONE = "format=raw,access=rw,backendtype=standalone,specification=virtio";

/** Shell: writes the domain's configuration, as `/tmp/NAME.cfg`, and what it needs. */
export function domuConfig(
  { architecture, version }: Pick<XenInstallation, "architecture" | "version">,
  { name, words = "", vcpus = 1, cards = 1, withoutTables = false }: DomuOptions,
): string {
  const isX86 = architecture === "x86_64";
  const devices = Array.from({ length: cards }, (_, card) => card);
  const disks = devices.map((card) => `"${STANDALONE},vdev=xvd${"abcdefgh"[card]},target=/init"`);
  const virtio = devices.map(() => '"type=virtio,device,transport=mmio,backend=0,grant_usage=0"');
  const own = isX86
    // Measuring its clock would take a domain a minute under emulation.
    ? ['type="pvh"', 'tsc_mode="native"', `ramdisk="/tmp/${name}.img"`, "memory=192"]
    : [
      ...['ramdisk="/domu/initrd"', "memory=128"],
      version < "4.18" ? `disk=[${disks.join()}]` : `virtio=[${virtio.join()}]`,
    ];
  const clock = isX86 ? "tsc=reliable cryptomgr.notests" : "";
  const config = [
    ...[`name="${name}"`, 'kernel="/domu/kernel"', `vcpus=${vcpus}`, 'cpus="1"', ...own],
    `extra="console=hvc0 panic=-1 quiet ${clock} ${words}"`,
    ...['on_poweroff="destroy"', 'on_crash="destroy"'],
  ];
  const tables = withoutTables ? ":" : `vmsg xen-acpi --vcpus ${vcpus} --cards ${cards}`;
  const image = `{ ${tables}; cat /domu/initrd; } >/tmp/${name}.img\n`;
  return `cat >/tmp/${name}.cfg <<'END'\n${config.join("\n")}\nEND\n${isX86 ? image : ""}`;
}

/** Shell: `xl create`, and what the domain says from then on, with `U| ` before it. */
export function createDomu(name: string, how = ""): string {
  return `
: >/tmp/guest-${name}.log
[ -e /tmp/${name}.followed ] || {
  touch /tmp/${name}.followed
  tail -n 0 -F /tmp/guest-${name}.log 2>/dev/null | while read -r line; do echo "U| $line"; done &
}
xl create ${how} /tmp/${name}.cfg >/tmp/xl.log 2>&1 || { cat /tmp/xl.log; echo "CREATE failed"; }
`;
}

/** Shell: until a domain has said something, or a while has passed. */
export function waitForDomu(name: string, text: string, seconds = 400): string {
  return `
i=0; until grep -q "${text}" /tmp/guest-${name}.log; do
  i=$((i + 1)); [ $i -lt ${2 * seconds} ] || { echo "LATE ${text}"; break; }; sleep 0.5
done
`;
}

/** Shell: a program in the background, whose lines are on the console and in a file of that name in /tmp. */
export function inBackground(name: string, command: string): string {
  return `
echo "$ ${command}"
{ ${command} 2>&1; echo "ENDED ${name} rc=$?"; } >/tmp/${name}.log & 
tail -n +1 -F /tmp/${name}.log 2>/dev/null &
`;
}

/** Shell: until the proxy has said that it is there. */
export function waitForProxy(text = "waiting for it"): string {
  return `until grep -q -e "${text}" -e "ENDED proxy" /tmp/proxy.log; do sleep 0.2; done\n`;
}
