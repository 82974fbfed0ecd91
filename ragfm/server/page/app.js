// The page: models, sign-in, key, theme and menu. Starts the chat and the documents dialog.

import * as api from './api.js';
import { $, announce, h, icon } from './dom.js';
import { leave, startChat } from './chat.js';
import { startDocuments } from './documents.js';
import { closeSources } from './sources.js';
import { chats, key, setting, user } from './store.js';

const POLL = 1000; // milliseconds between requests for the server's state

// --- Theme ---

const THEMES = { system: ['theme', 'dark'], dark: ['moon', 'light'], light: ['sun', 'system'] };

function showTheme() {
  const current = document.documentElement.dataset.theme ?? 'system';
  const [iconName, next] = THEMES[current];
  $('theme').replaceChildren(icon(iconName));
  const label = `Theme: ${current}. Change to ${next}.`;
  $('theme').setAttribute('aria-label', label);
  $('theme').title = label;
  $('theme').onclick = () => {
    if (next === 'system') delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    setting.set('theme', next === 'system' ? null : next);
    showTheme();
  };
}

// --- Menu, on narrow screens ---

function startMenu() {
  const set = (on) => {
    document.body.classList.toggle('menu', on);
    $('menu').setAttribute('aria-expanded', String(on));
    $('menu').setAttribute('aria-label', on ? 'Close the chats' : 'Chats');
  };
  $('menu').addEventListener('click', () => {
    set(!document.body.classList.contains('menu'));
    if (document.body.classList.contains('menu')) $('new').focus();
  });
  document.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape' || !document.body.classList.contains('menu')) return;
    event.preventDefault();
    set(false);
    $('menu').focus();
  });
  document.querySelector('main').addEventListener('click', () => set(false));
  $('shade').addEventListener('click', closeSources);
}

// --- Sign-in ---

const FAILURES = {
  sign_in_denied: 'The sign-in was cancelled or refused.',
  sign_in_expired: 'Signing in took too long, or was started in another window. Try again.',
  sign_in_failed: 'Signing in failed. The log of the server has the reason.',
  sign_in_unavailable: 'Nobody can sign in now. Try again later, or use a key.',
};
let failed = FAILURES[location.hash.slice(1)] ?? '';
if (failed) history.replaceState(null, '', location.pathname + location.search);

/** Ask who the user is. */
function identify(message) {
  if (user.name === null || key.get()) askForKey(message);
  else showAccount(failed || message);
  failed = '';
}

function showAccount(message, signedIn = false) {
  labelKey(signedIn);
  $('account-title').textContent = signedIn ? 'Account' : 'Sign in';
  $('account-text').textContent = signedIn ? `You are signed in as ${user.label}.` : 'Sign in to ask these documents.';
  $('account-error').textContent = message;
  $('sign-in').hidden = $('key-instead').hidden = signedIn;
  $('sign-out').hidden = $('account-kept').hidden = !signedIn;
  if (!$('account').open) $('account').showModal();
}

/** Show the button for the key, or for the account of who is or may be signed in. */
function labelKey(signedIn) {
  const account = user.name !== null && !key.get();
  const label = account ? (signedIn ? `Signed in as ${user.label}` : 'Sign in') : 'Key';
  $('key-open').hidden = false;
  $('key-open').replaceChildren(icon(account ? 'user' : 'key'));
  $('key-open').setAttribute('aria-label', label);
  $('key-open').title = label;
}

function startAccount() {
  $('sign-in').addEventListener('click', () => location.assign('signin'));
  $('sign-out').addEventListener('click', async () => {
    try {
      location.assign((await api.signOut()) ?? '.');
    } catch (error) {
      $('account-error').textContent = error.message;
    }
  });
  $('key-instead').addEventListener('click', () => {
    $('account').close();
    askForKey();
  });
}

// --- Key ---

function askForKey(message = '') {
  labelKey(false);
  $('key-error').textContent = key.get() ? message : '';
  $('key-forget').hidden = !key.get();
  $('key').value = '';
  if (!$('key-dialog').open) $('key-dialog').showModal();
  $('key').focus();
}

function startKey() {
  $('key-open').addEventListener('click', () => {
    if (user.name && !key.get()) showAccount('', true);
    else identify('');
  });
  $('key-form').addEventListener('submit', async (event) => {
    event.preventDefault();
    const before = key.get();
    key.set($('key').value.trim());
    try {
      await loadModels();
      $('key-dialog').close();
      if (before !== key.get()) leave();
      untilReady();
    } catch (error) {
      $('key-error').textContent = error.message;
      if (before) key.set(before);
      else key.forget();
      $('key').select();
    }
  });
  $('key-forget').addEventListener('click', () => {
    chats.clear();
    key.forget();
    $('key-dialog').close();
    leave();
    start();
  });
}

// --- Models ---

async function loadModels() {
  const names = await api.models();
  const chosen = setting.get('model');
  $('model').replaceChildren(...names.map((name) => h('option', { value: name }, name)));
  if (names.includes(chosen)) $('model').value = chosen;
  if (key.get() || user.name) labelKey(true);
  else $('key-open').hidden = true;
  showHint(names.length ? '' : 'This key has access to no collection.');
}

/** Show below the question why it cannot be answered; the usual hint if `text` is empty. */
function showHint(text) {
  if ($('hint').textContent === text) return;
  $('hint').textContent = text || HINT;
  $('hint').classList.toggle('note', Boolean(text));
  if (text) announce(text);
}

const HINT = $('hint').textContent;

async function start() {
  const before = user.name;
  try {
    await loadModels();
    if (user.name && user.name !== before) leave(); // shows the user's chats
  } catch (error) {
    if (error.status === 401) return identify(error.message);
    showHint(error.message);
    return setTimeout(start, error.retryAfter ? error.retryAfter * 1000 : 3 * POLL);
  }
  return untilReady();
}

async function untilReady() {
  const state = await api.readiness();
  if (state === 'ready') return showHint('');
  showHint(
    state === 'loading models'
      ? 'The models are loading. You can already ask.'
      : 'The server is shutting down or cannot be reached.',
  );
  return setTimeout(untilReady, POLL);
}

// --- Start ---

for (const button of document.querySelectorAll('dialog .close'))
  button.addEventListener('click', () => button.closest('dialog').close());
for (const dialog of document.querySelectorAll('dialog')) {
  dialog.addEventListener('click', (event) => event.target === dialog && dialog.close()); // on the backdrop
}
showTheme();
startMenu();
startAccount();
startKey();
startChat((message) => (message ? identify(message) : start()));
startDocuments(() => $('model').value);
start();
