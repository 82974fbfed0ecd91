// The sources beside an answer: the passages that its reader was given, and in them the words that are cited.

import * as api from './api.js';
import { $, announce, count, fill, h, icon, iconButton, unitsOf, webLink } from './dom.js';
import { passage } from './passage.js';

const FAULTS = {
  fabricated: 'It is cited for something that no passage says.',
  misattributed: 'It is cited for something that another passage says.',
  stitched: 'It is cited for something that is put together of several places, and stands nowhere as a whole.',
  irrelevant: 'It says so, but that is hardly what was asked for.',
  uncertain: 'It says so. See whether that is what was asked for.',
};
/** The class of a citation that is not verified: it does not hold, or may not be what was asked for. */
export const doubt = ({ verified, fault }) => (verified ? null : fault === 'uncertain' ? 'unsure' : 'doubtful');

const NEAR = 20000; // characters of a document that are shown around a place

let back = null; // where the focus goes when the panel is closed

export const nameOf = (uri) => uri.replace(/\/+$/, '').split('/').at(-1) || uri;

const folderOf = (uri) => uri.slice(0, uri.lastIndexOf('/'));

/** “page 2”, “Sheet1!A5”, or nothing. */
export const placeOf = (where) => (where.page ? `page ${where.page}` : (where.place ?? ''));

/** The sources of a turn, at one of its citations. */
export function showSources(turn, index = null, from = null) {
  const { citations, passages, query, dropped } = turn.details;
  const panel = $('sources');
  const cited = passages.filter((hit) => citations.some((citation) => citation.n === hit.n));
  const others = passages.filter((hit) => !cited.includes(hit));
  const active = index === null ? null : citations[index];
  fill(
    panel,
    h(
      'div',
      { class: 'head' },
      h('h2', { id: 'sources-title', tabindex: -1 }, 'Sources'),
      iconButton('close', 'Close the sources', closeSources),
    ),
    h('p', { class: 'foot' }, `To: ${turn.question}`),
    query && query !== turn.question ? h('p', { class: 'foot' }, `Searched for: ${query}`) : null,
    cited.map((hit) => card(turn, hit, active)),
    others.length
      ? h(
          'details',
          { open: !cited.length },
          h('summary', {}, `${cited.length ? 'Read too' : 'Read'}, not cited (${others.length})`),
          others.map((hit) => card(turn, hit, null)),
        )
      : null,
    dropped
      ? h('p', { class: 'foot' }, `${count(dropped, 'more passage')} did not fit in what the reader can take.`)
      : null,
  );
  open(from);
  if (index === null) return;
  const mark = panel.querySelector('mark.active') ?? panel.querySelector(`[data-n="${active.n}"]`);
  if (!mark) return;
  mark.setAttribute('tabindex', '-1');
  mark.focus({ preventScroll: true });
  mark.scrollIntoView({ block: 'center' });
}

