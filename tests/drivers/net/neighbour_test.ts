/**
 * `vmsg driver` pings a real kernel, which asks for its address again and again: in this namespace after a fraction of
 * a second instead of half a minute.
 */

import { assertEquals } from "@std/assert";
import { namespacesTest } from "../../support/namespaces.ts";

namespacesTest(
  "pinger: a kernel that looks for its neighbour again finds it",
  ["ip"],
  async (one) => {
    const bus = ["--bus", "linux-user,socket=s"];
    const tap = "tap=t0,address=10.9.0.1/24";
    const device = await one.startVmsg("device", ...bus, "--net", tap);
    await device.waitFor(/waiting for the driver side/);
    const neigh = "/proc/sys/net/ipv4/neigh/t0";
    const settings = {
      base_reachable_time_ms: 200,
      delay_first_probe_time: 1,
      retrans_time_ms: 100,
      gc_stale_time: 1,
    };
    for (const [name, value] of Object.entries(settings)) {
      const set = await one.start("sh", "-c", `echo ${value} >${neigh}/${name}`);
      assertEquals((await set.ended()).code, 0);
    }
    const to = ["--ping", "10.9.0.1", "--address", "10.9.0.2"];
    const driver = await one.startVmsg("driver", ...bus, ...to, "--interval", "0.25");
    // Five seconds of pings, in which it has asked several times; unanswered it would say nothing more.
    await driver.waitFor(/icmp_seq=(\d{3,}|[2-9]\d) /);
  },
);
