"""The style sheet. Colours: blue federated, vermilion alone, green pooled (Okabe and Ito's, which the colour-blind tell
apart); lines differ in their dashes as well, and every line is named."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fff; --ink: #1c2127; --muted: #5a636d; --hair: #dfe3e8; --wash: #f4f6f8;
  --blue: #0a64a4; --red: #b34700; --green: #0f7a5c; --purple: #8a4a86;
  --band: #d55e001a; --good: #0f6b4f; --bad: #b3261e; --warn: #8a5a00;
  --startup: #98a2ad; --send: #56b4e9; --wait: #0072b2; --fold: #009e73; --evaluate: #e69f00; --save: #cc79a7;
  --rest: #ccd2d8; --shade: #1c212733;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #14181c; --ink: #e4e8ec; --muted: #a1abb5; --hair: #2f363d; --wash: #1b2025;
    --blue: #6ab4ee; --red: #f2955c; --green: #52c7a1; --purple: #d79ed3;
    --band: #f2955c24; --good: #63cfa6; --bad: #ff8f85; --warn: #e8b54a;
    --shade: #000c; --startup: #7d8791; --wait: #3b93d0; --rest: #4a535c;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 40px 32px 48px; max-width: 1120px; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "Liberation Sans",
    Arial, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: break-word;
}
h1, h2, h3, p, dl, ul, figure { margin: 0; padding: 0; }
h1 { font-size: 28px; line-height: 1.25; font-weight: 650; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 20px; line-height: 1.3; font-weight: 650; margin-bottom: 14px; }
h3 { font-size: 15px; line-height: 1.4; font-weight: 600; }
b { font-weight: 650; }
section { margin-top: 44px; padding-top: 22px; border-top: 1px solid var(--hair); }
.above {
  display: flex; flex-wrap: wrap; gap: 4px 16px; align-items: baseline; color: var(--muted); font-size: 14px;
  margin-bottom: 10px; overflow-wrap: anywhere;
}
.status { font-weight: 650; }
.status::before {
  content: ""; display: inline-block; width: 9px; height: 9px; border-radius: 50%; background: currentColor;
  margin-right: 7px;
}
.completed { color: var(--good); }
.failed { color: var(--bad); }
.failed::before { border-radius: 0; transform: rotate(45deg); }
.stopped { color: var(--warn); }
.stopped::before { border-radius: 0; }
.verdict { font-size: 20px; line-height: 1.5; margin-top: 12px; max-width: 46em; text-wrap: pretty; }
.verdict b { white-space: nowrap; }
.error {
  margin-top: 16px; padding: 10px 14px; border-left: 4px solid var(--bad); background: var(--wash); overflow-wrap:
  anywhere;
}
.tiles {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 22px 24px; margin-top: 32px;
}
.tiles > div { border-top: 2px solid var(--hair); padding-top: 8px; }
.tiles dt { color: var(--muted); font-size: 14px; line-height: 1.35; }
.tiles dd { margin: 0; font-size: 22px; line-height: 1.35; font-weight: 600; }
.tiles dd.note { font-size: 13px; line-height: 1.35; font-weight: 400; color: var(--muted); }
.note, .remark { color: var(--muted); font-size: 14px; font-weight: 400; }
h3 .remark { margin-left: 10px; white-space: nowrap; }
p.note { margin-top: 10px; max-width: 46em; }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 32px 48px; align-items: start; }
.charts + figure, section > p + figure, section > p + .charts { margin-top: 24px; }
.prose { max-width: 46em; }
.prose p + p { margin-top: 12px; }
.charts + .charts { margin-top: 32px; }
.prose h3 { margin-bottom: 6px; }
.prose ul { padding-left: 1.2em; }
.prose li + li { margin-top: 4px; }
.points { list-style: none; align-self: center; }
.points li { padding: 10px 0; overflow-wrap: anywhere; }
.points li + li { border-top: 1px solid var(--hair); }
figure { min-width: 0; }
figcaption { margin-bottom: 6px; }
figure > svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-size: 12px; fill: var(--muted); }
.tick.y { text-anchor: end; }
.tick.x { text-anchor: middle; }
.label { font-weight: 600; }
.label.last { font-weight: 700; }
.grid { stroke: var(--hair); stroke-width: 1; }
.floor { stroke: var(--muted); stroke-width: 1; }
.band { fill: var(--band); stroke: var(--red); stroke-opacity: 0.25; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.line.federated { stroke: var(--blue); }
.line.before { stroke: var(--blue); stroke-width: 1.4; stroke-dasharray: 1 3; }
.line.epsilon { stroke: var(--purple); }
.mark.federated circle { fill: var(--blue); }
.mark.before circle { fill: var(--paper); stroke: var(--blue); stroke-width: 1.4; }
.mark.epsilon circle { fill: var(--purple); }
.level { stroke-width: 2; fill: none; }
.level.pooled { stroke: var(--green); stroke-dasharray: 7 4; }
.level.alone { stroke: var(--red); stroke-dasharray: 2 3; }
text.federated, text.before { fill: var(--blue); }
text.alone { fill: var(--red); }
text.pooled { fill: var(--green); }
text.epsilon { fill: var(--purple); }
.dots.federated { fill: var(--blue); }
.dots.alone { fill: var(--paper); stroke: var(--red); stroke-width: 1.4; }
.crowd { fill: none; stroke-linecap: round; }
.crowd.federated { stroke: var(--blue); }
.crowd.alone { stroke: var(--red); }
.mean { stroke-width: 2; }
.mean.federated { stroke: var(--blue); }
.mean.alone { stroke: var(--red); }
.key {
  list-style: none; display: grid; gap: 3px 20px; margin-top: 10px; font-size: 14px; line-height: 1.4; color:
  var(--muted);
}
.key li { display: grid; grid-template-columns: 24px 1fr auto; gap: 8px; align-items: baseline; }
.key svg { width: 24px; height: 12px; }
.key b { color: var(--ink); white-space: nowrap; }
.phases { grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); }
.phases li { grid-template-columns: 12px 1fr auto 4em; }
.phases svg { width: 12px; }
.phases .remark { text-align: right; }
.stack { display: block; width: 100%; height: 22px; margin-top: 14px; }
.phase.startup { fill: var(--startup); } .phase.send { fill: var(--send); } .phase.wait { fill: var(--wait); }
.phase.fold { fill: var(--fold); } .phase.evaluate { fill: var(--evaluate); } .phase.checkpoint { fill: var(--save); }
.phase.rest { fill: var(--rest); }
.scroll {
  overflow-x: auto; background: linear-gradient(to right, var(--paper) 40%, transparent) 0 0,
    linear-gradient(to left, var(--paper) 40%, transparent) 100% 0,
    linear-gradient(to right, var(--shade), transparent) 0 0,
    linear-gradient(to left, var(--shade), transparent) 100% 0;
  background-repeat: no-repeat; background-size: 40px 100%, 40px 100%, 14px 100%, 14px 100%;
  background-attachment: local, local, scroll, scroll;
}
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--blue); outline-offset: 3px; }
table { border-collapse: collapse; min-width: min(100%, 640px); font-size: 14px; line-height: 1.4; }
th, td { padding: 6px 0 6px 20px; text-align: left; vertical-align: middle; font-weight: 400; }
th:first-child { padding-left: 0; }
thead th {
  color: var(--muted); font-size: 13px; line-height: 1.3; vertical-align: bottom; border-bottom: 1px solid
  var(--muted);
}
tbody th, tbody td { border-bottom: 1px solid var(--hair); }
tbody th { min-width: 9em; max-width: 22em; overflow-wrap: anywhere; }
.n { text-align: right; }
td.n { white-space: nowrap; }
.forest { display: block; width: 200px; height: 20px; }
.inbar { display: block; width: 120px; height: 14px; }
.zero { stroke: var(--muted); stroke-width: 1; }
.interval { stroke: var(--blue); stroke-width: 2; fill: none; }
.estimate { fill: var(--blue); }
.bar.up { fill: var(--blue); }
.bar.down { fill: var(--startup); }
summary { cursor: pointer; }
summary h2 { display: inline; }
.settings { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 5fr); gap: 28px 48px; margin-top: 20px; }
.settings > div:first-child { grid-column: 1 / -1; }
.pairs { margin-top: 6px; font-size: 14px; }
.settings > div:first-child .pairs { columns: 2; column-gap: 40px; }
.pairs > div {
  display: grid; grid-template-columns: 10em 1fr; gap: 12px; padding: 3px 0; border-bottom: 1px solid var(--hair);
  break-inside: avoid;
}
.pairs dt { color: var(--muted); }
.pairs dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
footer { margin-top: 48px; color: var(--muted); font-size: 13px; }
@media screen and (max-width: 1000px) { svg text { font-size: 14px; } }
@media screen and (max-width: 760px) {
  body { padding: 24px 16px 32px; }
  h1 { font-size: 23px; }
  .verdict { font-size: 18px; }
  .charts, .settings { grid-template-columns: minmax(0, 1fr); }
  .tiles { grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 18px; }
  tbody th { min-width: 8em; }
  .forest { width: 130px; height: 13px; }
}
@media screen and (max-width: 520px) { .settings > div:first-child .pairs { columns: 1; } }
@media print {
  @page { margin: 14mm; }
  body { padding: 0; max-width: none; font-size: 11pt; }
  .scroll { overflow: visible; background: none; }
  table { font-size: 8pt; }
  th, td { padding-left: 10px; }
  td.n { white-space: normal; }
  thead { display: table-header-group; }
  tr, figure, .tiles > div, .key { break-inside: avoid; }
  figure.table { break-inside: auto; }
  figcaption, section > p:has(+ figure) { break-after: avoid; }
  .settings { display: block; }
  footer { margin-top: 16px; }
  .settings > div { margin-top: 14px; }
  .pairs { font-size: 9pt; }
  .charts { gap: 20px 28px; }
  .verdict { font-size: 14pt; }
  .key, .points, .note, .remark { font-size: 9.5pt; }
  .forest { width: 140px; height: 14px; }
  tbody th { min-width: 7em; }
  th, td { padding-top: 3px; padding-bottom: 3px; }
  h2, h3 { break-after: avoid; }
  section { margin-top: 24px; padding-top: 14px; }
  details::details-content { content-visibility: visible; height: auto; }
  summary { list-style: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
