"""The style sheet of the report page: light, dark, narrow and printed."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfb; --panel: #f5f5f1; --ink: #1d1f22; --muted: #62666d; --rule: #dfdfd9;
  --model: #17599c; --faint: #9fc0e2; --base: #c3c5c8; --primed: #8c9097; --rate: #b35c00;
  --line-1: #b35c00; --line-2: #1f7a5a; --line-3: #8a3d9c; --line-4: #b3303a; --line-5: #6a6a00;
  --line-6: #00758a;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #15171a; --panel: #1d2024; --ink: #e7e5e0; --muted: #a0a4aa; --rule: #33373d;
    --model: #78b4f2; --faint: #365f8b; --base: #4a4e55; --primed: #777c85; --rate: #e59a4b;
    --line-1: #e59a4b; --line-2: #5cc49c; --line-3: #cf8be0; --line-4: #f08087; --line-5: #c4c24a;
    --line-6: #4fc3d9;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 2.2rem 1.25rem 4rem; max-width: 58rem;
  background: var(--paper); color: var(--ink);
  font: 0.95rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  font-variant-numeric: tabular-nums;
}
header { border-bottom: 2px solid var(--ink); padding-bottom: 1.1rem; }
.eyebrow { margin: 0; color: var(--muted); font-size: 0.85rem; }
h1 { font-size: 1.42rem; font-weight: 400; line-height: 1.4; margin: 0.5rem 0 0;
  text-wrap: balance; }
h1 data { font-weight: 650; }
data, .whole { white-space: nowrap; }
h1 .score data { color: var(--model); }
h2 { font-size: 1.08rem; margin: 2.6rem 0 0.6rem; padding-top: 0.55rem;
  border-top: 1px solid var(--rule); break-after: avoid; }
p { margin: 0.5rem 0; max-width: 46rem; text-wrap: pretty; }
.note, figcaption { color: var(--muted); font-size: 0.84rem; line-height: 1.5; max-width: 50rem; }
a { color: var(--model); text-decoration: none; }
a:hover { text-decoration: underline; }
code { font: 0.84em ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.6rem, 1fr));
  gap: 1px; margin: 1.3rem 1px 0; }
.cards div { box-shadow: 0 0 0 1px var(--rule); padding: 0.55rem 0.7rem; }
.cards dt { color: var(--muted); font-size: 0.8rem; }
.cards dd { margin: 0; font-size: 1.3rem; font-weight: 600; line-height: 1.3; }
.cards small { display: block; font-size: 0.78rem; font-weight: 400; color: var(--muted); }
.facts { margin: 0.4rem 0; }
.facts div { display: grid; grid-template-columns: 11rem 1fr; gap: 0.2rem 1rem;
  padding: 0.2rem 0; border-bottom: 1px solid var(--rule); break-inside: avoid; }
.facts dt { color: var(--muted); }
.facts dd { margin: 0; }
.settings { columns: 3 15rem; column-gap: 2rem; margin: 0.4rem 0; font-size: 0.8rem; }
.settings div { display: flex; justify-content: space-between; gap: 0.8rem;
  border-bottom: 1px solid var(--rule); break-inside: avoid; padding: 0.05rem 0; }
.settings dt { color: var(--muted); }
.settings dd { margin: 0; text-align: right; overflow-wrap: break-word; min-width: 30%; }
.scroll { overflow-x: auto; margin: 0.6rem 0; background:
  linear-gradient(to left, var(--paper) 40%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--rule), transparent) right / 1rem 100% no-repeat scroll; }
table { border-collapse: collapse; width: 100%; font-size: 0.88rem; }
th, td { padding: 0.24rem 0 0.24rem 1.1rem; text-align: right; font-weight: 400;
  vertical-align: baseline; white-space: nowrap; }
th:first-child { padding-left: 0; text-align: left; }
thead th { color: var(--muted); font-size: 0.8rem; vertical-align: bottom; white-space: normal;
  border-bottom: 1px solid var(--ink); line-height: 1.3; }
th small { display: block; color: var(--muted); white-space: normal; }
.token { background: var(--panel); padding: 0 0.25em; white-space: pre; }
.raw { overflow-wrap: anywhere; display: inline-block; min-width: 9rem; }
table:has(.meter) thead th:last-child { text-align: left; }
tbody tr { border-bottom: 1px solid var(--rule); break-inside: avoid; }
tbody tr:last-child { border-bottom: 0; }
tfoot th, tfoot td { border-top: 1px solid var(--ink); font-weight: 600; }
tr:has(.key) > * { font-weight: 700; }
.meter { display: inline-block; width: 100%; min-width: 5rem; height: 0.55rem;
  background: var(--panel); vertical-align: baseline; }
.meter i { display: block; height: 100%; min-width: 1px; background: var(--faint); }
td:has(.meter) { width: 34%; }
.limit { margin: 0.8rem 0; max-width: none; }
.limit .meter { height: 0.9rem; border: 1px solid var(--rule); }
.limit .meter i { background: var(--model); }
figure { margin: 0.8rem 0; break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
.narrow { display: none; }
.sample { margin: 0.7rem 0; padding: 0.7rem 0.9rem; background: var(--panel); max-width: none;
  white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate;
  border-left: 3px solid var(--faint); break-inside: avoid; }
.sample mark { background: none; color: var(--model); font-weight: 600; }
footer { margin-top: 2.6rem; border-top: 1px solid var(--rule); padding-top: 0.6rem; }
@media (max-width: 40rem) {
  body { padding: 1.3rem 1rem 3rem; }
  h1 { font-size: 1.22rem; }
  .whole { white-space: normal; }
  .wide { display: none; }
  .narrow { display: block; }
  .cards { grid-template-columns: 1fr 1fr; }
  .facts div { grid-template-columns: 1fr; gap: 0; }
  table { font-size: 0.8rem; }
  th, td { padding-left: 0.6rem; }
  thead th { font-size: 0.74rem; }
  tbody th { white-space: normal; }
}
@media print {
  :root {
    color-scheme: light;
    --paper: #fff; --panel: #f3f3f3; --ink: #000; --muted: #444; --rule: #ccc;
  }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  html { font-size: 9.5pt; }
  body { max-width: none; padding: 0; }
  .scroll { break-inside: avoid; }
  .wide { display: block; }
  .narrow { display: none; }
}
"""

