/** Charts: what they say is missing, and how they do in Debian's Chromium, in a window and on a telephone. */

import { assert, assertEquals, assertMatch } from "@std/assert";
import { findProgram } from "../../src/linux/programs.ts";
import { Message } from "../../src/message/message.ts";
import { codecFor } from "../../src/message/codecs.ts";
import { chart } from "../../src/observe/chart.ts";
import { createTracer } from "../../src/observe/trace.ts";
import { recordedSession } from "../message/recorded_session.ts";
import { slotOf } from "../message/vectors.ts";
import { testUnless } from "../support/needs.ts";
import { until } from "../support/processes.ts";
import { VirtualClock } from "../support/virtual_clock.ts";

/** The recorded session's first messages as lines of JSON, and what was never answered; again and again up to `count`. */
function session(count: number): string[] {
  const lines: string[] = [];
  const clock = new VirtualClock();
  const tracer = createTracer((line) => lines.push(line), clock, { format: "json" });
  const recorded = recordedSession();
  const message = new Message();
  for (let i = 0; i < count; i++) {
    const { bytes, fromDriver } = recorded[i % recorded.length]!;
    const slot = slotOf(bytes);
    codecFor("proto").decode(slot, 0, message);
    clock.advance(0.1);
    tracer.message(fromDriver ? "<-" : "->", message, slot, 0, message.size);
  }
  tracer.unanswered();
  return lines;
}

interface Data {
  readonly rows: readonly [number, number, string, number, number, number, boolean][];
  readonly states: readonly string[];
  readonly missing: readonly string[];
}

function dataOf(page: string): Data {
  return JSON.parse(/<script type="application\/json" id="data">(.*)<\/script>/.exec(page)![1]!);
}

Deno.test("chart: a whole session lacks nothing; its states", () => {
  const { rows, states, missing } = dataOf(chart(session(174), "t"));
  assertEquals([rows.length, missing], [174, []]);
  assertEquals(rows.slice(0, 2).map((row) => row.slice(1, 3)), [
    [0, "dev 0 GET_DEVICE_INFO?"],
    [1, "dev 0 GET_DEVICE_INFO = net vendor 0x554d4551 version 1"],
  ]);
  assertEquals(rows[1]!.slice(3), [100, 0, 2, false]);
  assert(states.includes(
    "dev 0 net: ACKNOWLEDGE DRIVER DRIVER_OK FEATURES_OK\n  queue 0: set up, size 1024\n" +
      "  queue 1: set up, size 1024\n  queue 2: set up, size 1024",
  ));
});

Deno.test("chart: where a bring-up stands still is said, and red", () => {
  const steps: [RegExp, string][] = [
    [/GET_DEVICE_INFO =/, "no answer to GET_DEVICE_INFO"],
    [
      /SET_DEVICE_STATUS\? ACKNOWLEDGE DRIVER$/,
      "the driver never set DRIVER: nobody drives the device",
    ],
    [/ACKNOWLEDGE DRIVER FEATURES_OK/, "FEATURES_OK was never set"],
    [/SET_VQUEUE\?/, "SET_VQUEUE never came: no queue was set up"],
    [/DRIVER_OK/, "DRIVER_OK was never set"],
  ];
  const words: string[] = session(174).map((line) => JSON.parse(line).words);
  for (const [step, expected] of steps) {
    const { missing } = dataOf(chart(session(words.findIndex((word) => step.test(word))), "t"));
    assertEquals(missing.at(-1), `dev 0: ${expected}`);
  }
  // A request without its answer.
  const { rows, missing } = dataOf(chart(session(3), "t"));
  assertEquals(rows.map((row) => row[6]), [false, false, true]);
  assertMatch(missing[0]!, /^not answered: dev 0 GET_DEVICE_FEATURES\? blocks 0\.\.1 at 0\.\d+ s$/);
});

