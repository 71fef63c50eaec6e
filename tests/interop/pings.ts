/** Pings by the independent peer, through the responder of a vmsg device; every byte of the answers is looked at. */

import { assertEquals } from "@std/assert";
import { arpRequest, checksum, type DriverPeer, echoRequest, pattern } from "./proto_peer.ts";

/** Who answers, and who asks. */
export const HOST = [10, 0, 2, 2];
export const GUEST = [10, 0, 2, 15];

export const isArpReply = (frame: Uint8Array) =>
  frame[12] === 8 && frame[13] === 6 && frame[21] === 2;
export const isEchoReply = (sequence: number) => (frame: Uint8Array) =>
  frame[12] === 8 && frame[13] === 0 && frame[23] === 1 && frame[34] === 0 &&
  (frame[40]! << 8) + frame[41]! === sequence;

/**
 * ARP and three pings to the responder, all answers checked. With `whenNotified` the ring is looked into only when the
 * device has said so, for each answer anew: the peer's first traffic on this ring.
 */
export async function ping(
  peer: DriverPeer,
  mac: Uint8Array,
  { whenNotified = false } = {},
): Promise<void> {
  const answer = async (count: number) => {
    if (whenNotified) await peer.notified(0, count);
  };
  await peer.send(arpRequest(mac, GUEST, HOST));
  await answer(1);
  const arp = await peer.receive(isArpReply);
  assertEquals([...arp.subarray(0, 6)], [...mac], "to us");
  const host = { mac: arp.slice(22, 28), address: [...arp.subarray(28, 32)] };
  assertEquals(host.address, HOST);
  for (let sequence = 1; sequence <= 3; sequence++) {
    await peer.send(echoRequest({ mac, address: GUEST }, host, sequence));
    await answer(1 + sequence);
    const reply = await peer.receive(isEchoReply(sequence));
    assertEquals([...reply.subarray(6, 12)], [...host.mac]);
    assertEquals([...reply.subarray(26, 34)], [...HOST, ...GUEST]);
    const total = (reply[16]! << 8) + reply[17]!;
    assertEquals(checksum(reply.subarray(14, 34)), 0, "IP checksum");
    assertEquals(checksum(reply.subarray(34, 14 + total)), 0, "ICMP checksum");
    assertEquals([...reply.subarray(42, 14 + total)], pattern());
  }
  await peer.sent();
}
