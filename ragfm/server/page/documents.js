// The documents: a list, uploads by drag and drop with how far they are, and deletion of what one has uploaded.

import * as api from './api.js';
import { $, announce, count, h, icon, iconButton, sizeOf, sure } from './dom.js';
import { nameOf, showDocument } from './sources.js';

const STATES = { queued: 'Waiting to be indexed', indexing: 'Being indexed', ready: 'Ready', failed: 'Failed' };
const FINDABLE = 8; // from so many documents on there is a field to find one
const PAUSE = 700; // milliseconds between looks at what is being indexed

let model = '';
let cards = [];
let next = null;
let going = null; // the timer of the next look

/** Start, with a function that gives the model that is chosen. */
export function startDocuments(chosen) {
  $('documents-open').addEventListener('click', () => openDocuments(chosen()));
  $('files').addEventListener('change', (event) => {
    take([...event.target.files]);
    event.target.value = '';
  });
  $('find').addEventListener('input', draw);
  $('more').addEventListener('click', () => load(next));
  $('documents').addEventListener('close', () => clearTimeout(going));
  dropAnywhere(chosen);
}

async function openDocuments(chosen) {
  if (!chosen) return;
  if (api.collectionOf(chosen) !== model) $('uploads').replaceChildren();
  model = api.collectionOf(chosen);
  $('documents-title').textContent = `Documents of ${model}`;
  $('who').textContent =
    'What you add is yours: you can delete it again, and nobody with another key sees it unless you say so.';
  if (!$('documents').open) $('documents').showModal();
  await load();
}

function dropAnywhere(chosen) {
  let inside = 0;
  const over = (by) => {
    inside = by === 0 ? 0 : inside + by;
    $('dropping').hidden = inside <= 0;
  };
  const files = (event) =>
    event.dataTransfer?.types.includes('Files') && chosen() && !document.querySelector('dialog[open]:not(#documents)');
  document.addEventListener('dragenter', (event) => files(event) && over(1));
  document.addEventListener('dragleave', (event) => files(event) && over(-1));
  document.addEventListener('dragover', (event) => files(event) && event.preventDefault());
  document.addEventListener('drop', async (event) => {
    if (!event.dataTransfer?.types.includes('Files')) return;
    event.preventDefault(); // else the browser would leave this page for the file
    if (!files(event)) return;
    const dropped = [...event.dataTransfer.files];
    over(0);
    await openDocuments(chosen());
    take(dropped);
  });
}

async function load(after = null) {
  try {
    const page = await api.documents(model, after);
    cards = after === null ? page.data : [...cards, ...page.data];
    next = page.next;
    if (after === null) offer(page.groups);
    draw();
    watch();
  } catch (error) {
    $('cards').replaceChildren(h('li', { class: 'error', role: 'alert' }, error.message));
  }
}

/** Offer the groups of the key as those that may see an upload, too; what is ticked stays so. */
function offer(groups) {
  const boxes = groups.map((group) =>
    h('label', {}, h('input', { type: 'checkbox', value: group, checked: shared().includes(group) }), group),
  );
  $('share').replaceChildren($('share').querySelector('legend'), ...boxes);
  $('share').hidden = groups.length === 0;
}

const shared = () => [...$('share').querySelectorAll('input:checked')].map((box) => box.value);

function draw() {
  const sought = $('find').value.trim().toLowerCase();
  const shown = cards.filter((card) => card.uri.toLowerCase().includes(sought));
  $('find-row').hidden = cards.length < FINDABLE;
  $('more').hidden = next === null;
  const empty = h('li', { class: 'foot' }, sought ? 'No document is called so.' : 'There are no documents yet.');
  $('cards').replaceChildren(...(shown.length ? shown.map(row) : [empty]));
}

