// The conversation: what is asked, the answer as it comes, and what is kept of both.

import * as api from './api.js';
import { $, announce, h, sure } from './dom.js';
import { turnView } from './answer.js';
import { hideSources, offerSources } from './sources.js';
import { chats, setting } from './store.js';

const NEAR_END = 120; // pixels from the end within which the page follows the answer
const SHOWN = ['uri', 'text', 'start', 'end', 'page', 'place', 'headings', 'n'];

let chat = null; // the one that is shown; null where nothing was asked yet
let running = null; // the AbortController of the answer that is being given
let lacking = () => {};

/** Start; `lacks` is called where a key or a model is wanted, with what the server says. */
export function startChat(lacks) {
  lacking = lacks;
  const question = $('question');
  $('ask').addEventListener('submit', (event) => {
    event.preventDefault();
    ask(question.value.trim());
  });
  question.addEventListener('input', grown);
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
      !(await sure(
        'Delete all chats?',
        'They are kept in this browser alone: nobody can bring them back.',
        'Delete all',
      ))
    )
      return;
    chats.clear();
    leave();
  });
  window.addEventListener('storage', (event) => chats.isOne(event.key) && list());
  show(null);
}

function grown() {
  const question = $('question');
  question.rows = Math.min(8, Math.max(1, question.value.split('\n').length));
  $('send').disabled = !question.value.trim();
}

/** Begin a new chat, and keep no more of the one that is shown: it was deleted, or is somebody else's. */
export function leave() {
  if (chat) chat.left = true;
  show(null);
}

/** Show a chat, or a new one. */
export function show(shown) {
  running?.abort();
  chat = shown;
  hideSources();
  $('turns').replaceChildren(...(chat ? chat.turns.map((turn) => finished(turn)) : [welcome()]));
  if (chat && [...$('model').options].some((option) => option.value === chat.model)) $('model').value = chat.model;
  document.body.classList.remove('menu');
  $('menu').setAttribute('aria-expanded', 'false');
  list();
  const last = chat?.turns.at(-1);
  if (last?.details) offerSources(last);
  $('turns').scrollTop = $('turns').scrollHeight;
  grown();
  $('question').focus();
}

function finished(turn) {
  const view = turnView(turn, () => keep(chat));
  view.finish();
  return view.root;
}

function welcome() {
  const tips = [
    'Ask in a whole sentence, then go on from the answer.',
    'Press a number to see the words that it stands for.',
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
  if (!(await sure('Delete this chat?', one.title))) return;
  chats.remove(one.id);
  if (one.id === chat?.id) leave();
  else list();
}

function keep(one) {
  const turns = one.turns.filter((turn) => turn.answer);
  if (one.left || !turns.length) return;
  one.changed = Date.now();
  chats.save({ ...one, turns });
  list();
}

/** Ask a question; where one is being answered, nothing happens. */
async function ask(question) {
  const model = $('model').value;
  if (!question || running) return;
  if (!model) {
    await lacking(); // it was asked before the models were known
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
  grown();
  const turn = { question, model, answer: '', details: null, end: null, thumbs: null };
  chat.turns.push(turn);
  await give(chat, turn);
}

async function give(whose, turn) {
  const view = turnView(turn, () => keep(whose));
  $('turns').append(view.root);
  view.wait();
  busy(true);
  announce('The documents are being read.');
  view.root.scrollIntoView({ block: 'end' });
  const mine = (running = new AbortController());
  try {
    await receive(whose, turn, view, mine.signal);
    announce(`Answer: ${turn.answer}`);
  } catch (error) {
    if (error.name === 'AbortError') turn.end = 'stopped';
    else {
      turn.end = 'broken';
      failed(whose, turn, view, error);
    }
  }
  if (running === mine) running = null;
  busy(running !== null);
  if (turn.answer || turn.end === 'stopped') settle(whose, turn, view);
}

/** An answer that has come, or the part of it that has. */
function settle(whose, turn, view) {
  const trouble = [...view.below.children];
  const following = nearEnd();
  view.finish();
  view.below.append(...trouble);
  keep(whose);
  if (turn.details && whose === chat) offerSources(turn);
  if (following) $('turns').scrollTop = $('turns').scrollHeight;
}

async function receive(whose, turn, view, signal) {
  const said = whose.turns.slice(0, whose.turns.indexOf(turn)).filter((one) => one.answer);
  const messages = said.flatMap((one) => [
    { role: 'user', content: one.question },
    { role: 'assistant', content: one.answer },
  ]);
  let frame = 0;
  try {
    for await (const event of api.answer(turn.model, [...messages, { role: 'user', content: turn.question }], signal)) {
      const choice = event.choices[0];
      turn.answer += choice?.delta.content ?? '';
      turn.end = choice?.finish_reason ?? turn.end;
      if (event.ragfm) adopt(turn, event.ragfm);
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

/** Of all that is known of an answer, what is shown: it is kept in the browser, which has little room. */
function adopt(turn, known) {
  turn.answer = known.answer;
  const passages = known.passages
    .filter((hit) => hit.n !== null)
    .map((hit) => Object.fromEntries(SHOWN.map((name) => [name, hit[name]])));
  const { citations, unsupported, abstained, query, seconds, rating } = known;
  turn.details = { citations, unsupported, abstained, query, seconds, rating, passages, dropped: known.dropped.length };
}

function failed(whose, turn, view, error) {
  if (error.status === 401) lacking(error.message);
  const again = h('button', { type: 'button' }, 'Ask again');
  again.addEventListener('click', () => {
    if (running) return;
    view.root.remove();
    Object.assign(turn, { answer: '', details: null, end: null });
    give(whose, turn);
  });
  if (error.retryAfter) wait(again, error.retryAfter);
  if (!turn.answer) view.root.querySelector('.text').replaceChildren();
  view.below.replaceChildren(h('div', { class: 'trouble', role: 'alert' }, h('p', {}, error.message), again));
  view.root.scrollIntoView({ block: 'end' });
}

/** Count the seconds until it may be asked again. */
function wait(button, seconds) {
  button.disabled = seconds > 0;
  button.textContent = seconds > 0 ? `Ask again in ${seconds} s` : 'Ask again';
  if (seconds > 0) setTimeout(() => wait(button, seconds - 1), 1000);
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
