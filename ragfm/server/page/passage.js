// A passage of a document with marked words.

import { h, unitsOf } from './dom.js';

/** Nodes of `text`, without the `#` of headings. `spans` are {start, end, class}, in code points. */
export function passage(text, spans) {
  const units = unitsOf(text);
  const marks = withoutOverlaps(
    spans.map((span) => ({ ...span, start: units(span.start), end: units(span.end) })).filter((s) => s.start < s.end),
  );
  const nodes = [];
  let at = 0;
  for (const line of text.split(/(?<=\n)/)) {
    const prefix = /^#{1,6}[ \t]+/.exec(line)?.[0].length ?? 0;
    const pieces = markedNodes(text, at + prefix, at + line.length, marks);
    nodes.push(prefix ? h('b', {}, pieces) : pieces);
    at += line.length;
  }
  return nodes.flat();
}

/** Marks in order. Where two overlap, the earlier one has the words. */
function withoutOverlaps(marks) {
  let end = 0;
  const free = [];
  for (const mark of marks.sort((a, b) => a.start - b.start || b.end - a.end)) {
    if (mark.end > end) free.push({ ...mark, start: Math.max(mark.start, end) });
    end = Math.max(end, mark.end);
  }
  return free;
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
