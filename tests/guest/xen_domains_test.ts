/** A machine with stock Xen, as in xen_test.ts: domains that vanish, and several domains and cards of one proxy. */

import { assert, assertEquals } from "@std/assert";
import {
  createDomu,
  domuConfig,
  inBackground,
  waitForDomu,
} from "../../scripts/lab/xen_scripts.ts";
import { BUS, DOMU, GONE, holds, START_PROXY, XEN_TIMEOUT_MS, xenTest } from "./xen_support.ts";

const FULL = Deno.env.get("VMSG_GUEST_FULL") === "1"
  ? []
  : [{ what: "machines with several domains are booted with VMSG_GUEST_FULL=1" }];

/** When a domain is destroyed, in Dom0's shell. */
const MOMENTS: Readonly<Record<string, string>> = {
  // Its kernel waits at its first look at the card.
  "no-device": "sleep 12",
  "at-once": inBackground("device", `vmsg device --bus ${BUS},listen --net responder`),
  "served": "ready 'serving device 0'",
  "early": "sleep 2",
  "probing": "sleep 5",
  "queues": "until grep -q '\"ready\":true' /run/vmsg/xen-*.json; do sleep 0.1; done",
  "driver-ok": "until grep -q '\"status\":15' /run/vmsg/xen-*.json; do sleep 0.1; done",
  "traffic": `${waitForDomu("domu", "PING")}\nsleep 2`,
};

const OTHER =
  "vmsg proxy --bus linux-user,name=other,socket=/tmp/other.sock --confined --xen domain=domu";
/** Shell: until the second proxy has said this. */
const second = (text: string) => `
i=0; until grep -q "${text}" /tmp/second.log; do
  i=$((i + 1)); [ $i -lt 1500 ] || { cat /tmp/second.log; echo "LATE ${text}"; break; }; sleep 0.2
done
`;

xenTest(
  "Xen: a domain that vanishes, whatever it is at, leaves nothing, and the next is served",
  async (test) => {
    const names = Object.keys(MOMENTS);
    const round = (name: string) => `
: >/tmp/proxy.log
${createDomu("domu", name === "at-once" ? "-p" : "")}
echo "MOMENT ${name}"
${MOMENTS[name]}
xl destroy domu
${GONE}
${holds(name)}
`;
    const machine = await test.start(DOMU, {
      script: [
        START_PROXY,
        domuConfig(test.xen, { name: "domu" }),
        "proxy; ready 'waiting for it'",
        ...names.map(round),
        // One that waited for the same domain as well goes on when the first ends.
        `${OTHER} >/tmp/second.log 2>&1 & Q=$!`,
        second("waiting for it"),
        "kill -STOP $Q",
        createDomu("domu"),
        waitForDomu("domu", "FLOOD"),
        "kill -CONT $Q",
        second("is served by process $P"),
        "kill $P; wait $P; echo PROXY ended $?",
        second("going on with"),
        "P=$Q; xl destroy domu",
        GONE,
        "kill $P; wait $P; echo \"RUN after $(ls /run/vmsg | tr '\\n' ' ')\"",
        "echo STEPS",
      ].join("\n"),
    });
    assertEquals(
      await machine.waitFor(/^(STEPS|LATE|ENDED|CREATE)/, 8 * XEN_TIMEOUT_MS),
      "STEPS",
    );
    const console = machine.console();
    assert(/^U\| FLOOD 200 sent, 200 answered/m.test(console));
    const held = [...console.matchAll(/^HOLDS (\S+) (\d+) fds, (\d+) lines.* (\d+) MiB/gm)];
    assertEquals(held.map(([, name]) => name), names);
    // A header and Dom0.
    for (const [text, , , lines] of held) assertEquals(lines, "2", text);
    // From the fourth on the device side is there for sure, with what the bus has.
    assertEquals(new Set(held.slice(3).map(([, , fds]) => fds)).size, 1, `${held}`);
    assertEquals(new Set(held.map(([, , , , free]) => free)).size, 1, `${held}`);
    const left = [...console.matchAll(/^RUN .*xen-.*/gm)];
    assertEquals(left, []);
  },
  FULL,
);

/** The same address, on one card after the other: each has a network of its own. */
const CARDS = `
for card in /sys/class/net/eth*; do
  name=$\{card##*/}
  ip link set $name up; ip addr add 10.0.2.15/24 dev $name
  ping -q -c 3 10.0.2.2 >/dev/null; echo "$DOMAIN $name rc=$? $(cat $card/address)"
  ip addr flush dev $name; ip link set $name down
done
echo "$DOMAIN IRQ $(grep virtio /proc/interrupts | sed 's/.*IO-APIC *//' | tr -s '\\n ' ' ')"
echo "$DOMAIN DONE"
sleep 3600
`;

xenTest(
  "Xen: one proxy's two domains, one with two cards and one whose card has a place of its own",
  async (test) => {
    const nets = "--net responder --net responder --net responder";
    const machine = await test.start(CARDS, {
      memoryMiB: 1024,
      script: [
        START_PROXY,
        'XEN="--xen domain=one,device=0 --xen domain=one,device=1"',
        // Of two places that its tables name, the second.
        'XEN="$XEN --xen domain=two,device=2,base=0xd0000200,irq=17"',
        domuConfig(test.xen, { name: "one", cards: 2, words: "DOMAIN=one" }),
        domuConfig(test.xen, { name: "two", cards: 2, words: "DOMAIN=two" }),
        inBackground("device", `vmsg device --bus ${BUS},listen ${nets}`),
        "proxy; ready 'two: waiting for it'",
        createDomu("one"),
        createDomu("two"),
        waitForDomu("one", "DONE"),
        waitForDomu("two", "DONE"),
        "xl destroy one",
        "ready 'one (1) is gone'",
        // The other one is served as before.
        "xl destroy two",
        "ready 'two (2) is gone'",
        "sleep 2; echo \"RUN $(ls /run/vmsg | tr '\\n' ' ')\"; echo STEPS",
      ].join("\n"),
    });
    assertEquals(
      await machine.waitFor(/^(STEPS|LATE|ENDED|CREATE)/, 4 * XEN_TIMEOUT_MS),
      "STEPS",
    );
    const console = machine.console();
    const cards = [...console.matchAll(/^U\| (one|two) (eth\d) rc=0 (\S+)/gm)];
    assertEquals(cards.map(([, domain, card]) => `${domain} ${card}`).sort(), [
      "one eth0",
      "one eth1",
      "two eth0",
    ]);
    assertEquals(new Set(cards.map(([, , , mac]) => mac)).size, 3, "MAC addresses");
    const interrupts = console.match(/^U\| \S+ IRQ .*/gm)?.map((text) => text.trim()).sort();
    assertEquals(interrupts, [
      "U| one IRQ 16-edge virtio0 17-edge virtio1",
      "U| two IRQ 17-edge virtio0",
    ]);
    assertEquals(/^RUN .*xen-/m.test(console), false);
  },
  FULL,
);