# Texts whose tokens are coloured by cost. The letters keep a contrast of 4.5 on every colour.
TOKENS_CSS = """
:root {
  --c1: #fff3e0; --c2: #ffe6c2; --c3: #ffd8a1; --c4: #ffc97f; --c5: #ffb85c; --c6: #fba53c;
  --c7: #f09023; --c8: #e57a14;
  --m1: #e6f0fb; --m2: #cbe0f6; --m3: #a9ccf0; --m4: #83b5e8; --m5: #5f9de0;
  --p1: #fff0dc; --p2: #ffdfb8; --p3: #ffcb8c; --p4: #fdb25a; --p5: #f0952b;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --c1: #2b211a; --c2: #3a2918; --c3: #493015; --c4: #583712; --c5: #663d0f; --c6: #74420a;
    --c7: #824705; --c8: #8f4b00;
    --m1: #18232f; --m2: #1b2f45; --m3: #1e3b5b; --m4: #224871; --m5: #265688;
    --p1: #2b211a; --p2: #412c17; --p3: #583712; --p4: #714108; --p5: #8f4b00;
  }
}
.c1 { background: var(--c1); } .c2 { background: var(--c2); } .c3 { background: var(--c3); }
.c4 { background: var(--c4); } .c5 { background: var(--c5); } .c6 { background: var(--c6); }
.c7 { background: var(--c7); } .c8 { background: var(--c8); }
.m1 { background: var(--m1); } .m2 { background: var(--m2); } .m3 { background: var(--m3); }
.m4 { background: var(--m4); } .m5 { background: var(--m5); }
.p1 { background: var(--p1); } .p2 { background: var(--p2); } .p3 { background: var(--p3); }
.p4 { background: var(--p4); } .p5 { background: var(--p5); }
.costs { margin: 0.5rem 0 1.2rem; padding: 0.7rem 0.9rem; background: var(--panel);
  font: 0.86rem/1.95 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext;
  border-left: 3px solid var(--faint); }
.costs label { position: relative; padding: 0.2em 0; border-radius: 2px; cursor: pointer;
  box-shadow: inset -1px 0 var(--panel); }
.costs .nl::before { content: "\\21b5"; color: var(--muted); }
.costs input { position: absolute; width: 1px; height: 1px; margin: 0; opacity: 0;
  pointer-events: none; }
.costs label:hover { box-shadow: inset 0 0 0 1px var(--muted); }
.costs label:has(:focus-visible) { outline: 2px solid var(--model); outline-offset: 1px; }
.tip { display: none; position: fixed; right: 1rem; bottom: 1rem; z-index: 2; width: 19rem;
  max-width: calc(100vw - 2rem); padding: 0.55rem 0.75rem; pointer-events: none;
  background: var(--paper); color: var(--ink); border: 1px solid var(--muted); border-radius: 4px;
  box-shadow: 0 3px 14px rgb(0 0 0 / 0.22); direction: ltr; unicode-bidi: isolate;
  font: 0.8rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  white-space: normal; }
.costs label:hover .tip,
body:not(:has(.costs label:hover)) .costs label:has(:focus) .tip { display: block; }
.tip span { display: block; }
.tip span + span { margin-top: 0.4rem; padding-top: 0.3rem; border-top: 1px solid var(--rule); }
.tip i { display: grid; grid-template-columns: 1fr auto 3.2rem; gap: 0.6rem; font-style: normal;
  font-variant-numeric: tabular-nums; }
.tip .own { color: var(--model); font-weight: 650; }
.tip em { font-style: normal; text-align: right; color: var(--muted); }
.tip bdi { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
@supports (position-area: bottom) {
  @media (min-width: 40.01rem) {
    .costs label:hover, .costs:not(:has(label:hover)) label:has(:focus) { anchor-name: --cell; }
    .tip { position-anchor: --cell; inset: auto; margin: 0.3rem 0;
      position-area: bottom span-right;
      position-try-fallbacks: flip-inline, flip-block, flip-block flip-inline; }
  }
}
.scale { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0.15rem; max-width: none;
  color: var(--muted); font-size: 0.84rem; }
.scale span { min-width: 2.1rem; padding: 0.05rem 0.3rem; text-align: center; color: var(--ink);
  box-shadow: inset 0 0 0 1px var(--rule); }
.scale i { margin: 0 0.3rem; font-style: normal; }
.scale i:first-child { margin-left: 0; }
@media (max-width: 40rem) {
  .tip { left: 0.5rem; right: 0.5rem; bottom: 0.5rem; width: auto; max-width: none; }
}
@media print { .tip { display: none !important; } }
"""
