// One turn of the chat: the question, the answer with its citations, and its buttons.

import * as api from './api.js';
import { announce, fill, h, iconButton, unitsOf } from './dom.js';
import { CITE, DOUBT, render, withoutMarks } from './markdown.js';
import { evidenceOf, nameOf, placeOf, showSources, supportClass } from './sources.js';

const MARKER = /\[(\d{1,3})\](?!\()/g;
const MAX_QUOTE = 300; // characters of a contradiction's quote

/** The view of a turn. `onChange` is called when the turn has changed and must be saved. */
export function turnView(turn, onChange) {
  const text = h('div', { class: 'text' });
  const below = h('div', { class: 'below' });
  const answer = h('article', { class: 'answer', 'aria-label': 'Answer' }, text, below);
  const root = h(
    'div',
    { class: 'turn' },
    h('article', { class: 'question', 'aria-label': 'Question' }, h('h2', {}, turn.question)),
    answer,
  );
  const view = {
    root,
    below,
    /** Show the answer received so far. */
    grow() {
      fill(
        text,
        render(marked(turn.answer, [], []), (_, n) => h('span', { class: 'cite' }, n)),
      );
    },
    finish() {
      const { citations = [], unsupported = [], hidden } = turn.details ?? {};
      const cite = (index, n) => citeButton(turn, citations[index] ? index : null, n);
      const answered = hidden ? [] : render(marked(turn.answer, citations, unsupported), cite);
      fill(text, answered, calculationTable(turn), quoteLine(turn), contradictionLines(turn), nearestLines(turn));
      fill(below, notes(turn), sourceRow(turn), tools(turn, onChange));
    },
    wait() {
      fill(text, h('p', { class: 'waiting' }, h('span', {}, 'Reading'), h('i'), h('i'), h('i')));
      fill(below);
    },
  };
  return view;
}

/** The answer with the renderer's marks. Each `[n]` gets the next citation that has its number. */
function marked(answer, citations, unsupported) {
  const units = unitsOf(answer);
  const edits = [...answer.matchAll(MARKER)].map((match) => ({
    at: match.index,
    end: match.index + match[0].length,
    n: Number(match[1]),
    index: -1,
  }));
  let next = 0;
  citations.forEach((citation, index) => {
    const at = edits.findIndex((edit, position) => position >= next && edit.n === citation.n);
    if (at < 0) return;
    edits[at].index = index;
    next = at + 1;
  });
  for (const edit of edits) edit.text = edit.index < 0 ? CITE(999, edit.n) : CITE(edit.index, edit.n);
  for (const [start, end] of unsupported) {
    edits.push(
      { at: units(start), end: units(start), text: DOUBT[0] },
      { at: units(end), end: units(end), text: DOUBT[1] },
    );
  }
  let at = 0;
  let text = '';
  for (const edit of edits.sort((a, b) => a.at - b.at)) {
    text += withoutMarks(answer.slice(at, edit.at)) + edit.text;
    at = Math.max(at, edit.end);
  }
  return text + withoutMarks(answer.slice(at));
}

function citeButton(turn, index, n) {
  if (index === null) return h('span', { class: 'cite' }, n);
  const item = evidenceOf(turn.details)[index];
  const hit = turn.details.passages.find((passage) => passage.n === n) ?? item;
  const support = supportClass(item);
  const label = [
    `Source ${n}: ${nameOf(item.uri)}`,
    placeOf({ ...hit, page: item.page, lines: item.lines ?? hit.lines }),
    item.fault === 'picture'
      ? 'read from the picture'
      : { doubtful: 'does not support the sentence', unsure: 'is not sure to support the sentence' }[support],
  ];
  const show = (event) => showSources(turn, index, event.currentTarget);
  return h(
    'button',
    {
      type: 'button',
      class: ['cite', support].filter(Boolean).join(' '),
      'aria-label': label.filter(Boolean).join(', '),
      title: displayedQuote(item),
      onclick: show,
    },
    n,
  );
}

/** A quote in one line: the table row that it is, or its words without the headings above them. */
function displayedQuote({ quote, row }) {
  if (row) return rowText(row);
  const words = quote.replace(/^(?:#{1,6}[ \t][^\n]*\n\s*)+(?=\S)/, '');
  return `“${words.replace(/\s+/g, ' ').trim()}”`;
}

/** “label — column: value” of the cell that most likely has the answer, or of all cells. */
function rowText({ header, cells, label, column }) {
  const titled = (cell, at) =>
    header.length === cells.length && header[at] ? `${header[at].replace(/:$/, '')}: ${cell}` : cell;
  const named = column ? [titled(cells[column], column)] : cells.map(titled).filter((_, at) => at && cells[at]);
  return named.length ? `${label} — ${named.join('; ')}` : label;
}

/** A table row below its header, with the cell that most likely has the answer marked. */
function rowTable({ header, cells, column }) {
  const marked = (cell, at) => h('td', {}, at === column ? h('mark', {}, cell) : cell);
  const titles = header.map((title) => h('th', {}, title));
  const head = header.length === cells.length ? h('thead', {}, h('tr', {}, titles)) : null;
  const rows = h('table', {}, head, h('tbody', {}, h('tr', {}, cells.map(marked))));
  return h('div', { class: 'wide', tabindex: 0, role: 'group', 'aria-label': 'Table row' }, rows);
}

/** The operands of a calculated number, each with its citation, and the result. */
function calculationTable(turn) {
  const { calculation, citations } = turn.details ?? {};
  if (!calculation) return null;
  const line = (label, ...cells) => h('tr', {}, h('th', { scope: 'row' }, label), ...cells.map((cell) => h('td', {}, cell)));
  const operands = calculation.operands.map(({ label, text }, i) => line(label, text, citeButton(turn, i, citations[i].n)));
  const result = line(calculation.operation, h('mark', {}, calculation.result), null);
  const table = h('table', {}, h('tbody', {}, operands, result));
  return h('div', { class: 'wide', tabindex: 0, role: 'group', 'aria-label': 'Calculation' }, table);
}

/** What the documents say, next to an answer or in its place. */
function quoteLine(turn) {
  const { status, quote, hidden } = turn.details ?? {};
  const unsure = status === 'unsure' ? (hidden ? 'I am not sure. ' : 'I am not sure of this. ') : '';
  const words = quote && displayedQuote(quote);
  if (!quote || (!unsure && turn.answer.includes(words.replace(/^“|”$/g, '')))) return unsure ? [h('p', { class: 'unsure' }, unsure)] : [];
  const cite = citeButton(turn, evidenceOf(turn.details).length - 1, quote.n);
  const line = h('p', { class: unsure ? 'unsure' : null }, `${unsure}The documents say: ${words} `, cite);
  return [line, quote.row ? rowTable(quote.row) : null];
}

/** A line for each passage that contradicts the answer. */
function contradictionLines(turn) {
  const { citations = [], contradictions = [] } = turn.details ?? {};
  return contradictions.map((item, i) => {
    const words = displayedQuote(item);
    const source = [item.name, item.date].filter(Boolean).join(', ');
    const ending = ([...words].length <= MAX_QUOTE ? `: ${words}` : '') + (source && ` (${source})`) || '.';
    return h('p', {}, 'But ', citeButton(turn, citations.length + i, item.n), ` says otherwise${ending}`);
  });
}

/** What the documents say nearest to a question without an answer. */
function nearestLines(turn) {
  const { citations = [], contradictions = [], nearest = [] } = turn.details ?? {};
  if (!nearest.length) return [];
  const lines = nearest.map((item, i) =>
    h('li', {}, `${displayedQuote(item)} `, citeButton(turn, citations.length + contradictions.length + i, item.n)),
  );
  return [h('p', {}, 'The nearest passages say:'), h('ul', { class: 'nearest' }, lines)];
}

function notes(turn) {
  const ending = {
    stopped: 'Stopped.',
    broken: 'The connection broke here.',
    length: 'The answer was cut off at the maximum length.',
  }[turn.end];
  const underlined = turn.details?.unsupported.length && !turn.details.hidden;
  return [
    ending ? h('p', { class: 'note' }, ending) : null,
    underlined
      ? h('p', { class: 'note' }, h('span', { class: 'doubt' }, 'Underlined'), ': no passage supports this.')
      : null,
    ...(turn.details?.notes ?? []).map((text) => h('p', { class: 'note' }, text)),
  ];
}

/** One button for each cited passage. */
function sourceRow(turn) {
  if (!turn.details?.passages.length) return null;
  const evidence = evidenceOf(turn.details);
  const cited = turn.details.passages.filter((hit) => evidence.some((item) => item.n === hit.n));
  const button = (hit) =>
    h(
      'button',
      {
        type: 'button',
        class: 'chip',
        onclick: (event) =>
          showSources(
            turn,
            evidence.findIndex((item) => item.n === hit.n),
            event.currentTarget,
          ),
      },
      h('span', { class: 'n' }, hit.n),
      h('span', { class: 'name' }, nameOf(hit.uri)),
      placeOf(hit) ? h('span', { class: 'place' }, placeOf(hit)) : null,
    );
  const all = h(
    'button',
    { type: 'button', class: 'chip', onclick: (event) => showSources(turn, null, event.currentTarget) },
    'Passages read',
  );
  return h('div', { class: 'chips', role: 'group', 'aria-label': 'Sources' }, cited.length ? cited.map(button) : all);
}

function tools(turn, onChange) {
  const row = h('div', { class: 'tools' });
  if (navigator.clipboard) {
    row.append(
      iconButton('copy', 'Copy the answer', async () => {
        await navigator.clipboard.writeText(turn.details?.hidden ? displayedQuote(turn.details.quote) : turn.answer).then(
          () => announce('Answer copied.'),
          () => announce('The answer cannot be copied.'),
        );
      }),
    );
  }
  const time = turn.details && h('span', { class: 'foot' }, `${turn.details.seconds.toFixed(1)} s`);
  if (turn.details?.rating) row.append(...thumbs(turn, onChange, time));
  else if (time) row.append(time);
  return row;
}

function thumbs(turn, onChange, time) {
  const status = h('span', { class: 'foot', role: 'status' });
  const form = h(
    'form',
    {
      class: 'correct',
      hidden: true,
      onsubmit: (event) => (event.preventDefault(), send('down', form.elements.correction.value.trim() || null)),
    },
    h(
      'label',
      {},
      'What is the correct answer? (optional)',
      h('input', { name: 'correction', maxlength: 10000, autocomplete: 'off' }),
    ),
    h('button', { type: 'submit' }, 'Send'),
  );
  const buttons = {
    up: iconButton('up', 'Good answer', () => send('up')),
    down: iconButton('down', 'Bad answer', () => send('down')),
  };
  const show = () =>
    Object.entries(buttons).forEach(([rating, button]) =>
      button.setAttribute('aria-pressed', String(turn.thumbs === rating)),
    );
  async function send(rating, correction = null) {
    try {
      await api.rate(turn.details.rating, rating, correction);
      turn.thumbs = rating;
      form.hidden = rating === 'up' || correction !== null;
      status.textContent = correction === null ? 'Noted.' : 'Thank you.';
      onChange();
    } catch (error) {
      status.textContent = error.message;
    }
    show();
  }
  show();
  return [buttons.up, buttons.down, time, status, form];
}
