// A turn as it is shown: the question, the answer with its citations, and what can be done with it.

import * as api from './api.js';
import { announce, fill, h, iconButton, unitsOf } from './dom.js';
import { CITE, DOUBT, render, withoutMarks } from './markdown.js';
import { doubt, nameOf, placeOf, showSources } from './sources.js';

const MARKER = /\[(\d{1,3})\](?!\()/g;

/** The nodes of a turn: {root, update}. `saved` is called when it has changed and is to be kept. */
export function turnView(turn, saved) {
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
    /** While it is written. */
    grow() {
      fill(
        text,
        render(marked(turn.answer, [], []), (_, n) => h('span', { class: 'cite' }, n)),
      );
    },
    finish() {
      const { citations = [], unsupported = [] } = turn.details ?? {};
      const cite = (index, n) => citeButton(turn, citations[index] ? index : null, n);
      fill(text, render(marked(turn.answer, citations, unsupported), cite));
      fill(below, notes(turn), sourceRow(turn), tools(turn, saved));
    },
    wait() {
      fill(text, h('p', { class: 'waiting' }, h('span', {}, 'Reading'), h('i'), h('i'), h('i')));
      fill(below);
    },
  };
  return view;
}

/** The answer with its markers as the renderer knows them; each is that of the next citation of its number. */
function marked(answer, citations, unsupported) {
  const units = unitsOf(answer);
  const edits = [...answer.matchAll(MARKER)].map((found) => ({
    at: found.index,
    end: found.index + found[0].length,
    n: Number(found[1]),
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
  const citation = turn.details.citations[index];
  const hit = turn.details.passages.find((one) => one.n === n) ?? citation;
  const label = [
    `Source ${n}: ${nameOf(citation.uri)}`,
    placeOf({ ...hit, page: citation.page }),
    { doubtful: 'which does not bear it out', unsure: 'which may not be what was asked for' }[doubt(citation)],
  ];
  const show = (event) => showSources(turn, index, event.currentTarget);
  return h(
    'button',
    {
      type: 'button',
      class: ['cite', doubt(citation)].filter(Boolean).join(' '),
      'aria-label': label.filter(Boolean).join(', '),
      title: citation.quote,
      onclick: show,
    },
    n,
  );
}

function notes(turn) {
  const said = {
    stopped: 'Stopped.',
    broken: 'It broke off here.',
    length: 'It was cut off: answers may be no longer.',
  }[turn.end];
  const doubted = turn.details?.unsupported.length && !turn.details.abstained;
  return [
    said ? h('p', { class: 'note' }, said) : null,
    doubted
      ? h('p', { class: 'note' }, h('span', { class: 'doubt' }, 'Underlined'), ': no passage supports this.')
      : null,
  ];
}

/** One button for each passage that is cited. */
function sourceRow(turn) {
  if (!turn.details?.passages.length) return null;
  const { citations, passages } = turn.details;
  const cited = passages.filter((hit) => citations.some((citation) => citation.n === hit.n));
  const button = (hit) =>
    h(
      'button',
      {
        type: 'button',
        class: 'chip',
        onclick: (event) =>
          showSources(
            turn,
            citations.findIndex((c) => c.n === hit.n),
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
    'Passages that were read',
  );
  return h('div', { class: 'chips', role: 'group', 'aria-label': 'Sources' }, cited.length ? cited.map(button) : all);
}

function tools(turn, saved) {
  const row = h('div', { class: 'tools' });
  if (navigator.clipboard) {
    row.append(
      iconButton('copy', 'Copy the answer', async () => {
        await navigator.clipboard.writeText(turn.answer).then(
          () => announce('The answer is copied.'),
          () => announce('It can’t be copied.'),
        );
      }),
    );
  }
  const time = turn.details && h('span', { class: 'foot' }, `${turn.details.seconds.toFixed(1)} s`);
  if (turn.details?.rating) row.append(...thumbs(turn, saved, time));
  else if (time) row.append(time);
  return row;
}

function thumbs(turn, saved, time) {
  const said = h('span', { class: 'foot', role: 'status' });
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
      'What would have been right? (if you like)',
      h('input', { name: 'correction', maxlength: 10000, autocomplete: 'off' }),
    ),
    h('button', { type: 'submit' }, 'Send'),
  );
  const buttons = {
    up: iconButton('up', 'Good answer', () => send('up')),
    down: iconButton('down', 'Bad answer', () => send('down')),
  };
  const show = () =>
    Object.entries(buttons).forEach(([which, button]) =>
      button.setAttribute('aria-pressed', String(turn.thumbs === which)),
    );
  async function send(which, correction = null) {
    try {
      await api.rate(turn.details.rating, which, correction);
      turn.thumbs = which;
      form.hidden = which === 'up' || correction !== null;
      said.textContent = correction === null ? 'Noted.' : 'Thank you.';
      saved();
    } catch (error) {
      said.textContent = error.message;
    }
    show();
  }
  show();
  return [buttons.up, buttons.down, time, said, form];
}
