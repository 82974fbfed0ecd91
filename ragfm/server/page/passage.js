// A passage of a document with marked words.

import { h, unitsOf } from './dom.js';

const RULE = /^[|:\-\s]+$/; // the line below the header of a table
const isRow = (line) => /^\s*\|/.test(line);

/**
 * Nodes of `text`, without the `#` of headings. `spans` are {start, end, class}, in code points; where two overlap, the
 * earlier one has the words. That of a table row may have the `column` of the only cell that is marked. A table that
 * continues from a passage before has its header in `context`.
 */
export function passage(text, spans, context = '') {
  const units = unitsOf(text);
  const marks = spans
    .map((span) => ({ ...span, start: units(span.start), end: units(span.end) }))
    .sort((a, b) => a.start - b.start || b.end - a.end);
  const nodes = [];
  let at = 0;
  let rows = null; // of the table that the line before is in
  const lines = text.split(/(?<=\n)/);
  lines.forEach((line, i) => {
    if (isRow(line)) {
      const below = lines[i + 1] ?? '';
      const tag = !rows && isRow(below) && RULE.test(below) ? 'th' : 'td';
      if (!rows) {
        const above = i ? [] : context.split('\n').filter((one) => isRow(one) && !RULE.test(one));
        rows = h('tbody', {}, above.slice(-1).map((one) => tableRow(one, 0, one.length, [], 'th')));
        nodes.push(h('div', { class: 'wide', tabindex: 0, role: 'group', 'aria-label': 'Table' }, h('table', {}, rows)));
      }
      const isRule = RULE.test(line) && rows.children.length === 1;
      if (!isRule) rows.append(tableRow(text, at, at + line.trimEnd().length, marks, tag));
    } else {
      const prefix = /^#{1,6}[ \t]+/.exec(line)?.[0].length ?? 0;
      const pieces = markedNodes(text, at + prefix, at + line.length, marks);
      if (!rows || line.trim()) nodes.push(prefix ? h('b', {}, pieces) : pieces);
      rows = null;
    }
    at += line.length;
  });
  return nodes.flat();
}

/** A table row whose cells stand between the bars of `text`. */
function tableRow(text, start, end, marks, tag) {
  const bars = [...text.slice(start, end).matchAll(/(?<!\\)\|/g)].map((bar) => start + bar.index);
  if (bars.at(-1) !== end - 1) bars.push(end);
  const cells = bars.slice(1).map((bar, i) => {
    const cell = text.slice(bars[i] + 1, bar);
    const first = bars[i] + 1 + cell.length - cell.trimStart().length;
    const own = marks.filter(({ column }) => (column ?? i) === i);
    return h(tag, {}, markedNodes(text, first, first + cell.trim().length, own));
  });
  return h('tr', {}, cells);
}

function markedNodes(text, start, end, marks) {
  const nodes = [];
  let at = start;
  for (const mark of marks) {
    if (mark.end <= at || mark.start >= end) continue;
    if (mark.start > at) nodes.push(text.slice(at, mark.start));
    nodes.push(h('mark', { class: mark.class }, text.slice(Math.max(at, mark.start), Math.min(end, mark.end))));
    at = Math.min(end, mark.end);
  }
  if (at < end) nodes.push(text.slice(at, end));
  return nodes;
}
