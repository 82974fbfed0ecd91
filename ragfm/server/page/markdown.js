// Markdown as nodes. Text stays text: there is no HTML, no picture is fetched, links go to http(s) and show where to.
// Time is linear in the length of the text, whatever it is.

import { h, webLink } from './dom.js';

/** Characters that a caller may put into the text: a citation `[n]`, and the beginning and end of words in doubt. */
export const CITE = (index, n) => `\ue000${index},${n}\ue001`;
export const DOUBT = ['\ue002', '\ue003'];
export const withoutMarks = (text) => text.replace(/[\ue000-\ue003]/g, '');

const DEEPEST = 6;
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^([ \t]*)([-*+]|\d{1,9}[.)])([ \t]+|$)/;
const DASHES = /^[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const BEFORE = /^([ \t]*)([\ue002\ue003]+)([ \t]*(?:(?:[-*+>]|#{1,6}|\d{1,9}[.)])[ \t]+|\|))/;
const BEHIND = /\|([\ue002\ue003]+)[ \t]*$/;
const CITED = /\ue000(\d+),(\d+)\ue001/y;
const LINK =
  /!?\[([^[\]\n]{0,500})\]\([ \t]*<?((?:[^\s()<>]|\([^\s()<>]*\)){1,2000})>?(?:[ \t]+"[^"\n]{0,500}")?[ \t]*\)/y;
const ADDRESS = /<?(https?:\/\/[^\s<>"'`\ue000-\ue003]{1,2000})>?/y;
const PLAIN = /(?:[^\\`*_~[!<h\n\ue000-\ue003]|h(?!ttps?:\/\/))+/y;
const WORD = /[\p{L}\p{N}]/u;

/** Nodes of a text. `cite(index, n)` makes the node of a citation. */
export function render(text, cite) {
  const lines = text.replace(/\r\n?/g, '\n').split('\n');
  return new Renderer(cite).blocks(lines.map(inside), 0);
}

/** A line with its marks of doubt inside the signs of a list, a heading or a table, which come first and last. */
const inside = (line) => line.replace(BEFORE, '$1$3$2').replace(BEHIND, '$1|');

class Renderer {
  constructor(cite) {
    this.cite = cite;
    this.doubt = false;
  }

  blocks(lines, depth) {
    const nodes = [];
    const kinds = depth < DEEPEST ? ['fence', 'heading', 'rule', 'quote', 'list', 'table', 'paragraph'] : ['paragraph'];
    for (let at = 0; at < lines.length;) {
      if (!lines[at].trim()) {
        at += 1;
        continue;
      }
      for (const kind of kinds) {
        const found = this[kind](lines, at, depth);
        if (!found) continue;
        nodes.push(found.node);
        at = found.end;
        break;
      }
    }
    return nodes;
  }

  fence(lines, at) {
    const [, ticks] = FENCE.exec(withoutDoubt(lines[at])) ?? [];
    if (!ticks) return null;
    let end = at + 1;
    const closes = (line) => line.startsWith(ticks) && !line.replaceAll(ticks[0], '');
    while (end < lines.length && !closes(withoutDoubt(lines[end]).trim())) end += 1;
    this.passed(lines.slice(at, end + 1).join(''));
    const code = asWritten(lines.slice(at + 1, end).join('\n'));
    return { node: h('pre', { tabindex: 0 }, h('code', {}, code)), end: end + 1 };
  }

  heading(lines, at) {
    const [, signs, words] = HEADING.exec(lines[at]) ?? [];
    if (!signs) return null;
    return { node: h(`h${Math.min(6, signs.length + 2)}`, {}, this.inline(words)), end: at + 1 };
  }

  rule(lines, at) {
    return RULE.test(lines[at]) ? { node: h('hr'), end: at + 1 } : null;
  }

  quote(lines, at, depth) {
    let end = at;
    while (end < lines.length && QUOTE.test(lines[end])) end += 1;
    if (end === at) return null;
    return {
      node: h(
        'blockquote',
        {},
        this.blocks(
          lines.slice(at, end).map((line) => line.replace(QUOTE, '')),
          depth + 1,
        ),
      ),
      end,
    };
  }

  list(lines, at, depth) {
    const first = ITEM.exec(lines[at]);
    if (!first) return null;
    const numbered = /\d/.test(first[2]);
    const items = [];
    let end = at;
    for (
      let item = first;
      item && /\d/.test(item[2]) === numbered;
      item = end < lines.length ? ITEM.exec(lines[end]) : null
    ) {
      const own = [lines[end].slice(item[0].length)];
      const indent = item[1].length;
      for (end += 1; end < lines.length && belongs(lines, end, indent); end += 1)
        own.push(lines[end].slice(Math.min(margin(lines[end]), item[0].length)));
      items.push(h('li', {}, loose(this.blocks(own, depth + 1))));
      if (end < lines.length && !lines[end].trim() && ITEM.test(lines[end + 1] ?? '')) end += 1;
    }
    const start = numbered ? parseInt(first[2], 10) : 1;
    return { node: h(numbered ? 'ol' : 'ul', { start: start === 1 ? null : String(start) }, items), end };
  }

  table(lines, at) {
    if (!lines[at].includes('|') || !DASHES.test(withoutDoubt(lines[at + 1] ?? ''))) return null;
    const head = cells(lines[at]);
    if (head.length !== cells(withoutDoubt(lines[at + 1])).length) return null;
    let end = at + 2;
    while (end < lines.length && lines[end].includes('|') && lines[end].trim()) end += 1;
    const row = (line, tag) => {
      const all = cells(line);
      // A citation may stand behind the row: it goes into the last cell.
      const own = [...all.slice(0, head.length - 1), all.slice(head.length - 1).join(' ')];
      return h(
        'tr',
        {},
        head.map((_, column) => h(tag, {}, this.inline(own[column] ?? ''))),
      );
    };
    const top = row(lines[at], 'th');
    this.passed(lines[at + 1]);
    const table = h(
      'table',
      {},
      h('thead', {}, top),
      h(
        'tbody',
        {},
        lines.slice(at + 2, end).map((line) => row(line, 'td')),
      ),
    );
    return { node: h('div', { class: 'wide', tabindex: 0, role: 'group', 'aria-label': 'Table' }, table), end };
  }

  paragraph(lines, at) {
    let end = at + 1;
    while (end < lines.length && lines[end].trim() && !begins(lines[end])) end += 1;
    return {
      node: h(
        'p',
        {},
        this.inline(
          lines
            .slice(at, end)
            .map((line) => line.trim())
            .join('\n'),
        ),
      ),
      end,
    };
  }

  /** Nodes of what stands in a line. */
  inline(text, depth = 0) {
    const nodes = [];
    const unclosed = new Set(); // what has no end from here on has none later on either
    for (let at = 0; at < text.length;) {
      const found = this.special(text, at, depth, unclosed) ?? this.words(text, at);
      if (!joined(nodes.at(-1), found.node)) nodes.push(found.node);
      at = found.end;
    }
    return nodes;
  }

  words(text, at) {
    PLAIN.lastIndex = at;
    const words = PLAIN.exec(text)?.[0] ?? text[at];
    return { node: this.text(words), end: at + words.length };
  }

  /** Take over what the marks in a text say that is not shown with them. */
  passed(text) {
    const sign = text.match(/[\ue002\ue003]/g)?.at(-1);
    if (sign) this.doubt = sign === DOUBT[0];
  }

  text(words) {
    return this.doubt ? h('span', { class: 'doubt' }, words) : words;
  }

  special(text, at, depth, unclosed) {
    const sign = text[at];
    if (sign === '\n') return { node: h('br'), end: at + 1 };
    if (sign === '\ue000') return this.cited(text, at);
    if (DOUBT.includes(sign)) {
      this.doubt = sign === DOUBT[0];
      return { node: this.doubt ? h('span', { class: 'hidden' }, 'Unsupported: ') : null, end: at + 1 };
    }
    if (sign === '\\' && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? ''))
      return { node: this.text(text[at + 1]), end: at + 2 };
    if (sign === '`') return this.code(text, at, unclosed);
    if (sign === '[' || sign === '!') return this.link(text, at);
    if (sign === '<' || sign === 'h') return this.address(text, at);
    return '*_~'.includes(sign) && depth < DEEPEST ? this.emphasis(text, at, depth, unclosed) : null;
  }

  cited(text, at) {
    CITED.lastIndex = at;
    const [all, index, n] = CITED.exec(text) ?? [];
    return all ? { node: this.cite(Number(index), Number(n)), end: at + all.length } : { node: null, end: at + 1 };
  }

  code(text, at, unclosed) {
    const ticks = /`+/y;
    ticks.lastIndex = at;
    const [run] = ticks.exec(text);
    const literal = { node: this.text(run), end: at + run.length };
    if (unclosed.has(run)) return literal;
    for (let end = text.indexOf(run, at + run.length); end >= 0; end = text.indexOf(run, end)) {
      ticks.lastIndex = end;
      const [close] = ticks.exec(text);
      if (close === run) this.passed(text.slice(at, end));
      if (close === run)
        return { node: h('code', {}, asWritten(text.slice(at + run.length, end))), end: end + run.length };
      end += close.length;
    }
    unclosed.add(run);
    return literal;
  }

  link(text, at) {
    LINK.lastIndex = at;
    const [all, words, address] = LINK.exec(text) ?? [];
    if (!all) return null;
    this.passed(words);
    const shown = asWritten(words) || 'picture';
    const target = withoutMarks(address);
    const link = webLink(target, shown);
    const where = shown === target ? '' : ` (${target})`;
    return {
      node: link ? [link, h('span', { class: 'target' }, where)] : this.text(`${shown}${where}`),
      end: at + all.length,
    };
  }

  address(text, at) {
    ADDRESS.lastIndex = at;
    const found = at > 0 && WORD.test(text[at - 1]) ? null : ADDRESS.exec(text);
    if (!found) return null;
    const address = found[0].startsWith('<') ? found[1] : found[1].replace(/[.,;:!?)\]*_]{1,20}$/, '');
    const link = webLink(address, address);
    return link ? { node: link, end: at + (found[0].startsWith('<') ? found[0].length : address.length) } : null;
  }

  emphasis(text, at, depth, unclosed) {
    const sign = text[at];
    const run = text[at + 1] === sign ? sign + sign : sign;
    const tag = { '*': 'em', _: 'em', '**': 'strong', __: 'strong', '~~': 'del' }[run];
    const literal = { node: this.text(run), end: at + run.length };
    if (!tag || unclosed.has(run) || !text[at + run.length]?.trim() || (sign === '_' && WORD.test(text[at - 1] ?? '')))
      return literal;
    for (let end = text.indexOf(run, at + run.length + 1); end >= 0; end = text.indexOf(run, end + 1)) {
      while (run.length === 1 && text[end + 1] === sign && text[end + 2] === sign) end += 2;
      if (run.length === 1 && (text[end + 1] === sign || text[end - 1] === sign)) {
        end += 1;
        continue;
      }
      if (!text[end - 1].trim() || (sign === '_' && WORD.test(text[end + run.length] ?? ''))) continue;
      return { node: h(tag, {}, this.inline(text.slice(at + run.length, end), depth + 1)), end: end + run.length };
    }
    unclosed.add(run);
    return literal;
  }
}

/** Whether the words of a node could be put at the end of another one. */
function joined(node, next) {
  if (node?.className !== 'doubt' || next?.className !== 'doubt') return false;
  node.append(next.textContent);
  return true;
}

const margin = (line) => line.length - line.trimStart().length;

const withoutDoubt = (line) => line.replace(/[\ue002\ue003]/g, '');

const begins = (line) =>
  FENCE.test(withoutDoubt(line)) || HEADING.test(line) || QUOTE.test(line) || RULE.test(line) || ITEM.test(line);

/** Whether a line is part of an item whose sign stands at `indent`. */
function belongs(lines, at, indent) {
  if (!lines[at].trim()) return margin(lines[at + 1] ?? '') > indent && Boolean(lines[at + 1]?.trim());
  return margin(lines[at]) > indent || (Boolean(lines[at - 1].trim()) && !begins(lines[at]));
}

/** An item of one paragraph needs none. */
const loose = (nodes) => nodes.map((node, at) => (at === 0 && node.tagName === 'P' ? [...node.childNodes] : node));

const cells = (line) =>
  line
    .trim()
    .replace(/^\|/, '')
    .replace(/(?<!\\)\|$/, '')
    .split(/(?<!\\)\|/)
    .map((cell) => cell.trim().replaceAll('\\|', '|'));

const asWritten = (code) => withoutMarks(code.replace(/\ue000\d+,(\d+)\ue001/g, '[$1]'));
