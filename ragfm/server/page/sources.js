// The sources panel: the passages that the reader received, with the cited words marked.

import * as api from './api.js';
import { $, announce, count, fill, h, icon, iconButton, svg, unitsOf, webLink } from './dom.js';
import { passage } from './passage.js';

const FAULTS = {
  fabricated: 'No passage supports the sentence that cites this one.',
  misattributed: 'Another passage supports the sentence that cites this one.',
  stitched: 'The answer combines several places of this passage. No single place says it.',
  picture: 'The answer was read from the picture, which is not checked.',
  subject: 'The passage says this, but perhaps about another subject',
  unclear: 'The passage seems to say this, but not surely. Check it.',
};
const CONTEXT = 20000; // characters of a document shown before and after a passage
const PAGE_WIDTH = 1600; // pixels

let lastFocus = null; // gets the focus when the panel closes

/** All evidence of an answer: citations, passages that contradict it, the sentences nearest to one, and the quote. */
export const evidenceOf = ({ citations, contradictions = [], nearest = [], quote = null }) => [
  ...citations,
  ...contradictions.map((item) => ({ ...item, verified: true, contradicts: true })),
  ...nearest.map((item) => ({ ...item, verified: true })),
  ...(quote ? [{ ...quote, verified: true }] : []),
];

/** The CSS class of a citation that is not verified; null if it is. */
export const supportClass = ({ verified, fault }) => (verified ? null : ['unclear', 'subject', 'picture'].includes(fault) ? 'unsure' : 'doubtful');

// Characters that could make a name look like another one: see `displayed_name` in ragfm/core/text.py.
const DISGUISES =
  /[\p{Bidi_Control}\u2041\u2044\u2215\u2216\u2571\u2572\u27cb\u27cd\u29f5\u29f8\u29f9\ufe68\uff0f\uff3c]/gu;
const displayed = (name) =>
  name.replace(DISGUISES, (found) => `\\u${found.codePointAt(0).toString(16).padStart(4, '0')}`);

export const nameOf = (uri) => displayed(uri.replace(/\/+$/, '').split('/').at(-1) || uri);

const folderOf = (uri) => displayed(uri.slice(0, uri.lastIndexOf('/')));

/** “page 2”, “Sheet1!A5”, “lines 12–40”, or nothing. */
export function placeOf({ page, place, lines }) {
  if (page) return `page ${page}`;
  if (place || !lines) return place ?? '';
  const [first, last] = lines;
  return first === last ? `line ${first}` : `lines ${first}–${last}`;
}

/** The page of a passage or citation that the server can show; null if there is none. */
function pageOf({ page }, uri) {
  if (/\.(docx|docm|odp|ppsx|pptm|pptx)$/i.test(uri)) return null;
  return page ?? (/\.(bmp|gif|jpe?g|png|tiff?|webp)$/i.test(uri) ? 1 : null);
}

/** Show the sources of a turn, with the evidence at `index` marked as active. */
export function showSources(turn, index = null, from = null) {
  const { passages, query, dropped } = turn.details;
  const evidence = evidenceOf(turn.details);
  const panel = $('sources');
  const cited = passages.filter((hit) => evidence.some((item) => item.n === hit.n));
  const others = passages.filter((hit) => !cited.includes(hit));
  const active = index === null ? null : evidence[index];
  fill(
    panel,
    h(
      'div',
      { class: 'head' },
      h('h2', { id: 'sources-title', tabindex: -1 }, 'Sources'),
      iconButton('close', 'Close the sources', closeSources),
    ),
    h('p', { class: 'foot' }, `Question: ${turn.question}`),
    query && query !== turn.question ? h('p', { class: 'foot' }, `Searched for: ${query}`) : null,
    cited.map((hit) => card(turn, hit, evidence, active)),
    others.length
      ? h(
          'details',
          { open: !cited.length },
          h('summary', {}, `Read, not cited (${others.length})`),
          others.map((hit) => card(turn, hit, [], null)),
        )
      : null,
    droppedLines(dropped),
  );
  open(from);
  if (index === null) return;
  const mark = panel.querySelector('mark.active') ?? panel.querySelector(`[data-n="${active.n}"]`);
  if (!mark) return;
  mark.setAttribute('tabindex', '-1');
  mark.focus({ preventScroll: true });
  mark.scrollIntoView({ block: 'center' });
}

