// A passage as it stands in its document, with words marked.

import { h, unitsOf } from './dom.js';

/** Nodes of `text`, without the signs of headings; `spans` are {start, end, class}, in characters of the server's. */
export function passage(text, spans) {
  const units = unitsOf(text);
  const marks = apart(
    spans.map((span) => ({ ...span, start: units(span.start), end: units(span.end) })).filter((s) => s.start < s.end),
  );
  const nodes = [];
  let at = 0;
  for (const line of text.split(/(?<=\n)/)) {
    const signs = /^#{1,6}[ \t]+/.exec(line)?.[0].length ?? 0;
    const pieces = cut(text, at + signs, at + line.length, marks);
    nodes.push(signs ? h('b', {}, pieces) : pieces);
    at += line.length;
  }
  return nodes.flat();
}

/** Marks in order, none over another: what overlaps is the first one's. */
function apart(marks) {
  let end = 0;
  const free = [];
  for (const mark of marks.sort((a, b) => a.start - b.start || b.end - a.end)) {
    if (mark.end > end) free.push({ ...mark, start: Math.max(mark.start, end) });
    end = Math.max(end, mark.end);
  }
  return free;
}

function cut(text, start, end, marks) {
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
