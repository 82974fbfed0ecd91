// The conversation: asking, streaming the answer, and saving both.

import * as api from './api.js';
import { $, announce, confirmDeletion, h } from './dom.js';
import { turnView } from './answer.js';
import { hideSources, offerSources } from './sources.js';
import { chats, setting } from './store.js';

const NEAR_END = 120; // pixels from the end within which the page follows the answer
const HIT_FIELDS = ['uri', 'name', 'text', 'start', 'end', 'page', 'place', 'lines', 'headings', 'context', 'n', 'image'];

let chat = null; // the chat on screen; null before the first question
let running = null; // the AbortController of the running answer
let onMissing = () => {};

/** Set up the chat. `whenMissing` is called if a key or a model is missing, with the server's message. */
export function startChat(whenMissing) {
  onMissing = whenMissing;
  const question = $('question');
  $('ask').addEventListener('submit', (event) => {
    event.preventDefault();
    ask(question.value.trim());
  });
  question.addEventListener('input', fitQuestion);
  question.addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    ask(question.value.trim());
  });
  $('stop').addEventListener('click', () => running?.abort());
  document.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape' || event.defaultPrevented || document.querySelector('dialog[open]')) return;
    running?.abort();
  });
  $('new').addEventListener('click', () => show(null));
  $('clear').addEventListener('click', async () => {
    if (
      !(await confirmDeletion(
        'Delete all chats?',
        'They are stored only in this browser and cannot be restored.',
        'Delete all',
      ))
    )
      return;
    chats.clear();
    leave();
  });
  window.addEventListener('storage', (event) => chats.isChat(event.key) && list());
  show(null);
}

/** Fit the input's height to its text. */
function fitQuestion() {
  const question = $('question');
  question.rows = Math.min(8, Math.max(1, question.value.split('\n').length));
  $('send').disabled = !question.value.trim();
}

/** Start a new chat and stop saving the one on screen: it was deleted or belongs to another key. */
export function leave() {
  if (chat) chat.discarded = true;
  show(null);
}

/** Show a chat; null starts a new one. */
export function show(selected) {
  running?.abort();
  chat = selected;
  hideSources();
  $('turns').replaceChildren(...(chat ? chat.turns.map((turn) => finished(turn)) : [welcome()]));
  if (chat && [...$('model').options].some((option) => option.value === chat.model)) $('model').value = chat.model;
  document.body.classList.remove('menu');
  $('menu').setAttribute('aria-expanded', 'false');
  list();
  const last = chat?.turns.at(-1);
  if (last?.details) offerSources(last);
  $('turns').scrollTop = $('turns').scrollHeight;
  fitQuestion();
  $('question').focus();
}

function finished(turn) {
  const view = turnView(turn, () => keep(chat));
  view.finish();
  return view.root;
}

function welcome() {
  const tips = [
    'Ask in a full sentence, then ask follow-up questions.',
    'Select a number to see the cited words.',
    'Drop files anywhere to add them to the documents.',
  ];
  return h(
    'div',
    { class: 'welcome' },
    h('h2', {}, 'Ask your documents'),
    h(
      'ul',
      {},
      tips.map((tip) => h('li', {}, tip)),
    ),
  );
}

function list() {
  const rows = chats.all().map((one) =>
    h(
      'li',
      {},
      h(
        'button',
        {
          type: 'button',
          class: 'chat',
          'aria-current': one.id === chat?.id ? 'true' : null,
          onclick: () => show(chats.get(one.id)),
        },
        one.title,
      ),
      h(
        'button',
        {
          type: 'button',
          class: 'icon',
          'aria-label': `Delete the chat “${one.title}”`,
          title: 'Delete',
          onclick: () => remove(one),
        },
        '×',
      ),
    ),
  );
  $('chats').replaceChildren(...rows);
  $('clear').hidden = !rows.length;
}

async function remove(one) {
  if (!(await confirmDeletion('Delete this chat?', one.title))) return;
  chats.remove(one.id);
  if (one.id === chat?.id) leave();
  else list();
}

function keep(one) {
  const turns = one.turns.filter((turn) => turn.answer);
  if (one.discarded || !turns.length) return;
  one.changed = Date.now();
  chats.save({ ...one, turns });
  list();
}

/** Ask a question. Does nothing while another answer is running. */
async function ask(question) {
  const model = $('model').value;
  if (!question || running) return;
  if (!model) {
    await onMissing(); // the models are not loaded yet
    if ($('model').value && $('question').value.trim() === question) ask(question);
    return;
  }
  if (!chat) {
    chat = chats.make(question.slice(0, 80), model);
    $('turns').replaceChildren();
  }
  chat.model = model;
  setting.set('model', model);
  $('question').value = '';
  fitQuestion();
  const turn = { question, model, answer: '', details: null, end: null, thumbs: null };
  chat.turns.push(turn);
  await runTurn(chat, turn);
}

