// What the pages for owners share.

import * as api from './api.js';
import { $, h } from './dom.js';

/** An error in words. */
export const explain = (error) =>
  error.status === 401 ? ['Sign in or enter a key in the ', h('a', { href: './' }, 'chat'), ' first.'] : error.message;

/** Offer the collections of the key, and return their names. */
export async function offerCollections() {
  const names = [...new Set((await api.models()).map(api.collectionOf))];
  $('model').replaceChildren(...names.map((name) => h('option', { value: name }, name)));
  return names;
}
