/**
 * The page of a chart (chart.ts): HTML, CSS and a script that shows of all rows those that are in sight, so that ten
 * thousand are as quick as ten. `DATA` is where they go. Text comes from captures, and is only ever set as text.
 */

export const CHART_PAGE: string = String.raw`<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>virtio-msg</title>
<style>
  :root { --h: 26px; --size: 13px; --line: #8a94a6; --ink: #1c2330; --paper: #fff; --soft: #f1f3f7; --bad: #c5162e; --to: #1d5fbf; --from: #23793d; color-scheme: light dark; }
  @media (prefers-color-scheme: dark) { :root { --ink: #dfe4ee; --paper: #14181f; --soft: #1f2530; --bad: #ff6b7d; --to: #7fb2ff; --from: #7ed49a; } }
  * { box-sizing: border-box; }
  body { margin: 0; height: 100vh; height: 100dvh; display: grid; grid-template: auto auto 1fr / 1fr 20rem; font: 14px/1.4 system-ui, sans-serif; color: var(--ink); background: var(--paper); }
  header { grid-column: 1 / 3; display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; padding: .5rem .75rem; background: var(--soft); }
  h1 { font-size: 1rem; margin: 0; flex: 1 1 auto; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
  input[type=search] { flex: 1 1 8rem; min-width: 6rem; max-width: 20rem; } input, button { padding: .35rem .5rem; font: inherit; }
  #left, aside { grid-row: 3; }
  #missing { grid-column: 1 / 3; margin: 0; padding: .3rem .75rem .3rem 2rem; color: var(--bad); font-weight: 600; max-height: 22vh; overflow: auto; } #missing:empty { display: none; }
  #left { display: flex; flex-direction: column; min-width: 0; min-height: 0; }
  #chart { flex: 1; overflow: auto; position: relative; outline-offset: -2px; }
  .row, #heads { display: grid; grid-template-columns: 6.2rem minmax(0, 1fr) 5.2rem; }
  #heads { font-weight: 600; padding: .2rem 0; border-bottom: 1px solid var(--line); scrollbar-gutter: stable; overflow: hidden; } #heads div { display: flex; justify-content: space-between; padding: 0 .5rem; }
  .row { position: absolute; left: 0; right: 0; height: var(--h); font-size: var(--size); cursor: pointer; } .row:hover, .row.chosen { background: var(--soft); }
  .time, .took { font-variant-numeric: tabular-nums; padding: 0 .5rem; align-self: center; color: var(--line); white-space: nowrap; } .time { text-align: right; }
  .mid { position: relative; border: solid var(--line); border-width: 0 2px; }
  .mid span { position: absolute; left: .9em; right: .9em; bottom: 30%; line-height: 1.15; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
  .mid::after { content: ""; position: absolute; left: 0; right: 0; bottom: 18%; border-bottom: 1.5px solid; }
  .mid::before { content: ""; position: absolute; bottom: calc(18% - 3.5px); border: 4.5px solid transparent; }
  .w0 .mid { color: var(--to); } .w0 .mid::before { right: 0; border-left: 8px solid; border-right: 0; }
  .w1 .mid { color: var(--from); } .w1 .mid span { text-align: right; } .w1 .mid::before { left: 0; border-right: 8px solid; border-left: 0; }
  .w2 .mid::after, .w2 .mid::before { display: none; } .w2 .mid span { text-align: center; font-style: italic; }
  .bad .mid { color: var(--bad); font-weight: 600; } .found .mid span { background: #ffe28a; color: #1c2330; }
  aside { overflow: auto; padding: .5rem .75rem; border-left: 1px solid var(--line); } aside h2 { font-size: .9rem; margin: .2rem 0; }
  pre { margin: 0 0 .6rem; white-space: pre-wrap; overflow-wrap: anywhere; font: 12px/1.45 ui-monospace, monospace; }
  @media (max-width: 720px) {
    body { grid-template: auto auto 1fr 28vh / 1fr; }
    header, #missing { grid-column: 1; } aside { grid-row: 4; border-left: 0; border-top: 1px solid var(--line); }
    .row, #heads { grid-template-columns: 4.6rem minmax(0, 1fr); }
    .took, #heads :last-child:not(div span) { display: none; }
    .time { padding: 0 .3rem; font-size: .85em; }
  }
</style>
<header>
  <h1></h1>
  <input type="search" placeholder="search" aria-label="search">
  <button id="previous" aria-label="previous match">&uarr;</button><button id="next" aria-label="next match">&darr;</button>
  <output></output>
  <label><input type="checkbox"> matches only</label>
  <button id="smaller" aria-label="zoom out">&minus;</button><button id="larger" aria-label="zoom in">+</button>
</header>
<ul id="missing"></ul>
<div id="left">
  <div id="heads"><span></span><div><span>driver side</span><span>device side</span></div><span></span></div>
  <div id="chart" tabindex="0"><div id="rows"></div></div>
</div>
<aside><h2>Message</h2><pre id="message">Choose one.</pre><h2>State</h2><pre id="state"></pre></aside>
<script type="application/json" id="data">DATA</script>
<script>
"use strict";
const begun = performance.now();
const { title, rows, states, missing } = JSON.parse(document.getElementById("data").textContent);
const find = (selector) => document.querySelector(selector);
const [chart, box, search, only, count] = ["#chart", "#rows", "input[type=search]", "input[type=checkbox]", "output"].map(find);
const all = rows.map((_, i) => i);
const texts = rows.map((row) => row[2].toLowerCase());
let shown = all, matches = [], current = -1, chosen = -1, height = 26;
document.title = title;
find("h1").textContent = title;
for (const line of missing) find("#missing").append(Object.assign(document.createElement("li"), { textContent: line }));

const part = (name, text) => Object.assign(document.createElement("div"), { className: name, textContent: text });
const took = (row) => row[3] < 0 ? "" : row[3] < 10000 ? row[3] + " us" : (row[3] / 1000).toFixed(1) + " ms";
function element(position) {
  const i = shown[position], row = rows[i];
  const made = part("row w" + row[1] + (row[6] ? " bad" : "") + (i === chosen ? " chosen" : "") + (i === current ? " found" : ""), "");
  made.style.top = position * height + "px";
  const middle = part("mid", "");
  middle.append(Object.assign(document.createElement("span"), { textContent: row[2] }));
  made.append(part("time", row[0].toFixed(6)), middle, part("took", took(row)));
  made.onclick = () => choose(i);
  return made;
}
function draw() {
  const first = Math.max(0, Math.floor(chart.scrollTop / height) - 10);
  const last = Math.min(shown.length, Math.ceil((chart.scrollTop + chart.clientHeight) / height) + 10);
  box.style.height = shown.length * height + "px";
  box.replaceChildren(...Array.from({ length: Math.max(0, last - first) }, (_, n) => element(first + n)));
  const lowest = shown[Math.min(shown.length, Math.floor((chart.scrollTop + chart.clientHeight) / height)) - 1];
  const about = chosen >= 0 ? chosen : lowest;
  find("#state").textContent = about === undefined ? "" : states[rows[about][5]];
}
function choose(i) {
  chosen = i;
  const row = rows[i], lines = [row[0].toFixed(6) + " s, " + ["to the device side", "to the driver side", "no message"][row[1]], row[2]];
  if (row[3] >= 0) lines.push("answered after " + took(row));
  if (row[4] >= 0) lines.push("request: " + rows[row[4]][2]);
  if (row[6]) lines.push("this is where something is wrong");
  find("#message").textContent = lines.join("\n");
  draw();
}
function look() {
  const wanted = search.value.trim().toLowerCase();
  matches = wanted === "" ? [] : all.filter((i) => texts[i].includes(wanted));
  shown = only.checked && wanted !== "" ? matches : all;
  current = -1;
  if (matches.length > 0) step(1);
  else { count.textContent = wanted === "" ? "" : "none"; draw(); }
}
function step(by) {
  if (matches.length === 0) return;
  const at = (matches.indexOf(current) + by + matches.length) % matches.length;
  current = matches[at];
  count.textContent = at + 1 + " of " + matches.length;
  chart.scrollTop = shown.indexOf(current) * height - chart.clientHeight / 2;
  choose(current);
}
function zoom(factor) {
  const middle = (chart.scrollTop + chart.clientHeight / 2) / height;
  height = Math.max(12, Math.min(60, Math.round(height * factor)));
  document.documentElement.style.setProperty("--h", height + "px");
  document.documentElement.style.setProperty("--size", height / 2 + "px");
  box.style.height = shown.length * height + "px";
  chart.scrollTop = middle * height - chart.clientHeight / 2;
  draw();
}
search.oninput = only.onchange = look;
search.onkeydown = (event) => { if (event.key === "Enter") step(event.shiftKey ? -1 : 1); };
const buttons = { next: () => step(1), previous: () => step(-1), larger: () => zoom(1.25), smaller: () => zoom(0.8) };
for (const [id, act] of Object.entries(buttons)) find("#" + id).onclick = act;
chart.onscroll = onresize = draw;
draw();
Object.assign(document.documentElement.dataset, { rows: rows.length, ms: Math.round(performance.now() - begun) });
</script>
</html>
`;
