"""What the pages look like, and the one script in them: readable in light and dark, on a phone, and by keyboard."""

# Colours: text at least 4.5 : 1 against its background, lines of plots at least 3 : 1, in both schemes.
COLOURS = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --text: #1f2328; --soft: #57606a; --line: #d0d7de; --raised: #f5f6f7; --focus: #0757ad;
  --warn: #fff4d6; --warn-text: #5c3c00;
  --s0: #0072b2; --s1: #c44e00; --s2: #00805c; --s3: #a8437f;
  --s4: #6b4fa0; --s5: #806000; --s6: #4d4d4d; --s7: #b22222;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171c; --text: #e6e8ea; --soft: #a5aeb8; --line: #3a414a; --raised: #1f242b; --focus: #80bfff;
    --warn: #3a2f12; --warn-text: #ffe0a0;
    --s0: #56b4e9; --s1: #ff9c4a; --s2: #3ddba6; --s3: #ee9fd0;
    --s4: #b9a2ff; --s5: #e6c84b; --s6: #c4c9cf; --s7: #ff8585;
  }
}
"""
LAYOUT = """
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); overflow-wrap: anywhere;
  max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
h1 { margin: 0; line-height: 1.2 }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line) }
h3 { margin-bottom: .3rem }
.lead { margin-top: .3rem }
.lead, .soft, figcaption, summary { color: var(--soft) }
.warning { background: var(--warn); color: var(--warn-text); padding: .5rem .8rem; border-radius: 6px;
  white-space: pre-line; margin: .6rem 0 }
.wide { overflow-x: auto; max-width: 100% }
:focus-visible { outline: 2px solid var(--focus); outline-offset: 2px }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
thead th { vertical-align: bottom }
td, th { padding: .3rem .9rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 600 }
.wide td, .wide th { overflow-wrap: normal }
td.number, th.number { text-align: right }
td.number { white-space: nowrap }
table.record { width: 100% }
table.record th { width: 35%; font-weight: 400 }
table.record tr.group th { color: var(--text); font-weight: 600; padding-top: .9rem }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  text-align: inherit }
th button::after { content: "\\a0\\2195" }
th[aria-sort=ascending] button, th[aria-sort=descending] button { color: var(--text) }
th[aria-sort=ascending] button::after { content: "\\a0\\2191" }
th[aria-sort=descending] button::after { content: "\\a0\\2193" }
pre { background: var(--raised); padding: 1rem; overflow: auto; font-size: 13px; border-radius: 6px; max-height: 40rem }
summary { cursor: pointer; margin: .4rem 0 }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px }
.panels { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)) }
figure { margin: 0; min-width: 0 }
figcaption { font-size: 14px }
figure svg { width: 100%; height: auto; display: block }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif }
svg .axis { stroke: var(--line); stroke-width: 1 }
svg .series { fill: none; stroke-width: 1.6 }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .2rem 0 0; padding: 0; list-style: none;
  font-size: 13px }
.legend svg.key { display: inline-block; width: 26px; height: 10px; margin-right: .3rem }
@media (max-width: 30rem) { table.record { font-size: 14px } td, th { padding-right: .6rem } }
.strip td { padding: 2px; border: 0 }
.strip thead th { font-size: 13px; font-weight: 400; padding: 2px; white-space: nowrap }
.strip tbody th { min-width: 7rem; max-width: 11rem; overflow-wrap: anywhere; font-size: 13px; font-weight: 400;
  border: 0 }
.strip img { max-width: none; display: block }
"""
SERIES = "".join(f".c{i} {{ stroke: var(--s{i}) }}\n.f{i} {{ fill: var(--s{i}) }}\n" for i in range(8))
STYLE = COLOURS + LAYOUT + SERIES

# A click on a header sorts by its column: ascending, then descending. Numbers as numbers (data-value), texts as a
# reader expects (a2 before a10); empty cells last either way. Equal rows keep their order.
SORTING = """
for (const table of document.querySelectorAll('table.sortable')) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => header.querySelector('button').addEventListener('click', () => {
    const descending = header.getAttribute('aria-sort') === 'ascending';
    const value = row => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
    const rows = [...table.tBodies[0].rows], filled = rows.filter(row => value(row) !== '');
    const numeric = filled.every(row => Number.isFinite(Number(value(row))));
    const compare = numeric ? (a, b) => Number(value(a)) - Number(value(b))
      : (a, b) => value(a).localeCompare(value(b), undefined, {numeric: true});
    filled.sort((a, b) => descending ? compare(b, a) : compare(a, b));
    table.tBodies[0].append(...filled, ...rows.filter(row => value(row) === ''));
    headers.forEach(other => other.setAttribute('aria-sort', 'none'));
    header.setAttribute('aria-sort', descending ? 'descending' : 'ascending');
  }));
}
"""
