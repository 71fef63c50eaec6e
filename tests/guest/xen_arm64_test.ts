/**
 * As xen_test.ts, on arm64 and with Xen 4.17: what is different there. Interrupts are levels, libxl places the cards
 * and waits for their back end, and Debian's hypervisor has no ioreq servers.
 */

import { assertEquals, assertMatch } from "@std/assert";
import {
  createDomu,
  domuConfig,
  inBackground,
  waitForDomu,
} from "../../scripts/lab/xen_scripts.ts";
import { failing } from "./link_support.ts";
import { BUS, DOMU, GONE, line, START_PROXY, XEN_TIMEOUT_MS, xenTest } from "./xen_support.ts";

const FULL: [] | [{ what: string }] = Deno.env.get("VMSG_GUEST_FULL") === "1"
  ? []
  : [{ what: "arm64 machines with Xen are booted with VMSG_GUEST_FULL=1" }];

const BACK_END = "/local/domain/0/backend/virtio_disk/1/51712";

xenTest(
  "Xen on arm64: a DomU's card, its proxy killed, ended and started anew, its domain too",
  async (test) => {
    const steps = [
      START_PROXY,
      domuConfig(test.xen, { name: "domu" }),
      inBackground("device", `vmsg device --bus ${BUS},listen --net responder`),
      "proxy; ready 'waiting for it'",
      createDomu("domu"),
      `echo "STATE $(xenstore-read ${BACK_END}/state)"`,
      waitForDomu("domu", "GO kill"),
      "sleep 1; kill -9 $P; sleep 1; proxy; ready 'going on with'",
      waitForDomu("domu", "GO end"),
      "sleep 1; kill $P; wait $P; echo \"PROXY ended $?\"; proxy; ready 'going on with'",
      waitForDomu("domu", "IRQ"),
      "xl destroy domu",
      GONE,
      "sed -i 's/extra=\"/&short /' /tmp/domu.cfg",
      createDomu("domu"),
      waitForDomu("domu", "PING"),
      "xl destroy domu",
      GONE,
      "kill $P; wait $P; echo \"RUN after $(ls /run/vmsg | tr '\\n' ' ')\"",
      // What follows the domain's console looks at it once a second.
      "sleep 2; echo STEPS",
    ];
    const machine = await test.start(DOMU, { script: steps.join("\n") });
    assertEquals(await machine.waitFor(/^(STEPS|LATE|ENDED|CREATE)/, 4 * XEN_TIMEOUT_MS), "STEPS");

    assertEquals(line(machine, "STATE"), "STATE 2");
    const pings = machine.console().match(/^U\| (PING|FLOOD|KILLED|ENDED) .*answered/gm);
    assertEquals(pings, [
      "U| PING 3 sent, 3 answered",
      "U| FLOOD 200 sent, 200 answered",
      "U| KILLED 30 sent, 30 answered",
      "U| ENDED 30 sent, 30 answered",
      "U| PING 3 sent, 3 answered",
    ]);
    assertEquals(line(machine, "PROXY ended"), "PROXY ended 0");
    assertEquals(/xen-/.test(line(machine, "RUN after")), false);
  },
  FULL,
  "arm64",
);

xenTest(
  "Xen on arm64: Debian's hypervisor has no ioreq servers, which proxy and doctor say",
  async (test) => {
    const steps = [
      failing("proxy", `proxy --bus ${BUS} --confined --xen domain=domu`),
      'vmsg doctor | grep -E "^(xen|xenstore)" | sed "s/^/DOCTOR /"',
      "echo STEPS",
    ];
    const machine = await test.start("", { script: steps.join("\n") });
    await machine.waitFor(/^STEPS/, XEN_TIMEOUT_MS);
    const said = machine.console();
    const why =
      "this Xen has no ioreq servers: on arm64 it must be built with CONFIG_IOREQ_SERVER=y";
    assertMatch(said, /^RC proxy 1$/m);
    assertEquals(said.match(/^proxy: vmsg: .*/gm)?.map((text) => text.slice(0, 13 + why.length)), [
      `proxy: vmsg: ${why}`,
    ]);
    assertMatch(said, /^DOCTOR xen +no +Xen 4\.17\S*, Dom0/m);
    assertMatch(said, /CONFIG_IOREQ_SERVER=y/);
  },
  FULL,
  "arm64-stock",
);