async function runTurn(owner, turn) {
  const view = turnView(turn, () => keep(owner));
  $('turns').append(view.root);
  view.wait();
  busy(true);
  announce('Reading the documents.');
  view.root.scrollIntoView({ block: 'end' });
  const own = (running = new AbortController());
  try {
    await receive(owner, turn, view, own.signal);
    announce(`Answer: ${turn.answer}`);
  } catch (error) {
    if (error.name === 'AbortError') turn.end = 'stopped';
    else {
      turn.end = 'broken';
      showError(owner, turn, view, error);
    }
  }
  if (running === own) running = null;
  busy(running !== null);
  if (turn.answer || turn.end === 'stopped') settle(owner, turn, view);
}

/** Show and save an answer, or the part that was received. */
function settle(owner, turn, view) {
  const errors = [...view.below.children];
  const following = nearEnd();
  view.finish();
  view.below.append(...errors);
  keep(owner);
  if (turn.details && owner === chat) offerSources(turn);
  if (following) $('turns').scrollTop = $('turns').scrollHeight;
}

async function receive(owner, turn, view, signal) {
  const earlier = owner.turns.slice(0, owner.turns.indexOf(turn)).filter(({ answer }) => answer);
  const messages = earlier.flatMap(({ question, answer }) => [
    { role: 'user', content: question },
    { role: 'assistant', content: answer },
  ]);
  let frame = 0;
  try {
    for await (const event of api.answer(turn.model, [...messages, { role: 'user', content: turn.question }], signal)) {
      const choice = event.choices[0];
      turn.answer += choice?.delta.content ?? '';
      turn.end = choice?.finish_reason ?? turn.end;
      if (event.ragfm) setDetails(turn, event.ragfm);
      frame ||= requestAnimationFrame(() => {
        frame = 0;
        const following = nearEnd();
        if (turn.answer) view.grow();
        if (following) $('turns').scrollTop = $('turns').scrollHeight;
      });
    }
  } finally {
    cancelAnimationFrame(frame);
  }
}

/** Keep the details that are shown: chats are stored in the browser, which has little room. */
function setDetails(turn, details) {
  turn.answer = details.answer;
  const passages = details.passages
    .filter((hit) => hit.n !== null)
    .map((hit) => Object.fromEntries(HIT_FIELDS.map((name) => [name, hit[name]])));
  const { status, quote, citations, contradictions, nearest, unsupported, query, seconds, notes, rating, calculation } = details;
  // Of a passage that is shown, only the picture was dropped.
  const shown = new Set(details.passages.filter((hit) => hit.n !== null).map((hit) => hit.chunk_id));
  const left = details.dropped.filter((one) => !shown.has(one.chunk_id));
  const hidden = !details.shown.startsWith(details.answer); // an unsure answer of a small reader
  const own = { status, quote, hidden, citations, contradictions, nearest, unsupported, query, seconds, notes, rating, calculation };
  turn.details = { ...own, passages, dropped: left.map((one) => one.why) };
}

function showError(owner, turn, view, error) {
  if (error.status === 401) onMissing(error.message);
  const again = h('button', { type: 'button' }, 'Ask again');
  again.addEventListener('click', () => {
    if (running) return;
    view.root.remove();
    Object.assign(turn, { answer: '', details: null, end: null });
    runTurn(owner, turn);
  });
  if (error.retryAfter) countDown(again, error.retryAfter);
  if (!turn.answer) view.root.querySelector('.text').replaceChildren();
  view.below.replaceChildren(h('div', { class: 'trouble', role: 'alert' }, h('p', {}, error.message), again));
  view.root.scrollIntoView({ block: 'end' });
}

/** Disable the button until the seconds have passed. */
function countDown(button, seconds) {
  button.disabled = seconds > 0;
  button.textContent = seconds > 0 ? `Ask again in ${seconds} s` : 'Ask again';
  if (seconds > 0) setTimeout(() => countDown(button, seconds - 1), 1000);
}

function busy(on) {
  $('send').hidden = on;
  $('stop').hidden = !on;
  $('turns').setAttribute('aria-busy', String(on));
}

function nearEnd() {
  const turns = $('turns');
  return turns.scrollHeight - turns.scrollTop - turns.clientHeight < NEAR_END;
}
