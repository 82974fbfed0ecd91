// Markdown as DOM nodes. `marked` parses; this module builds nodes from its tokens, so that no text becomes HTML.
// Raw HTML stays text, pictures become links, and links lead to http(s) addresses only and show them.

import { h, webLink } from './dom.js';
import { Marked, Tokenizer } from './vendor/marked/marked.esm.js';

// Marks that a caller puts into the text: a citation, and the start and end of unsupported words. A mark begins and
// ends with a bracket, so that emphasis next to it opens and closes as it does next to the `[1]` of the answer.
export const CITE = (index, n) => `[\ue000${index},${n}]`;
export const DOUBT = ['[\ue002]', '[\ue003]'];
export const withoutMarks = (text) => text.replace(/[\ue000-\ue003]/g, '');

const MAX_CHARACTERS = 20000; // longer texts are shown unformatted: some inputs take the parser quadratic time
const MAX_DEPTH = 6; // of lists and quotations
const MARK = /^\[(?:\ue000(\d+),(\d+)|([\ue002\ue003]))\]/;
const MARKS = /(\[(?:\ue000\d+,\d+|[\ue002\ue003])\])/;

// Lines with marks that would hide block syntax from the parser.
const DOUBTS_FIRST = /^([ \t]*)((?:\[[\ue002\ue003]\])+)((?:[ \t]*(?:>|(?:[-*+]|#{1,6}|\d{1,9}[.)])[ \t]+))+|[ \t]*\|)/;
const MARKS_AFTER_ROW = /^([ \t]*\|.*?)\|((?:[ \t]*\[[\ue000-\ue003][\d,]*\])+)[ \t]*$/;
const STRUCTURE_ONLY = /^[ \t]*(?:(?:`{3,}|~{3,})[^`]*|[-=*_:| \t]{2,})$/;

// prettier-ignore
const ENTITIES = {
  amp: '&', lt: '<', gt: '>', quot: '"', apos: "'", nbsp: '\u00a0', ensp: '\u2002', emsp: '\u2003', thinsp: '\u2009',
  ndash: '–', mdash: '—', hellip: '…', bull: '•', middot: '·', lsquo: '‘', rsquo: '’', ldquo: '“', rdquo: '”',
  laquo: '«', raquo: '»', sect: '§', para: '¶', copy: '©', reg: '®', trade: '™', deg: '°', plusmn: '±', times: '×',
  divide: '÷', minus: '−', ne: '≠', le: '≤', ge: '≥', asymp: '≈', infin: '∞', micro: 'µ', frac12: '½', frac14: '¼',
  frac34: '¾', larr: '←', rarr: '→', uarr: '↑', darr: '↓', euro: '€', pound: '£', cent: '¢', yen: '¥', auml: 'ä',
  ouml: 'ö', uuml: 'ü', Auml: 'Ä', Ouml: 'Ö', Uuml: 'Ü', szlig: 'ß', aelig: 'æ', AElig: 'Æ', oslash: 'ø', Oslash: 'Ø',
  aring: 'å', Aring: 'Å', eacute: 'é', egrave: 'è', agrave: 'à', ccedil: 'ç', ntilde: 'ñ',
};
const ENTITY = /&(?:#(\d{1,7})|#[xX]([\da-fA-F]{1,6})|(\w{2,8}));/g;

class SafeTokenizer extends Tokenizer {
  depth = 0;

  html() {} // undefined: not a token, so that the characters are text

  tag() {}

  def(source) {
    return /^ {0,3}\[\ue000/.test(source) ? undefined : super.def(source); // `[1]: …` begins with a citation
  }

  url(source) {
    return super.url(source.split(MARKS, 1)[0]);
  }

  blockquote(source) {
    return this.nested(() => super.blockquote(source));
  }

  list(source) {
    return this.nested(() => super.list(source));
  }

  nested(parse) {
    if (this.depth >= MAX_DEPTH) return undefined;
    this.depth += 1;
    try {
      return parse();
    } finally {
      this.depth -= 1;
    }
  }
}

const markExtension = {
  name: 'mark',
  level: 'inline',
  start: (source) => source.match(MARKS)?.index,
  tokenizer(source) {
    const [raw, index, n, doubt] = MARK.exec(source) ?? [];
    return raw && { type: 'mark', raw, index: Number(index), n: Number(n), doubt };
  },
};

const parser = new Marked({ gfm: true, extensions: [markExtension] });
parser.setOptions({ tokenizer: new SafeTokenizer() });

/** Nodes of a text. `cite(index, n)` makes the node of a citation. */
export function render(text, cite) {
  const builder = new NodeBuilder(cite);
  if (text.length > MAX_CHARACTERS) return [h('p', {}, builder.plain(text))];
  return builder.blocks(parser.lexer(withMarksInside(text)));
}

/** The text with its marks moved inside the signs of lists, headings, tables and fences. */
function withMarksInside(text) {
  const lines = text.replace(/\r\n?/g, '\n').split('\n');
  lines.forEach((line, i) => {
    const bare = line.replaceAll(DOUBT[0], '').replaceAll(DOUBT[1], '');
    if (bare !== line && STRUCTURE_ONLY.test(bare)) {
      // A fence or a table's delimiter row: the marks go into the text next to it.
      const [begins, ends] = DOUBT.map((mark) => line.includes(mark));
      lines[i] = bare;
      if (begins && !ends && i + 1 < lines.length) lines[i + 1] = DOUBT[0] + lines[i + 1];
      if (ends && !begins && i > 0) lines[i - 1] += DOUBT[1];
    }
  });
  return lines.map((line) => line.replace(DOUBTS_FIRST, '$1$3$2').replace(MARKS_AFTER_ROW, '$1$2|')).join('\n');
}

class NodeBuilder {
  constructor(cite) {
    this.cite = cite;
    this.doubt = false; // whether the words are unsupported
    this.inLink = false;
  }

  blocks(tokens) {
    return tokens.map((token) => this.block(token)).flat();
  }

  block(token) {
    switch (token.type) {
      case 'paragraph':
        return h('p', {}, this.inline(token.tokens));
      case 'text': // in an item of a tight list
        return this.inline(token.tokens ?? [token]);
      case 'heading':
        return h(`h${Math.min(6, token.depth + 2)}`, {}, this.inline(token.tokens));
      case 'code':
        this.skip(token.raw);
        return h('pre', { tabindex: 0 }, h('code', {}, asWritten(token.text)));
      case 'blockquote':
        return h('blockquote', {}, this.blocks(token.tokens));
      case 'list': {
        const start = token.ordered && token.start !== 1 ? String(token.start) : null;
        const items = token.items.map((item) => h('li', {}, this.blocks(item.tokens)));
        return h(token.ordered ? 'ol' : 'ul', { start }, items);
      }
      case 'checkbox':
        return this.text(token.checked ? '☑ ' : '☐ ');
      case 'table': {
        const row = (cells, tag) =>
          h(
            'tr',
            {},
            cells.map((cell) => h(tag, {}, this.inline(cell.tokens))),
          );
        const head = h('thead', {}, row(token.header, 'th'));
        const body = h(
          'tbody',
          {},
          token.rows.map((cells) => row(cells, 'td')),
        );
        const attributes = { class: 'wide', tabindex: 0, role: 'group', 'aria-label': 'Table' };
        return h('div', attributes, h('table', {}, head, body));
      }
      case 'hr':
        return h('hr');
      case 'def': // the target of a link is shown at the link, but a definition may hold words of the answer
        return h('p', {}, this.plain(token.raw.trim()));
      case 'space':
        return [];
      default:
        return h('p', {}, this.plain(token.raw));
    }
  }

  inline(tokens) {
    const nodes = [];
    for (const node of tokens.map((token) => this.inlineNode(token)).flat()) {
      const last = nodes.at(-1);
      if (last?.className === 'doubt' && node?.className === 'doubt') last.append(node.textContent);
      else if (node !== null) nodes.push(node);
    }
    return nodes;
  }

  inlineNode(token) {
    switch (token.type) {
      case 'mark':
        return this.mark(token);
      case 'strong':
      case 'em':
      case 'del':
        return h(token.type, {}, this.inline(token.tokens));
      case 'codespan':
        this.skip(token.raw);
        return h('code', {}, asWritten(token.text));
      case 'br':
        return h('br');
      case 'link':
      case 'image':
        return this.link(token);
      case 'escape':
        return this.text(token.text);
      case 'text':
        if (token.tokens) return this.inline(token.tokens);
        return this.text(decoded(token.text).replace(/[ \t]*\n[ \t]*/g, '\n'));
      default:
        return this.text(token.raw);
    }
  }

  link(token) {
    const target = asWritten(decoded(token.href));
    const link = this.inLink ? null : webLink(target);
    const outer = this.inLink;
    this.inLink ||= link !== null;
    const words =
      token.type === 'image' ? this.text(asWritten(decoded(token.text)) || 'picture') : this.inline(token.tokens);
    this.inLink = outer;
    link?.append(...[words].flat());
    const shown = (link ?? h('span', {}, words)).textContent;
    const where = token.autolink || shown === target ? null : ` (${target})`;
    if (link) return [link, where && h('span', { class: 'target' }, where)];
    return [words, where && this.text(where)].flat();
  }

  mark({ index, n, doubt }) {
    if (!doubt) return this.inLink ? this.text(`[${n}]`) : this.cite(index, n);
    this.doubt = `[${doubt}]` === DOUBT[0];
    return this.doubt ? h('span', { class: 'hidden' }, 'Unsupported: ') : null;
  }

  /** Nodes of a text that holds no Markdown, only marks. */
  plain(text) {
    const nodes = text.split(MARKS).map((part) => {
      const token = markExtension.tokenizer(part);
      return token ? this.mark(token) : part && this.text(part);
    });
    return nodes.filter(Boolean);
  }

  text(words) {
    return this.doubt ? h('span', { class: 'doubt' }, words) : words;
  }

  /** Follow the marks of a text that is shown without them. */
  skip(text) {
    const last = text.match(/[\ue002\ue003]/g)?.at(-1);
    if (last) this.doubt = `[${last}]` === DOUBT[0];
  }
}

function decoded(text) {
  return text.replace(ENTITY, (entity, decimal, hexadecimal, name) => {
    if (name) return Object.hasOwn(ENTITIES, name) ? ENTITIES[name] : entity;
    const point = decimal ? parseInt(decimal, 10) : parseInt(hexadecimal, 16);
    return point > 0 && point <= 0x10ffff ? String.fromCodePoint(point) : '\ufffd';
  });
}

/** A text whose citations are written as numbers again. */
const asWritten = (text) =>
  text
    .replace(/\[\ue000\d+,(\d+)\]/g, '[$1]')
    .replaceAll(DOUBT[0], '')
    .replaceAll(DOUBT[1], '');