function card(turn, hit, active) {
  const citations = turn.details.citations.filter((citation) => citation.n === hit.n);
  const spans = citations
    .map((citation) => ({
      start: citation.start - hit.start,
      end: citation.end - hit.start,
      class: [citation === active && 'active', doubt(citation)].filter(Boolean).join(' ') || null,
    }))
    .filter(
      (span) =>
        !active ||
        active.n !== hit.n ||
        span.start === active.start - hit.start ||
        span.end <= active.start - hit.start ||
        span.start >= active.end - hit.start,
    );
  const faults = new Map(
    citations
      .filter((citation) => !citation.verified)
      .map((c) => [c.fault, FAULTS[c.fault] ?? 'It is cited for something that it does not bear out.']),
  );
  const first = hit.text.search(/[^#\s]/); // a heading that it begins with is shown there
  const headings = (hit.headings ?? []).filter((heading) => !hit.text.startsWith(heading, first));
  const place = [placeOf(hit), ...headings].filter(Boolean).join(' · ');
  return h(
    'section',
    { class: 'source', 'data-n': hit.n, tabindex: -1, 'aria-label': `Source ${hit.n}: ${nameOf(hit.uri)}` },
    h('h3', {}, h('span', { class: 'n' }, hit.n), nameOf(hit.uri)),
    h(
      'p',
      { class: 'where' },
      h('span', { class: 'folder' }, folderOf(hit.uri)),
      place ? h('span', { class: 'place' }, place) : null,
    ),
    h('div', { class: 'passage' }, passage(hit.text, spans)),
    [...faults].map(([fault, said]) => h('p', { class: fault === 'uncertain' ? 'note' : 'fault' }, said)),
    h(
      'button',
      { type: 'button', class: 'plain', onclick: () => showDocument(turn.model, hit.uri, hit, spans) },
      'Show in the document',
    ),
  );
}

export function hideSources() {
  $('sources').hidden = true;
  $('sources').replaceChildren();
  shade(false);
}

/** Else the panel lies over the page. */
const wide = window.matchMedia('(min-width: 1080px)');

function open(from) {
  $('sources').hidden = false;
  if (!from) return;
  back = from;
  if (!wide.matches) shade(true);
}

function shade(on) {
  $('sources').classList.toggle('over', on);
  $('shade').hidden = !on;
  for (const part of document.querySelectorAll('.skip, .bar, #side, main')) part.inert = on;
}

export function closeSources() {
  const over = $('sources').classList.contains('over');
  shade(false);
  if (!over) $('sources').hidden = true;
  back?.focus();
  back = null;
}

/** After an answer: on a wide screen its sources stand beside it by themselves. */
export function offerSources(turn) {
  if (wide.matches) showSources(turn);
}

document.addEventListener('keydown', (event) => {
  if (event.key !== 'Escape' || !$('sources').classList.contains('over') || document.querySelector('dialog[open]'))
    return;
  event.preventDefault();
  closeSources();
});
wide.addEventListener('change', () => wide.matches && shade(false));

/** A document's text, at a passage of it. */
export async function showDocument(model, uri, hit = null, spans = []) {
  const body = $('document-body');
  $('document-title').textContent = nameOf(uri);
  fill(body, h('p', { class: 'foot' }, 'Loading…'));
  if (!$('document').open) $('document').showModal();
  $('document-title').focus();
  const start = Math.max(0, (hit?.start ?? 0) - NEAR);
  try {
    const found = await api.documentText(uri, api.collectionOf(model), start, (hit?.end ?? start) - start + NEAR);
    const about = [folderOf(uri), hit && placeOf(hit), found.characters && count(found.characters, 'character')];
    const link = webLink(uri, 'Open the original', icon('out'));
    fill(body, h('p', { class: 'where' }, about.filter(Boolean).join(' · '), link), shownText(found, hit, spans));
  } catch (error) {
    fill(body, h('p', { class: 'error' }, error.message));
    announce(error.message);
  }
  const mark = body.querySelector('mark.active') ?? body.querySelector('mark') ?? body.querySelector('.here');
  mark?.scrollIntoView({ block: 'center' });
}

/** A part of a text, around a passage. It may have changed since the answer: then nothing in it is marked. */
function shownText({ text, start, characters }, hit, spans) {
  if (!text) return h('p', { class: 'foot' }, 'It has no text.');
  const units = unitsOf(text);
  const [from, to] = hit ? [units(hit.start - start), units(hit.end - start)] : [0, 0];
  const same = hit && text.slice(from, to) === hit.text;
  const left = (number) =>
    number > 0 ? h('p', { class: 'foot' }, `${count(number, 'character')} left out here.`) : null;
  const plain = (words) => (words ? h('div', { class: 'passage' }, passage(words, [])) : null);
  return [
    hit && !same ? h('p', { class: 'fault' }, 'The document has changed since the answer was given.') : null,
    left(start),
    same
      ? [plain(text.slice(0, from)), h('div', { class: 'here' }, passage(hit.text, spans)), plain(text.slice(to))]
      : plain(text),
    left(characters - start - [...text].length),
  ];
}
