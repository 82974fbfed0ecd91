// The page of insights: what was asked, bad answers first, and each question with its passages.

import * as api from './api.js';
import { $, count, fill, h, svg } from './dom.js';
import { explain, offerCollections } from './owners.js';
import { closeSources, nameOf, showSources } from './sources.js';

const BADGES = { down: 'rated down', not_found: 'not answered', unsure: 'unsure', up: 'rated up' };
const PARTS = { search: 'Search', read: 'Until the first word', write: 'Writing', total: 'Total' };
const FEW = 5; // rows of a list before it is opened

const day = (at) => new Date(at).toLocaleDateString('en', { day: 'numeric', month: 'short', timeZone: 'UTC' });
const seconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} s`;

async function load() {
  closeSources();
  const model = $('model').value;
  try {
    show(model, await api.insights(model, $('days').value));
  } catch (error) {
    fail(error);
  }
}

function fail(error) {
  fill($('report'), h('div', { class: 'trouble' }, h('p', {}, explain(error))));
}

function show(model, { data, everybody }) {
  const { counts, latency } = data;
  const total = latency.find(({ part }) => part === 'total');
  fill(
    $('report'),
    h(
      'div',
      { class: 'tiles' },
      tile(counts.asked, everybody ? 'questions' : 'questions with your key'),
      tile(counts.unanswered, 'not answered', 'bad'),
      tile(counts.down, 'rated down', 'bad'),
      tile(counts.unsure, 'unsure'),
      total ? tile(seconds(total.p50), 'median time') : null,
    ),
    section(
      'Questions, worst first',
      data.groups.length
        ? h('ol', { class: 'asked' }, data.groups.map((group) => groupRow(model, group)))
        : h('p', { class: 'foot' }, 'Nobody has asked anything in this time.'),
      data.all_groups > data.groups.length
        ? h('p', { class: 'foot' }, `${count(data.all_groups - data.groups.length, 'better question')} not shown.`)
        : null,
    ),
    data.days.length ? section('By day (UTC)', chart(data.days)) : null,
    h(
      'div',
      { class: 'columns' },
      section('Cited most', list(data.cited, ({ uri, answers }) => [nameOf(uri), h('span', { class: 'place' }, answers)])),
      section(`Never cited (${data.uncited.toLocaleString('en')})`, list(data.never, (uri) => [nameOf(uri)])),
      section('Time', latencyTable(latency)),
    ),
    section(
      'Export',
      h(
        'div',
        { class: 'row' },
        download(model, 'questions', 'Rated answers as questions for ragfm eval'),
        download(model, 'labels', 'Labels of citations for ragfm log review'),
      ),
    ),
  );
}

const section = (title, ...parts) => h('section', {}, h('h2', {}, title), parts);

const tile = (number, label, kind = null) =>
  h('p', { class: number ? kind : null }, h('b', {}, number.toLocaleString('en')), ' ', label);

/** A group of near-duplicate questions: the worst one, and the others below it. */
function groupRow(model, { counts, questions }) {
  const marks = [
    ['down', counts.down],
    ['not_found', counts.unanswered],
    ['unsure', counts.unsure],
    ['up', counts.up],
  ].filter(([, number]) => number);
  const more = counts.asked - questions.length;
  return h(
    'li',
    {},
    questionButton(model, questions[0]),
    h(
      'p',
      { class: 'where' },
      counts.asked > 1 ? h('b', {}, `asked ${counts.asked} times`) : null,
      marks.map(([kind, number]) =>
        h('span', { class: `badge ${kind}` }, BADGES[kind] + (counts.asked > 1 ? ` ${number}×` : '')),
      ),
      h('span', {}, day(questions[0].at)),
    ),
    questions.length > 1
      ? h(
          'details',
          {},
          h('summary', {}, more > 0 ? `${questions.length - 1} of ` : '', count(counts.asked - 1, 'similar question')),
          h('ul', {}, questions.slice(1).map((one) => h('li', {}, questionButton(model, one), ' ', mood(one)))),
        )
      : null,
  );
}

function mood({ thumbs, status, at }) {
  const kind = [thumbs, status].find((one) => BADGES[one]);
  return h('span', { class: 'where' }, kind ? h('span', { class: `badge ${kind}` }, BADGES[kind]) : null, day(at));
}

function questionButton(model, { id, question }) {
  const open = async ({ currentTarget }) => {
    try {
      showAnswer(model, await api.loggedAnswer(id, model), currentTarget);
    } catch (error) {
      fail(error);
    }
  };
  return h('button', { type: 'button', class: 'name', onclick: open }, question);
}

/** Show a logged answer with its passages in the panel. */
function showAnswer(model, entry, from) {
  showSources({ model, question: entry.question, details: { ...entry, dropped: [] } }, null, from);
  const hidden = 'The answer is not shown: it is from documents that were removed, or that your key may not see.';
  const about = [new Date(entry.at).toLocaleString('en'), entry.key && `key ${entry.key}`, seconds(entry.seconds.total ?? 0)];
  const title = $('sources-title');
  title.parentElement.nextElementSibling.after( // the question
    ...[
      h('p', { class: 'where' }, [entry.thumbs, entry.status].filter((one) => BADGES[one]).map((one) => h('span', { class: `badge ${one}` }, BADGES[one]))),
      h('p', entry.answer === null ? { class: 'note' } : { class: 'passage' }, entry.answer === null ? hidden : entry.answer),
      entry.correction ? h('p', { class: 'passage' }, h('b', {}, 'Correction: '), entry.correction) : null,
      h('p', { class: 'foot' }, `${about.filter(Boolean).join(' · ')} · entry ${entry.id}`),
      entry.passages.length ? null : h('p', { class: 'note' }, 'The reader read no passage that can be shown.'),
    ].filter(Boolean),
  );
  title.textContent = 'Answer';
  title.focus();
}

/** A bar for each day: all questions, and those that were not answered or rated down in another colour. */
function chart(days) {
  const byDay = new Map(days.map(({ day: name, counts }) => [name, counts]));
  const first = Date.parse(days[0].day);
  const names = Array.from({ length: (Date.parse(days.at(-1).day) - first) / 864e5 + 1 }, (_, i) =>
    new Date(first + i * 864e5).toISOString().slice(0, 10),
  );
  const highest = Math.max(...days.map(({ counts }) => counts.asked));
  const bar = (number, i, kind) =>
    svg('rect', { class: kind, x: i + 0.1, width: 0.8, y: 1 - number / highest, height: number / highest });
  const bars = names.map((name, i) => {
    const { asked = 0, unanswered = 0, down = 0 } = byDay.get(name) ?? {};
    const bad = Math.min(asked, unanswered + down);
    const title = svg('title', {}, `${name}: ${count(asked, 'question')}, ${unanswered} not answered, ${down} rated down`);
    return svg('g', {}, title, bar(asked, i, 'all'), bar(bad, i, 'bad'));
  });
  const label = `Questions by day, at most ${highest}`;
  return h(
    'figure',
    {},
    svg('svg', { viewBox: `0 0 ${Math.max(names.length, 7)} 1`, preserveAspectRatio: 'none', role: 'img', 'aria-label': label }, bars),
    h(
      'figcaption',
      { class: 'where' },
      h('span', {}, `${day(days[0].day)} – ${day(days.at(-1).day)}, at most ${highest} a day`),
      h('span', { class: 'badge down' }, 'not answered or rated down'),
    ),
  );
}

/** The first lines of a list, and the others when it is opened. */
function list(items, line) {
  if (!items.length) return h('p', { class: 'foot' }, 'None.');
  const lines = (some) => h('ul', { class: 'lines' }, some.map((item) => h('li', {}, line(item))));
  const rest = items.slice(FEW);
  return [lines(items.slice(0, FEW)), rest.length ? h('details', {}, h('summary', {}, `${rest.length} more`), lines(rest)) : null];
}

const latencyTable = (latency) =>
  h(
    'table',
    {},
    h('tr', {}, ['Part', 'median', '95 %'].map((name) => h('th', {}, name))),
    latency.map(({ part, p50, p95 }) => h('tr', {}, [PARTS[part], seconds(p50), seconds(p95)].map((cell) => h('td', {}, cell)))),
  );

function download(model, form, label) {
  const save = async () => {
    try {
      const url = URL.createObjectURL(await api.exported(model, form));
      h('a', { href: url, download: `${model}-${form}.jsonl` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 60_000);
    } catch (error) {
      fail(error);
    }
  };
  return h('button', { type: 'button', onclick: save }, label);
}

for (const name of ['model', 'days']) $(name).addEventListener('change', load);
$('document').querySelector('.close').addEventListener('click', () => $('document').close());
$('shade').addEventListener('click', closeSources);
try {
  if ((await offerCollections()).length) await load();
} catch (error) {
  fail(error);
}
