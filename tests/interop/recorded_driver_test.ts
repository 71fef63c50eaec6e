/** The recorded driver, as it spoke to the prototype, at a running `vmsg device`. */

import { assertEquals } from "@std/assert";
import { fromFileUrl } from "@std/path";
import { processTest } from "../support/processes.ts";

const PROGRAM = fromFileUrl(new URL("recorded_driver.ts", import.meta.url));
const CONFIG = fromFileUrl(new URL("../../deno.json", import.meta.url));
/** The recorded guest had this much RAM at 0, in which its rings lie. */
const RAM = 256 << 20;

processTest("interop: the recorded driver and a running vmsg device, twice", async (vmsg) => {
  await Deno.writeFile(`${vmsg.directory}/ram`, new Uint8Array(0));
  await Deno.truncate(`${vmsg.directory}/ram`, RAM);
  const bus = ["--bus", "linux-user,socket=lu.sock,dialect=proto"];
  const net = ["--net", "responder,mac=52:54:00:12:34:56,mtu=1500"];
  const device = await vmsg.start("device", ...bus, "--memory", "file=ram,at=0", ...net);
  await device.waitFor(/waiting for the driver side/);
  for (let round = 0; round < 2; round++) {
    const args = ["run", "-A", "--config", CONFIG, PROGRAM];
    const driver = await vmsg.startProgram(Deno.execPath(), ...args);
    const { code, stderr } = await driver.ended();
    assertEquals([code, stderr], [0, []]);
  }
  assertEquals(device.stderr.filter((line) => /needs a reset|dropped|not take/.test(line)), []);
});
