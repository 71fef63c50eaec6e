/** What guests do: scripts for busybox's sh, run by the init of `initramfs.ts`. */

import { UsageError } from "../../src/linux/errors.ts";

/** Options of {@link pingScript}. */
export interface PingOptions {
  /** "dhcp", or an IPv4 address with its prefix length, as in "10.0.2.15/24". */
  readonly address: string;
  /** The IPv4 address to ping. */
  readonly peer: string;
  /** How many echo requests. */
  readonly count: number;
}

/**
 * Gives a PCI function to vfio-pci; the module must be there. Prints a line only if that fails.
 *
 * @param address as in "0000:00:10.0"
 */
export function bindVfio(address: string): string {
  if (!/^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$/.test(address)) {
    throw new UsageError(`PCI address ${address}: give it in full (0000:00:10.0)`);
  }
  const device = `/sys/bus/pci/devices/${address}`;
  return `
[ ! -e ${device}/driver ] || echo ${address} >${device}/driver/unbind
echo vfio-pci >${device}/driver_override
echo ${address} >/sys/bus/pci/drivers_probe
[ -e /sys/bus/pci/drivers/vfio-pci/${address} ] || echo "${address} is not bound to vfio-pci"
`;
}

/** How long a guest waits for its network card, in tenths of a second; only one that never gets one meets it. */
const INTERFACE_WAIT = 1200;

/** Options of busybox's udhcpc, to be asked in the foreground once, for as long as a slow machine may need. */
export const DHCP_ONCE = "-f -q -n -t 120 -T 1";
/** For how many seconds a busybox's ping that has had no answer waits for one. */
export const PING_WAIT_S = 60;

/**
 * Shell: `pings COUNT PEER` has each of its echo requests answered before it sends the next one, and ends with 0 if all were. (A
 * ping of many waits no longer for the last ones than the others took twice, and a second at least.)
 */
export const PINGS = `
pings() {
  answered=0
  for request in $(seq $1); do
    ping -c 1 -W ${PING_WAIT_S} $2 | grep "bytes from" && answered=$((answered + 1))
  done
  echo "$1 packets transmitted, $answered packets received"
  [ $answered = $1 ]
}
`;

/** Shell: sets `interface` to the first network card, or to nothing. */
const FIND_INTERFACE = `
interface=
tries=0
while [ -z "$interface" ] && [ "$tries" -lt ${INTERFACE_WAIT} ]; do
  for path in /sys/class/net/*; do
    # Only a real card has a device; lo and the tunnels have none.
    if [ -z "$interface" ] && [ -e "$path/device" ]; then interface=\${path##*/}; fi
  done
  [ -n "$interface" ] || sleep 0.1
  tries=$((tries + 1))
done
`;

/** Shell: asks a DHCP server once and takes what it says. */
const DHCP = `
cat >/tmp/lease.sh <<'END'
#!/bin/sh
case $1 in
  bound | renew)
    ip addr add "$ip/$mask" dev "$interface"
    for gateway in $router; do ip route add default via "$gateway" dev "$interface"; done
    echo "LEASE $ip/$mask router=$router dns=$dns"
    ;;
esac
END
chmod +x /tmp/lease.sh
udhcpc -i "$interface" -s /tmp/lease.sh ${DHCP_ONCE} || echo "LEASE none"
`;

/**
 * Brings the guest's network card up, pings a peer, and prints `PING rc=0` if it answered. Before
 * that it prints `INTERFACE name` (or `INTERFACE none`) and with DHCP `LEASE address ...`.
 *
 * @throws UsageError for an address that is none
 */
export function pingScript(options: PingOptions): string {
  const { address, peer, count } = options;
  const isStatic = address !== "dhcp";
  if (isStatic && !isAddressWithPrefix(address)) {
    throw new UsageError(`guest address ${address}: give dhcp or ADDRESS/PREFIX (10.0.2.15/24)`);
  }
  if (!isAddress(peer)) throw new UsageError(`peer ${peer}: give an IPv4 address (10.0.2.2)`);
  if (!Number.isInteger(count) || count < 1) {
    throw new UsageError(`${count} pings: give a whole number from 1 on`);
  }
  return `${FIND_INTERFACE}
echo "INTERFACE \${interface:-none}"
[ -n "$interface" ] || exit 1
ip link set "$interface" up
${isStatic ? `ip addr add ${address} dev "$interface"` : DHCP}
${PINGS}pings ${count} ${peer}
echo "PING rc=$?"
`;
}

/**
 * Shell: `counted LABEL COMMAND` runs a ping, and says how many requests the kernel has sent and how many were answered: when all were,
 * or half as many seconds as $patience says have passed. The kernel counts answers that a ping misses, which has room for a dozen
 * that come together (SO_RCVBUF) and does not wait for late ones.
 */
export const COUNTED = `
echoes() {
  awk -v name=$1 '/^Icmp:/ && at { print $at } /^Icmp:/ { for (i = 1; i <= NF; i++) if ($i == name) at = i }' /proc/net/snmp
}
since() { echo "$(($(echoes OutEchos) - sent)) sent, $(($(echoes InEchoReps) - answered)) answered"; }
counted() {
  label=$1 sent=$(echoes OutEchos) answered=$(echoes InEchoReps)
  shift
  "$@"
  tries=0
  until since | awk '{ exit $1 != $3 }' || [ $tries -gt \${patience:-240} ]; do tries=$((tries + 1)); sleep 0.5; done
  echo "$label $(since)"
}
`;

function isAddress(text: string): boolean {
  return /^\d{1,3}(\.\d{1,3}){3}$/.test(text) &&
    text.split(".").every((part) => Number(part) <= 255);
}

function isAddressWithPrefix(text: string): boolean {
  const [address = "", prefix = "", ...rest] = text.split("/");
  return isAddress(address) && /^\d{1,2}$/.test(prefix) && Number(prefix) <= 32 &&
    rest.length === 0;
}