/** How many passages were not read, for each reason. Chats of older versions know only the number. */
function droppedLines(reasons) {
  const known = Array.isArray(reasons) ? reasons : [];
  return [...new Set(known)].map((why) => {
    const passages = count(known.filter((one) => one === why).length, 'more passage');
    return h('p', { class: 'foot' }, `${passages} not read: ${why}.`);
  });
}

/** A passage with the evidence that it holds. */
function card(turn, hit, evidence, active) {
  const own = evidence.filter((item) => item.n === hit.n);
  const spans = own
    .map((item) => ({
      start: item.start - hit.start,
      end: item.end - hit.start,
      column: turn.details.calculation && item.row?.column,
      class: [item === active && 'active', supportClass(item)].filter(Boolean).join(' ') || null,
    }))
    .filter(
      // spans that overlap the active one give way to it
      (span) =>
        !active ||
        active.n !== hit.n ||
        span.start === active.start - hit.start ||
        span.end <= active.start - hit.start ||
        span.start >= active.end - hit.start,
    );
  const faults = new Map(
    own
      .filter((item) => !item.verified)
      .map(({ fault, missing = [] }) => [
        fault,
        (FAULTS[fault] ?? 'The passage does not support the sentence that cites it.') +
          (missing.length ? `: no mention of ${missing.join(' and ')}.` : ''),
      ]),
  );
  const first = hit.text.search(/[^#\s]/); // the passage's own heading is shown in the passage
  const headings = (hit.headings ?? []).filter((heading) => !hit.text.startsWith(heading, first));
  const place = [placeOf(hit), ...headings].filter(Boolean).join(' · ');
  const page = pageOf(own.includes(active) ? active : (own[0] ?? hit), hit.uri);
  return h(
    'section',
    { class: 'source', 'data-n': hit.n, tabindex: -1, 'aria-label': `Source ${hit.n}: ${nameOf(hit.uri)}` },
    h('h3', {}, h('span', { class: 'n' }, hit.n), nameOf(hit.uri)),
    h(
      'p',
      { class: 'where' },
      h('span', { class: 'folder' }, folderOf(hit.name || hit.uri)),
      place ? h('span', { class: 'place' }, place) : null,
    ),
    hit.image ? picture(turn.model, hit) : null,
    hit.changed
      ? h('p', { class: 'note' }, 'The document has changed since the answer.')
      : h('div', { class: 'passage' }, passage(hit.text, spans, hit.context)),
    own.some((item) => item.contradicts) ? h('p', { class: 'note' }, 'The passage contradicts the answer.') : null,
    [...faults].map(([fault, text]) => h('p', { class: ['unclear', 'subject'].includes(fault) ? 'note' : 'fault' }, text)),
    h(
      'div',
      { class: 'row' },
      h(
        'button',
        { type: 'button', class: 'plain', onclick: () => showDocument(turn.model, hit.uri, hit, spans) },
        'Show in the document',
      ),
      page
        ? h(
            'button',
            { type: 'button', class: 'plain', onclick: () => showPage(turn.model, hit, page, own, active) },
            `Show page ${page}`,
          )
        : null,
    ),
  );
}

/** The picture of a figure, which appears when it is loaded. */
function picture(model, { image, uri }) {
  const frame = h('div', { class: 'picture' });
  api
    .figureImage(image, api.collectionOf(model))
    .then((loaded) => fill(frame, drawing(loaded, `Figure in ${nameOf(uri)}`)))
    .catch((error) => fill(frame, h('p', { class: 'foot' }, error.message)));
  return frame;
}

/** A canvas with an image. The page's policy allows no images of other origins, `blob:` included. */
function drawing(image, label) {
  const canvas = h('canvas', { width: image.width, height: image.height, role: 'img', 'aria-label': label });
  canvas.getContext('2d').drawImage(image, 0, 0);
  return canvas;
}

export function hideSources() {
  $('sources').hidden = true;
  $('sources').replaceChildren();
  shade(false);
}

/** On narrower screens the panel covers the page. */
const wide = window.matchMedia('(min-width: 1080px)');

function open(from) {
  $('sources').hidden = false;
  if (!from) return;
  lastFocus = from;
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
  lastFocus?.focus();
  lastFocus = null;
}

/** Show the sources after an answer if the screen is wide enough for both. */
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

/** Show a document's text, scrolled to a passage. */
export async function showDocument(model, uri, hit = null, spans = []) {
  const body = $('document-body');
  $('document-title').textContent = nameOf(uri);
  fill(body, h('p', { class: 'foot' }, 'Loading…'));
  if (!$('document').open) $('document').showModal();
  $('document-title').focus();
  const start = Math.max(0, (hit?.start ?? 0) - CONTEXT);
  try {
    const length = (hit?.end ?? start) - start + CONTEXT;
    const part = await api.documentText(uri, api.collectionOf(model), start, length);
    const about = [folderOf(part.name), hit && placeOf(hit), part.characters && count(part.characters, 'character')];
    const link = webLink(uri, 'Open the original', icon('out'));
    fill(body, h('p', { class: 'where' }, about.filter(Boolean).join(' · '), link), documentNodes(part, hit, spans));
  } catch (error) {
    fill(body, h('p', { class: 'error' }, error.message));
    announce(error.message);
  }
  const mark = body.querySelector('mark.active') ?? body.querySelector('mark') ?? body.querySelector('.here');
  mark?.scrollIntoView({ block: 'center' });
}

/** Show a page of a document with the evidence on it marked. */
async function showPage(model, hit, page, evidence, active) {
  const body = $('document-body');
  $('document-title').textContent = nameOf(hit.uri);
  fill(body, h('p', { class: 'foot' }, 'Loading…'));
  if (!$('document').open) $('document').showModal();
  $('document-title').focus();
  const collection = api.collectionOf(model);
  const shown = evidence.filter((item) => pageOf(item, hit.uri) === page);
  try {
    const [image, ...boxes] = await Promise.all([
      api.pageImage(hit.uri, collection, page, PAGE_WIDTH),
      ...shown.map((item) => (item.box ? [item.box] : api.pageBoxes(hit.uri, collection, page, item))),
    ]);
    const classOf = (item) => [item === active && 'active', item.box && 'figure'].filter(Boolean).join(' ') || null;
    const marks = shown.flatMap((item, i) => boxes[i].map((box) => rectangle(box, classOf(item))));
    const label = `Page ${page} of ${nameOf(hit.uri)}${marks.length ? ', with the cited words marked' : ''}`;
    const layer = svg('svg', { viewBox: '0 0 1 1', preserveAspectRatio: 'none', 'aria-hidden': 'true' }, marks);
    const sheet = h('div', { class: 'page' }, drawing(image, label), layer);
    const larger = h('button', { type: 'button', 'aria-pressed': 'false', onclick: enlarge }, 'Larger');
    function enlarge() {
      larger.setAttribute('aria-pressed', sheet.classList.toggle('large'));
      scrollToMark(sheet);
    }
    const note = marks.length || !shown.length ? '' : 'The cited words cannot be located on this page.';
    fill(
      body,
      h(
        'div',
        { class: 'row' },
        h('p', { class: 'where' }, [folderOf(hit.name || hit.uri), `page ${page}`, note].filter(Boolean).join(' · ')),
        h('span', { class: 'space' }),
        larger,
      ),
      sheet,
    );
    scrollToMark(sheet);
    announce(label);
  } catch (error) {
    fill(body, h('p', { class: 'error' }, error.message));
    announce(error.message);
  }
}

const scrollToMark = (sheet) =>
  (sheet.querySelector('rect.active') ?? sheet.querySelector('rect'))?.scrollIntoView({ block: 'center' });

const rectangle = ([left, top, right, bottom], name) =>
  svg('rect', { x: left, y: top, width: right - left, height: bottom - top, class: name });

/** Nodes of a part of a document. A passage that has changed since the answer is not marked. */
function documentNodes({ text, start, characters }, hit, spans) {
  if (!text) return h('p', { class: 'foot' }, 'The document has no text.');
  const units = unitsOf(text);
  const [from, to] = hit ? [units(hit.start - start), units(hit.end - start)] : [0, 0];
  const same = hit && text.slice(from, to) === hit.text;
  const omitted = (number) =>
    number > 0 ? h('p', { class: 'foot' }, `${count(number, 'character')} omitted here.`) : null;
  const plain = (words) => (words ? h('div', { class: 'passage' }, passage(words, [])) : null);
  return [
    hit && !same ? h('p', { class: 'fault' }, 'The document has changed since the answer.') : null,
    omitted(start),
    same
      ? [plain(text.slice(0, from)), h('div', { class: 'here' }, passage(hit.text, spans, hit.context)), plain(text.slice(to))]
      : plain(text),
    omitted(characters - start - [...text].length),
  ];
}
