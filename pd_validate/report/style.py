"""The style sheet of summary.html: light, dark, paper. All colours of the report are here.

Red is kept for culprits. What only suffers is pale, what is sound is quiet.
"""

# What our pages may load: their own styles, and nothing else.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

CSS = """
:root {
  color-scheme: light dark;
  --page: #f6f6f4; --card: #ffffff; --sunken: #f1f2f1;
  --ink: #1b1f23; --muted: #5f6972; --faint: #98a1a8; --line: #e2e4e5; --grid: #ecedec;
  --pass: #2f7d5b; --pass-fill: #bfe0cf; --pass-tint: #eaf5ef;
  --fail: #c42f28; --fail-fill: #d13c33; --fail-tint: #fcefed;
  --unknown: #6d4fb0; --unknown-fill: #9a80d0; --unknown-tint: #f3effb;
  --warn: #94600a; --warn-fill: #e5b04c; --warn-tint: #fcf4e3;
  --known: #2c6b8f; --known-fill: #7fb2cf; --known-tint: #ebf4f9;
  --affected: #a9584f; --affected-fill: #efc7c1; --affected-tint: #fdf6f4;
  --none: #7d868d; --none-fill: #e3e5e6;
  --prefill: #dfe8f4; --decode: #e3eceb;
  --h0: #e3efe9; --h1: #c3dfd1; --h2: #9bcab2; --h3: #6fae90; --h4: #2f7f8e;
  --c0: #2f66a8; --c1: #2b8a80; --c2: #9a4f88; --c3: #8a6d1c; --c4: #56626d; --c5: #b0602c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #121517; --card: #1a1e21; --sunken: #15181a;
    --ink: #e6e9eb; --muted: #9ba5ad; --faint: #6f7981; --line: #2b3136; --grid: #242a2e;
    --pass: #68bb93; --pass-fill: #2c5a46; --pass-tint: #18271f;
    --fail: #f2766c; --fail-fill: #cf443b; --fail-tint: #2c1a19;
    --unknown: #b39ce8; --unknown-fill: #7157ad; --unknown-tint: #221d30;
    --warn: #dcab4c; --warn-fill: #a97a1f; --warn-tint: #29221a;
    --known: #7fb8d8; --known-fill: #336a88; --known-tint: #17252e;
    --affected: #d3958d; --affected-fill: #5c3632; --affected-tint: #241a1a;
    --none: #88929a; --none-fill: #2c3236;
    --prefill: #22344b; --decode: #213b39;
    --h0: #1c3229; --h1: #244637; --h2: #2f5f4a; --h3: #3f7d61; --h4: #58a6b8;
    --c0: #6fa4e0; --c1: #55b9ad; --c2: #cc86bb; --c3: #c4a44e; --c4: #95a2ad; --c5: #dd9460;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 Inter, system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans",
    "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "Source Han Sans SC", sans-serif;
  font-feature-settings: "tnum"; overflow-wrap: anywhere;
}
main { max-width: 1104px; margin: 0 auto; padding: 32px 32px 64px; }
a { color: inherit; text-decoration-color: var(--faint); text-underline-offset: 3px; }
code, pre, .mono {
  font-family: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono",
    "Noto Sans Mono CJK SC", monospace;
  font-size: 0.87em;
}
pre { margin: 8px 0 0; padding: 10px 12px; background: var(--sunken); border-radius: 6px;
  white-space: pre-wrap; line-height: 1.5; }
h1 { font-size: 27px; line-height: 1.25; font-weight: 640; letter-spacing: -0.017em;
  margin: 10px 0 8px; text-wrap: balance; }
h2 { font-size: 17px; font-weight: 620; letter-spacing: -0.008em; margin: 0 0 4px; }
p { margin: 0; }
.muted { color: var(--muted); }
.small { font-size: 13px; }
.name { white-space: nowrap; }

header .top { display: flex; align-items: center; gap: 12px; color: var(--muted);
  font-size: 14px; }
.verdict { font-weight: 680; font-size: 13px; letter-spacing: 0.06em; color: #fff;
  padding: 3px 11px; border-radius: 6px; }
.verdict.pass { background: var(--pass); } .verdict.fail { background: var(--fail-fill); }
.verdict.unknown { background: var(--unknown); }
header .meta { color: var(--muted); font-size: 14px; }
header .meta code { color: var(--ink); }

.tiles { display: flex; flex-wrap: wrap; gap: 6px 34px; margin: 18px 0 22px; padding: 14px 0;
  border-top: 1px solid var(--line); border-bottom: 1px solid var(--line); }
.tile b { display: block; font-size: 19px; font-weight: 620; letter-spacing: -0.01em;
  line-height: 1.3; }
.tile span { color: var(--muted); font-size: 12.5px; }
.tile .bad { color: var(--fail); }

.first { display: grid; grid-template-columns: minmax(0, 1fr) 276px; gap: 28px;
  align-items: start; }
.finding { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 15px 18px 16px; margin-bottom: 12px; border-left: 4px solid var(--tone); }
.finding:target { box-shadow: 0 0 0 2px var(--tone); }
.finding.fail { --tone: var(--fail-fill); } .finding.unknown { --tone: var(--unknown-fill); }
.finding.warn { --tone: var(--warn-fill); }
.finding.quarantined { --tone: var(--known-fill); }
.finding .id { display: flex; flex-wrap: wrap; gap: 2px 10px; align-items: baseline;
  font-size: 13px; color: var(--muted); }
.finding .id .sev { font-weight: 650; letter-spacing: 0.04em; font-size: 12px; }
.fail .sev { color: var(--fail); } .unknown .sev { color: var(--unknown); }
.warn .sev { color: var(--warn); } .quarantined .sev { color: var(--known); }
.finding .where { font-size: 18px; font-weight: 640; letter-spacing: -0.01em; }
.finding .meaning { margin: 2px 0 10px; }
.finding dl { display: grid; grid-template-columns: 76px minmax(0, 1fr); gap: 3px 12px;
  margin: 0; }
.finding dt { color: var(--muted); font-size: 13px; padding-top: 1px; }
.finding dd { margin: 0; }
.finding dd.next { font-weight: 560; }
.finding.minor { padding: 11px 18px 12px; }
.finding.minor .where { font-size: 15px; }
.finding.minor .meaning { margin-bottom: 6px; }
.about { font-size: 13.5px; padding-top: 6px; }
section article { padding: 12px 0; scroll-margin-top: 20px; border-top: 1px solid var(--grid); }
section h2 + article { border-top: 0; }
section article:target { box-shadow: -8px 0 0 var(--page), -12px 0 0 var(--c0); }
section article h3 { font-size: 15px; font-weight: 620; margin: 0; }
section article h3 a { text-decoration: none; }
section article dl { display: grid; grid-template-columns: 76px minmax(0, 1fr); gap: 3px 12px;
  margin: 6px 0 0; }
section article dt { color: var(--muted); font-size: 13px; }
section article dd { margin: 0; }
details { margin-top: 9px; }
summary { cursor: pointer; color: var(--muted); font-size: 13px; }
summary:hover { color: var(--ink); }
.consequences { margin: 6px 0 0; padding: 0; list-style: none; font-size: 13.5px; }
.consequences li { padding: 3px 0; border-top: 1px solid var(--grid); }
.consequences li:first-child { border-top: 0; }
.sound { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 15px 18px; }
.sound ul { margin: 6px 0 0; padding-left: 18px; }
.sound li { padding: 2px 0; }
.sound + .sound, .finding + .sound { margin-top: 12px; }
.sound li::marker { color: var(--faint); }

nav { margin: 26px 0 0; font-size: 13.5px; color: var(--muted); display: flex;
  flex-wrap: wrap; gap: 4px 18px; }
nav a { text-decoration: none; } nav a:hover { text-decoration: underline; color: var(--ink); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 20px 24px 22px; margin-top: 18px; }
section > p.lead { color: var(--muted); font-size: 14px; margin-bottom: 14px; max-width: 78ch; }
.picture { max-width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 40px; }
.beside { display: grid; grid-template-columns: auto minmax(220px, 1fr); gap: 36px;
  align-items: start; }
.chart { margin-top: 22px; }
.legend { font-size: 12.5px; color: var(--muted); margin-top: 10px; }
.legend svg { vertical-align: -1px; }

table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; font-weight: 560; color: var(--muted); font-size: 12.5px; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
td.n, th.n { text-align: right; white-space: nowrap; }
td.differs { background: var(--warn-tint); color: var(--warn); font-weight: 600;
  box-shadow: -8px 0 0 var(--warn-tint); }
.outcome { font-size: 12.5px; font-weight: 620; white-space: nowrap; }
.outcome.passed { color: var(--pass); } .outcome.failed { color: var(--fail); }
.outcome.broken { color: var(--unknown); } .outcome.blocked { color: var(--affected); }
.outcome.quarantined { color: var(--known); }
.outcome.skipped { color: var(--none); }
.meter { display: block; height: 7px; border-radius: 2px; background: var(--h2);
  min-width: 2px; }
.meter.bad { background: var(--fail-fill); }
td.meter-cell { width: 22%; padding-top: 12px; }
td .reason { color: var(--muted); font-size: 13px; display: block; }
footer { margin-top: 26px; color: var(--muted); font-size: 13px; }

/* Drawings. A group's class s-… sets the tone, its shapes use it. */
svg { font-family: inherit; }
svg text { fill: var(--ink); font-size: 11.5px; }
svg .label { fill: var(--muted); font-size: 11.5px; }
svg .axis { fill: var(--muted); font-size: 11px; } svg .axis.small { font-size: 9px; }
svg .chart-title { font-size: 13px; font-weight: 600; }
svg .host-name { font-size: 15px; font-weight: 640; }
svg .host-name.small { font-size: 12.5px; }
svg .check-name { font-size: 12px; }
svg a { text-decoration: none; cursor: pointer; }
svg a:hover { opacity: 0.8; }
svg .grid { stroke: var(--grid); } svg .rule { stroke: var(--line); }
.s-pass { --tone: var(--pass); --fill: var(--pass-fill); --tint: var(--pass-tint); }
.s-fail { --tone: var(--fail); --fill: var(--fail-fill); --tint: var(--fail-tint); }
.s-unknown { --tone: var(--unknown); --fill: var(--unknown-fill); --tint: var(--unknown-tint); }
.s-warn { --tone: var(--warn); --fill: var(--warn-fill); --tint: var(--warn-tint); }
.s-affected { --tone: var(--affected); --fill: var(--affected-fill);
  --tint: var(--affected-tint); }
.s-quarantined { --tone: var(--known); --fill: var(--known-fill); --tint: var(--known-tint); }
.s-none { --tone: var(--none); --fill: var(--none-fill); --tint: transparent; }
svg .fill { fill: var(--fill); }
svg .mark { fill: #fff; font-size: 11px; font-weight: 700; }
svg .ink text { fill: var(--tone); } svg .s-fail.ink text { font-weight: 700; }
svg .s-pass.ink text, svg .s-none.ink text { fill: var(--muted); }

svg .step { fill: var(--card); stroke: var(--line); }
svg .step-name { font-size: 13px; } svg .step-note { font-size: 12px; fill: var(--tone); }
svg .s-none .step-name { fill: var(--faint); } svg .s-none .step-note { fill: var(--faint); }
svg .s-fail .step, svg .s-unknown .step, svg .s-affected .step { fill: var(--tint); }
svg .culprit .step { stroke: var(--fail-fill); stroke-width: 1.5; }
svg .culprit .step-name, svg .culprit .step-note { font-weight: 680; }

svg .card { fill: var(--card); stroke: var(--line); stroke-width: 1.2; }
svg .card.s-fail { stroke: var(--fail-fill); } svg .card.s-unknown { stroke: var(--unknown); }
svg .instance { stroke: var(--tone); stroke-width: 1.2; }
svg .instance.prefill { fill: var(--prefill); } svg .instance.decode { fill: var(--decode); }
svg .instance.s-fail { fill: var(--fail-tint); stroke-width: 2; }
svg .instance.s-none, svg .instance.s-pass { stroke: none; }
svg .instance.s-affected { stroke-dasharray: 4 3; }
svg .instance-name { font-size: 12px; font-weight: 600; }
svg .proxy { fill: var(--sunken); stroke: var(--tone); } svg .proxy.s-none { stroke: var(--line); }
svg .cell { fill: var(--fill); opacity: 0.45; } svg .cell.used { opacity: 1; }
svg .s-fail .cell, svg .s-unknown .cell, svg .s-warn .cell { opacity: 1; }
svg .cell-text { font-size: 11.5px; } svg .s-fail .cell-text { fill: #fff; font-weight: 700; }
svg .cell-text.narrow { font-size: 8.5px; }
svg .port { stroke: var(--fill); stroke-width: 2.5; }
svg .s-fail .port { stroke: var(--fail-fill); stroke-dasharray: 3 3; }
svg .cross { stroke: var(--fail-fill); stroke-width: 2.6; stroke-linecap: round; fill: none; }
svg .network { fill: var(--sunken); stroke: var(--line); }
svg .kv-link { fill: none; stroke: var(--fill); stroke-width: 2.2; }
svg .s-pass .kv-link { stroke: var(--pass); opacity: 0.65; }
svg .s-pass .kv-head { fill: var(--pass); }
svg .kv-head { fill: var(--fill); }
svg .s-fail .kv-link { stroke-width: 3; }
svg .s-none .kv-link, svg .s-affected .kv-link { stroke-dasharray: 4 4; }
svg .halo { fill: var(--tone); font-size: 12px; font-weight: 600; stroke: var(--card);
  stroke-width: 4px; paint-order: stroke; }

svg .heat.h0 { fill: var(--h0); } svg .heat.h1 { fill: var(--h1); }
svg .heat.h2 { fill: var(--h2); } svg .heat.h3 { fill: var(--h3); }
svg .heat.h4 { fill: var(--h4); } svg .heat.loss { fill: var(--warn-fill); }
svg .heat.lost { fill: var(--fail-fill); }
.legend .heat.h0 { fill: var(--h0); } .legend .heat.h1 { fill: var(--h1); }

svg .bar { fill: var(--prefill); } svg .bar.s-fail { fill: var(--fail-fill); }
svg .bar.s-unknown { fill: var(--unknown-fill); }
svg .bar.open { stroke: var(--c0); stroke-dasharray: 4 3; fill: var(--sunken); }
svg .bar-text { font-size: 11.5px; } svg .bar.s-fail + .bar-text { fill: #fff; }
svg .column { fill: var(--h2); } svg .percentile { stroke: var(--muted); stroke-dasharray: 2 3; }
svg .series { fill: none; stroke: var(--tone); stroke-width: 1.8; stroke-linejoin: round; }
svg .dot { fill: var(--tone); opacity: 0.75; } svg .label.ink { fill: var(--tone); }
svg .label.leak { fill: var(--fail); font-weight: 700; }
.c0 { --tone: var(--c0); } .c1 { --tone: var(--c1); } .c2 { --tone: var(--c2); }
.c3 { --tone: var(--c3); } .c4 { --tone: var(--c4); } .c5 { --tone: var(--c5); }

@media screen and (max-width: 820px) {
  main { padding: 20px 16px 40px; }
  .first, .pair, .beside { grid-template-columns: minmax(0, 1fr); gap: 20px; }
  section { padding: 16px; }
  .wide { min-width: 760px; }
}
@media print {
  :root { color-scheme: light; }
  body { background: #fff; font-size: 11pt; }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  .first { grid-template-columns: minmax(0, 1fr) 190px; gap: 16px; }
  .beside { gap: 20px; }
  .scroll { overflow: visible; }
  section, .finding { break-inside: avoid; }
  details::details-content { content-visibility: visible; block-size: auto; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
"""
