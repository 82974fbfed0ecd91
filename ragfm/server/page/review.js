// The page on which owners label verified citations as right or wrong, with one key each.

import * as api from './api.js';
import { $, announce, count, fill, h } from './dom.js';
import { explain, offerCollections } from './owners.js';
import { passage } from './passage.js';

const AROUND = 400; // characters of the document on each side of the quote
const CHOICES = { r: ['Right', true], w: ['Wrong', false], s: ['Skip', null] };

const nameOf = ({ entry, citation }) => `${entry}/${citation}`;
let model; // the collection of this batch
let waiting = []; // its citations that are left
let seed = 0; // of the next order, so that what was skipped does not hide the rest
let skipped = new Set();
let labelled = 0;
let busy = false; // so that a key that is pressed twice labels one citation

/** Run a step, unless one is running, and show its error. */
async function run(step) {
  if (busy) return;
  busy = true;
  try {
    await step();
  } catch (error) {
    waiting = [];
    fill($('citation'), h('p', { class: 'error', role: 'alert' }, explain(error)));
  } finally {
    busy = false;
  }
}

async function load() {
  model = $('model').value;
  waiting = (await api.review(model, seed++)).data.filter((cited) => !skipped.has(nameOf(cited)));
  await show();
}

async function show() {
  const done = labelled ? ` ${count(labelled, 'label')} saved.` : '';
  if (!waiting.length) {
    skipped = new Set();
    const again = h('button', { onclick: () => run(load) }, 'Look again');
    fill($('citation'), h('p', {}, `No citation is left to label.${done}`), again);
    return;
  }
  const [{ question, sentence, quote, name, page, ...place }] = waiting;
  const buttons = Object.entries(CHOICES).map(([key, [label]]) =>
    h('button', { type: 'button', 'aria-keyshortcuts': key, onclick: () => run(() => choose(key)) }, label, h('kbd', {}, key)),
  );
  fill(
    $('citation'),
    h('p', { class: 'question' }, question),
    h('h2', {}, 'Says'),
    h('p', {}, sentence),
    h('h2', {}, 'Quote'),
    h('p', { id: 'quote' }, h('mark', {}, quote)),
    h('h2', {}, page === null ? name : `${name}, page ${page}`),
    await around(place, quote),
    h('p', { class: 'foot' }, 'Right: the quote states what question and sentence say together.', done),
    h('div', { class: 'row' }, buttons),
  );
  announce(`${question} ${sentence} Quote: ${quote}`);
}

/** The document's text around the quote. */
async function around({ uri, start, end }, quote) {
  const from = Math.max(0, start - AROUND);
  const { text } = await api.documentText(uri, model, from, end - from + AROUND);
  const same = [...text].slice(start - from, end - from).join('') === quote;
  if (!same) return h('p', { class: 'note' }, 'The document has changed since the answer.');
  return h('div', { class: 'passage' }, passage(text, [{ start: start - from, end: end - from, class: 'quote' }]));
}

async function choose(key) {
  const [cited] = waiting;
  const right = CHOICES[key][1];
  if (right === null) skipped.add(nameOf(cited));
  else {
    await api.label({ model, entry: cited.entry, citation: cited.citation, right });
    labelled += 1;
  }
  waiting.shift();
  await (waiting.length ? show() : load());
}

document.addEventListener('keydown', (event) => {
  if (event.target.closest('select') || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const key = event.key.toLowerCase();
  if (waiting.length && Object.hasOwn(CHOICES, key)) run(() => choose(key));
});
$('model').addEventListener('change', () => run(load));
await run(async () => {
  await offerCollections();
  await load();
});
