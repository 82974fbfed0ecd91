// Calls of the server's API, and its errors as texts for the user.

import { key, user } from './store.js';

export class ApiError extends Error {
  constructor(message, { status = 0, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, retryAfter });
  }
}

const UNREACHABLE = 'The server cannot be reached. Check that it is running, and check the network.';
const UPLOAD_FAILED = 'The upload failed: the file is too large for the server, or the server cannot be reached.';

function headers() {
  return { 'X-Ragfm-Page': '1', ...(key.get() ? { Authorization: `Bearer ${key.get()}` } : {}) };
}

/** Remember who has signed in. At the end of a session, the user stays the one whose chat is shown. */
function recordUser(header) {
  if (header) [user.name, user.label] = header.split(' ').map(decodeURIComponent);
  else if (header === '') user.name ??= '';
}

function describe(status, body, retryAfter) {
  const message = body?.error?.message ?? '';
  if (status === 401) {
    if (key.get()) return 'The server does not accept this key.';
    if (user.name === null) return 'The server requires a key.';
    return body?.error?.code === 'session_ended' ? message : '';
  }
  if (status === 429) {
    const why = body?.error?.code === 'rate_limit' ? 'Too many requests.' : 'The server is busy.';
    return `${why} ${retryAfter ? `Try again in ${retryAfter} s.` : 'Try again later.'}`;
  }
  return message || (status >= 500 ? `The server failed (${status}).` : `The server refused the request (${status}).`);
}

/** The error of a response. */
function failure(status, text, retryAfter) {
  let body = null;
  try {
    body = JSON.parse(text);
  } catch {
    // an error page of a proxy
  }
  const seconds = /^\d+$/.test(retryAfter ?? '') ? Number(retryAfter) : null;
  return new ApiError(describe(status, body, seconds), { status, retryAfter: seconds });
}

async function send(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers(), ...options.headers }, redirect: 'error' });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError(UNREACHABLE);
  }
  recordUser(response.headers.get('x-ragfm-user'));
  if (!response.ok) throw failure(response.status, await response.text(), response.headers.get('retry-after'));
  return response;
}

async function json(path, options) {
  try {
    return await (await send(path, options)).json();
  } catch (error) {
    if (error instanceof ApiError || error.name === 'AbortError') throw error;
    throw new ApiError(UNREACHABLE); // the body was cut off
  }
}

const post = (path, body, signal) =>
  send(path, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body), signal });

const addressOf = (uri, options, kind = 'documents') =>
  `v1/${kind}/${uri.split('/').map(encodeURIComponent).join('/')}?${new URLSearchParams(options)}`;

export const collectionOf = (model) => model.split(':')[0];

/** The server's state: `ready`, its own word if it is not ready, or `gone`. */
export async function readiness() {
  const response = await fetch('readyz').catch(() => null);
  return response === null
    ? 'gone'
    : response.ok
      ? 'ready'
      : ((await response.json().catch(() => ({}))).status ?? 'gone');
}

export const models = async () => (await json('v1/models')).data.map((model) => model.id);

export const documents = (model, after = null) =>
  json(`v1/documents?${new URLSearchParams({ model, limit: 200, ...(after === null ? {} : { after }) })}`);

export const ownDocuments = async (model) =>
  (await json(`v1/documents?${new URLSearchParams({ model, limit: 1000, mine: true })}`)).data;

export const documentText = (uri, model, start, length) => json(addressOf(uri, { model, start, length }));

const picture = async (path) => createImageBitmap(await (await send(path)).blob());

/** A page of a document, as a decoded image. */
export const pageImage = (uri, model, page, width) => picture(addressOf(uri, { model, page, width }, 'pages'));

/** The picture of a figure, as a decoded image. */
export const figureImage = (image, model) => picture(`v1/images/${image}?${new URLSearchParams({ model })}`);

/** Where a span of a document's text stands on a page: [left, top, right, bottom] for each line, as fractions of the page. */
export const pageBoxes = async (uri, model, page, { start, end }) =>
  (await json(addressOf(uri, { model, page, start, end }, 'boxes'))).boxes;

export const removeDocument = (uri, model) => json(addressOf(uri, { model }), { method: 'DELETE' });

export const insights = (model, days) => json(`v1/insights?${new URLSearchParams({ model, days })}`);

export const loggedAnswer = (id, model) => json(`v1/insights/${id}?${new URLSearchParams({ model })}`);

/** Rated answers or labels, as a file of JSON lines. */
export const exported = async (model, form) =>
  (await send(`v1/insights/export?${new URLSearchParams({ model, form })}`)).blob();

/** End the session. Returns the address that ends the provider's, or null. */
export const signOut = async () => (await json('signout', { method: 'POST' })).url;

export const review = (model, seed) => json(`v1/review?${new URLSearchParams({ model, seed })}`);

export const label = (body) => post('v1/review', body);

export const rate = (rating, thumbs, correction) => post('v1/ratings', { rating, thumbs, correction });

/** Upload a file and share it with the groups. `onProgress` gets the fraction sent, in [0, 1]. */
export function upload(file, { model, groups }, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch does not report upload progress
    request.open('POST', 'v1/documents');
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    // A server that refuses a file early may close the connection before its response is read.
    request.onerror = () => reject(new ApiError(UPLOAD_FAILED));
    request.onload = () => {
      if (request.status === 201) resolve(JSON.parse(request.responseText));
      else reject(failure(request.status, request.responseText, request.getResponseHeader('retry-after')));
    };
    const form = new FormData();
    form.append('file', file, file.name);
    form.append('model', model);
    for (const group of groups) form.append('groups', group);
    request.send(form);
  });
}

/** The events of an answer, as objects. Throws if the stream ends before the last one. */
export async function* answer(model, messages, signal) {
  const response = await post('v1/chat/completions', { model, messages, stream: true }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const parts = (rest + value).split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        if (part === 'data: [DONE]') return;
        if (!part.startsWith('data: ')) continue;
        const event = JSON.parse(part.slice(6));
        if (event.error) throw new ApiError(event.error.message);
        yield event;
      }
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === 'AbortError') throw error;
  }
  throw new ApiError('The connection broke before the end of the answer.');
}
