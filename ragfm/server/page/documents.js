// The documents: list, upload by drag and drop with progress, deletion of one's own uploads.

import * as api from './api.js';
import { $, announce, confirmDeletion, count, h, icon, iconButton, sizeOf } from './dom.js';
import { nameOf, showDocument } from './sources.js';

const STATES = { queued: 'Waiting to be indexed', indexing: 'Being indexed', ready: 'Ready', failed: 'Failed' };
const MIN_FIND = 8; // documents from which a search field is shown
const POLL = 700; // milliseconds between status requests while documents are indexed

let model = '';
let cards = [];
let next = null;
let timer = null; // of the next status request

/** Set up the documents dialog. `selectedModel` returns the selected model. */
export function startDocuments(selectedModel) {
  $('documents-open').addEventListener('click', () => openDocuments(selectedModel()));
  $('files').addEventListener('change', (event) => {
    uploadAll([...event.target.files]);
    event.target.value = '';
  });
  $('find').addEventListener('input', draw);
  $('more').addEventListener('click', () => load(next));
  $('documents').addEventListener('close', () => clearTimeout(timer));
  acceptDrops(selectedModel);
}

async function openDocuments(name) {
  if (!name) return;
  if (api.collectionOf(name) !== model) $('uploads').replaceChildren();
  model = api.collectionOf(name);
  $('documents-title').textContent = `Documents of ${model}`;
  $('who').textContent = 'You can delete the files that you add. Others do not see them unless you share them.';
  if (!$('documents').open) $('documents').showModal();
  await load();
}

function acceptDrops(selectedModel) {
  let inside = 0; // elements that the pointer has entered and not left
  const over = (by) => {
    inside = by === 0 ? 0 : inside + by;
    $('dropping').hidden = inside <= 0;
  };
  const files = (event) =>
    event.dataTransfer?.types.includes('Files') &&
    selectedModel() &&
    !document.querySelector('dialog[open]:not(#documents)');
  document.addEventListener('dragenter', (event) => files(event) && over(1));
  document.addEventListener('dragleave', (event) => files(event) && over(-1));
  document.addEventListener('dragover', (event) => files(event) && event.preventDefault());
  document.addEventListener('drop', async (event) => {
    if (!event.dataTransfer?.types.includes('Files')) return;
    event.preventDefault(); // the browser would open the file instead of this page
    if (!files(event)) return;
    const dropped = [...event.dataTransfer.files];
    over(0);
    await openDocuments(selectedModel());
    uploadAll(dropped);
  });
}

async function load(after = null) {
  try {
    const page = await api.documents(model, after);
    cards = after === null ? page.data : [...cards, ...page.data];
    next = page.next;
    if (after === null) showGroups(page.groups);
    draw();
    watch();
  } catch (error) {
    $('cards').replaceChildren(h('li', { class: 'error', role: 'alert' }, error.message));
  }
}

/** Show a checkbox for each group of the key; checked ones stay checked. */
function showGroups(groups) {
  const boxes = groups.map((group) =>
    h('label', {}, h('input', { type: 'checkbox', value: group, checked: sharedGroups().includes(group) }), group),
  );
  $('share').replaceChildren($('share').querySelector('legend'), ...boxes);
  $('share').hidden = groups.length === 0;
}

const sharedGroups = () => [...$('share').querySelectorAll('input:checked')].map((box) => box.value);

function draw() {
  const query = $('find').value.trim().toLowerCase();
  const shown = cards.filter((card) => card.uri.toLowerCase().includes(query));
  $('find-row').hidden = cards.length < MIN_FIND;
  $('more').hidden = next === null;
  const empty = h('li', { class: 'foot' }, query ? 'No document matches.' : 'There are no documents yet.');
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

/** URI of the upload that a document is or is part of: `.uploads/<number>/<name>`. */
const uploadOf = (uri) => uri.split('/').slice(0, 3).join('/');

function stateOf(card) {
  if (card.state === 'ready') return null;
  const { progress } = card;
  const numbers = progress?.total
    ? `: ${progress.documents} of ${count(progress.total, 'document')}, ${count(progress.chunks, 'passage')}`
    : '';
  const bar = progress?.total
    ? h('progress', { max: progress.total, value: progress.documents, 'aria-label': `Indexing ${nameOf(card.uri)}` })
    : null;
  const why = card.error ? `: ${card.error}` : '';
  return h(
    'span',
    { class: card.state === 'failed' ? 'state error' : 'state' },
    `${STATES[card.state]}${numbers}${why}`,
    bar,
  );
}

/** Poll while a document is being indexed. */
function watch() {
  clearTimeout(timer);
  if (!$('documents').open || !cards.some((card) => card.state === 'queued' || card.state === 'indexing')) return;
  timer = setTimeout(async () => {
    const own = await api.ownDocuments(model).catch(() => null);
    if (own) update(own);
    watch();
  }, POLL);
}

/** Update the key's own documents. An indexed archive is replaced by the documents in it. */
function update(own) {
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

function uploadAll(files) {
  for (const file of files) upload(file);
}

async function upload(file) {
  const bar = h('progress', { max: 1, value: 0, 'aria-label': `Uploading ${file.name}` });
  const status = h('span', { class: 'state' }, 'Uploading', bar);
  const line = h(
    'li',
    { class: 'card' },
    icon('file'),
    h(
      'div',
      { class: 'what' },
      h('span', { class: 'name' }, file.name),
      h('span', { class: 'foot' }, sizeOf(file.size)),
      status,
    ),
  );
  $('uploads').append(line);
  try {
    let card = null;
    while (card === null) {
      try {
        card = await api.upload(file, { model, groups: sharedGroups() }, (share) => (bar.value = share));
      } catch (error) {
        if (error.retryAfter === null || error.status !== 429) throw error; // else too many of this key wait
        status.replaceChildren('Waiting', bar);
        await new Promise((resolve) => setTimeout(resolve, error.retryAfter * 1000));
      }
    }
    line.remove();
    announce(`${file.name} is stored and is being indexed.`);
    cards = [card, ...cards.filter((one) => one.uri !== card.uri)].sort((a, b) => (a.uri < b.uri ? -1 : 1));
    draw();
    watch();
  } catch (error) {
    status.replaceChildren(error.message);
    status.classList.add('error');
    line.append(iconButton('close', `Remove ${file.name} from the list`, () => line.remove()));
    announce(`${file.name}: ${error.message}`);
  }
}

async function remove(uri) {
  const inside = cards.some((card) => card.uri.startsWith(`${uri}/`)) ? ' All documents in it are deleted, too.' : '';
  if (!(await confirmDeletion(`Delete ${nameOf(uri)}?`, `Its file is deleted, and answers no longer use it.${inside}`)))
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