function row(card) {
  const about = [
    card.yours ? 'yours' : card.source,
    card.state === 'ready' && card.chunks !== null ? count(card.chunks, 'passage') : null,
  ];
  const name =
    card.state === 'ready'
      ? h('button', { type: 'button', class: 'name', onclick: () => showDocument(model, card.uri) }, nameOf(card.uri))
      : h('span', { class: 'name' }, nameOf(card.uri));
  return h(
    'li',
    { class: 'card' },
    icon('file'),
    h('div', { class: 'what' }, name, h('span', { class: 'foot' }, about.filter(Boolean).join(' · ')), stateOf(card)),
    card.yours ? iconButton('trash', `Delete ${nameOf(uploadOf(card.uri))}`, () => remove(uploadOf(card.uri))) : null,
  );
}

/** The upload that a document is, or lies in: `.uploads/<number>/<name>`. */
const uploadOf = (uri) => uri.split('/').slice(0, 3).join('/');

function stateOf(card) {
  if (card.state === 'ready') return null;
  const { progress } = card;
  const far = progress?.total
    ? `: ${progress.documents} of ${count(progress.total, 'document')}, ${count(progress.chunks, 'passage')}`
    : '';
  const bar = progress?.total
    ? h('progress', { max: progress.total, value: progress.documents, 'aria-label': `Indexing ${nameOf(card.uri)}` })
    : null;
  const why = card.error ? `: ${card.error}` : '';
  return h(
    'span',
    { class: card.state === 'failed' ? 'state error' : 'state' },
    `${STATES[card.state]}${far}${why}`,
    bar,
  );
}

/** Look again for as long as something is being indexed. */
function watch() {
  clearTimeout(going);
  if (!$('documents').open || !cards.some((card) => card.state === 'queued' || card.state === 'indexing')) return;
  going = setTimeout(async () => {
    const own = await api.ownDocuments(model).catch(() => null);
    if (own) adopt(own);
    watch();
  }, PAUSE);
}

/** Take over how far one's own documents are; an archive's place is taken by what was in it. */
function adopt(own) {
  const states = new Map(own.map((card) => [card.uri, card]));
  for (const card of cards.filter((one) => one.yours && one.state !== 'ready')) {
    const now = states.get(card.uri);
    if (now && now.state !== card.state && (now.state === 'ready' || now.state === 'failed'))
      announce(`${nameOf(card.uri)}: ${STATES[now.state]}`);
  }
  const last = next === null ? null : cards.at(-1)?.uri;
  const mine = own.filter((card) => last === null || card.uri <= last);
  cards = [...cards.filter((card) => !card.yours), ...mine].sort((a, b) => (a.uri < b.uri ? -1 : 1));
  draw();
}

function take(files) {
  for (const file of files) send(file);
}

async function send(file) {
  const bar = h('progress', { max: 1, value: 0, 'aria-label': `Uploading ${file.name}` });
  const said = h('span', { class: 'state' }, 'Uploading', bar);
  const line = h(
    'li',
    { class: 'card' },
    icon('file'),
    h(
      'div',
      { class: 'what' },
      h('span', { class: 'name' }, file.name),
      h('span', { class: 'foot' }, sizeOf(file.size)),
      said,
    ),
  );
  $('uploads').append(line);
  try {
    const card = await api.upload(file, { model, groups: shared() }, (share) => (bar.value = share));
    line.remove();
    announce(`${file.name} is kept, and is being indexed.`);
    cards = [card, ...cards.filter((one) => one.uri !== card.uri)].sort((a, b) => (a.uri < b.uri ? -1 : 1));
    draw();
    watch();
  } catch (error) {
    said.replaceChildren(error.message);
    said.classList.add('error');
    line.append(iconButton('close', `Take ${file.name} off the list`, () => line.remove()));
    announce(`${file.name}: ${error.message}`);
  }
}

async function remove(uri) {
  const inside = cards.some((card) => card.uri.startsWith(`${uri}/`)) ? ' So are all documents in it.' : '';
  if (!(await sure(`Delete ${nameOf(uri)}?`, `Its file is deleted, and no answer will rest on it any more.${inside}`)))
    return;
  try {
    await api.removeDocument(uri, model);
    announce(`${nameOf(uri)} is deleted.`);
    await load();
    $('files').focus();
  } catch (error) {
    announce(error.message);
    $('cards').prepend(h('li', { class: 'error', role: 'alert' }, error.message));
  }
}