Deno.test("chart: one page that loads nothing, whatever is in it", () => {
  const note = JSON.stringify({ time: 0, note: "</script><script>alert(1)</script> $& $1" });
  const page = chart([note], "<b>");
  assertEquals(page.match(/<script/g)!.length, 2);
  assertEquals(dataOf(page).rows[0]![2], "</script><script>alert(1)</script> $& $1");
  assertEquals(page.match(/\b(src|href)=|\b(url|import|fetch)\(|https?:/g), null);
});

const NEEDS = findProgram("chromium") === undefined
  ? [{ what: "no chromium (Debian: apt-get install chromium)" }]
  : [];

/** What a user does, at the end of the page: what came of it is left in the document. */
const USER = `<script>
const found = {};
const type = (text) => { search.value = text; search.oninput(); };
type("driver_ok");
found.matches = count.textContent;
found.chosen = find("#message").textContent.split("\\n")[1];
find("#next").click();
found.next = count.textContent;
only.checked = true;
only.onchange();
found.only = shown.length;
type("");
for (let n = 0; n < 3; n++) find("#larger").click();
found.height = height;
chart.scrollTop = 1e9;
draw();
found.last = box.lastChild.querySelector("span").textContent;
found.drawn = box.childElementCount;
found.wide = document.documentElement.scrollWidth - innerWidth;
found.low = document.documentElement.scrollHeight - innerHeight;
const [left, aside] = ["#left", "aside"].map((each) => find(each).getBoundingClientRect());
found.left = left.height / innerHeight;
found.bottom = aside.bottom - innerHeight;
found.state = find("#state").textContent.split("\\n")[0];
document.documentElement.dataset.found = JSON.stringify(found);
</script>`;

for (const [where, size] of [["in a window", "1280,800"], ["on a telephone", "390,800"]] as const) {
  testUnless(`chart: 10,000 messages ${where}, in Chromium`, NEEDS, async () => {
    const directory = await Deno.makeTempDir();
    try {
      const path = `${directory}/chart.html`;
      await Deno.writeTextFile(path, chart(session(10_000), "t") + USER);
      const { stdout, stderr } = await new Deno.Command("chromium", {
        args: [
          ...["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"],
          ...[`--user-data-dir=${directory}/profile`, `--window-size=${size}`],
          ...["--dump-dom", `file://${path}`],
        ],
        stdin: "null",
      }).output();
      assertEquals(new TextDecoder().decode(stderr).match(/.*CONSOLE.*/g), null);
      const [, attributes] = /<html ([^>]*)>/.exec(new TextDecoder().decode(stdout))!;
      const attribute = (name: string) =>
        new RegExp(`data-${name}="([^"]*)"`).exec(attributes!)![1]!.replaceAll("&quot;", '"');
      assertEquals(attribute("rows"), "10000");
      // A tenth of a second, on a machine that has nothing else to do.
      assert(Number(attribute("ms")) < 60_000, `${attribute("ms")} ms`);
      const { matches, chosen, next, only, height, last, drawn, wide, low, left, bottom, state } =
        JSON.parse(
          attribute("found"),
        );
      const total = Number(/^1 of (\d+)$/.exec(matches)![1]);
      assertMatch(chosen, /DRIVER_OK/);
      assertEquals([next, only], [`2 of ${total}`, total]);
      assert(height > 40 && drawn > 10 && drawn < 100, `${height} ${drawn}`);
      assertMatch(last, /^dev 0 /);
      assertMatch(state, /^dev 0 net: /);
      // It fits: only the chart itself scrolls.
      assert(wide <= 0 && low <= 0, `${wide} ${low}`);
      // The chart has what room there is, and the states beside or below it end where the window does.
      assert(left > 0.5 && Math.abs(bottom) < 2, `${left} ${bottom}`);
    } finally {
      // Processes of the browser's that end later may still write there.
      await until(() => Deno.remove(directory, { recursive: true }).then(() => true, () => false));
    }
  });
}
