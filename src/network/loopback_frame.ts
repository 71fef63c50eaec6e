/**
 * Frames for the host itself. passt makes a socket of its user's of whatever destination a frame has, and that of 127.0.0.1
 * is the host's loopback, although no such address is ever on a wire: one forged frame (version 2023_03_09) reached
 * what listens there. The unspecified address connects there too, as does an IPv4 address written as an IPv6 one.
 */

/** How much of a frame has to be there: an Ethernet and an IPv6 header. */
export const HEADERS_SIZE = 54;

const ETHERTYPE = 12;
const IPV4 = 0x0800;
const IPV4_TARGET = 30;
const IPV6 = 0x86dd;
const IPV6_TARGET = 38;

/** Whether a frame is for 0.0.0.0/8, 127.0.0.0/8, ::/96 or ::ffff:0:0/96. */
export function isForLoopback(headers: DataView): boolean {
  switch (headers.getUint16(ETHERTYPE, false)) {
    case IPV4: {
      const network = headers.getUint8(IPV4_TARGET);
      return network === 0 || network === 127;
    }
    case IPV6: {
      if (headers.getUint32(IPV6_TARGET) !== 0 || headers.getUint32(IPV6_TARGET + 4) !== 0) {
        return false;
      }
      const last = headers.getUint32(IPV6_TARGET + 8);
      return last === 0 || last === 0xffff;
    }
    default:
      return false;
  }
}
