// DOM helpers. Nothing on this page turns text into HTML.

export const $ = (id) => document.getElementById(id);

/** An element. Attributes that are functions (`onclick`) become listeners; `true` sets an attribute, `false` and null omit it. */
export const h = (tag, attributes = {}, ...children) => make(document.createElement(tag), attributes, children);

/** An SVG element, as `h` makes others. */
export const svg = (tag, attributes = {}, ...children) =>
  make(document.createElementNS('http://www.w3.org/2000/svg', tag), attributes, children);

function make(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false)
      element.setAttribute(name, value === true ? '' : value);
  }
  return fill(element, ...children);
}

/** Replace an element's children. Nested arrays are flattened, null is skipped. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(4).filter((child) => child !== null && child !== undefined));
  return element;
}

export const icon = (name) => svg('svg', { 'aria-hidden': 'true' }, svg('use', { href: `#i-${name}` }));

export function iconButton(name, label, onclick, attributes = {}) {
  return h(
    'button',
    { type: 'button', class: 'icon', 'aria-label': label, title: label, onclick, ...attributes },
    icon(name),
  );
}

/** Announce a text to screen readers. */
export function announce(text) {
  $('status').textContent = '';
  setTimeout(() => ($('status').textContent = text), 50); // a repeated text is announced again
}

/** A link to another site; null if the address is not http(s). */
export function webLink(address, ...children) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return null;
  }
  if (url.protocol !== 'https:' && url.protocol !== 'http:') return null;
  return h('a', { href: url.href, target: '_blank', rel: 'noopener noreferrer nofollow' }, children);
}

/** Returns a function from code point offsets, as the server counts, to UTF-16 offsets of `text`. */
export function unitsOf(text) {
  if (!/[\ud800-\udbff]/.test(text)) return (offset) => offset;
  const units = [0];
  for (const point of text) units.push(units.at(-1) + point.length);
  return (offset) => units[Math.max(0, Math.min(offset, units.length - 1))];
}

/** Ask the user to confirm a deletion. */
export function confirmDeletion(title, text, yes = 'Delete') {
  const dialog = $('confirm');
  $('confirm-title').textContent = title;
  $('confirm-text').textContent = text;
  $('confirm-yes').textContent = yes;
  dialog.showModal();
  $('confirm-no').focus();
  return new Promise((resolve) => {
    let answer = false;
    $('confirm-yes').onclick = () => ((answer = true), dialog.close());
    $('confirm-no').onclick = () => dialog.close();
    dialog.addEventListener('close', () => resolve(answer), { once: true });
  });
}

export function sizeOf(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  return bytes < 1e6 ? `${Math.round(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

export const count = (number, noun) => `${number.toLocaleString('en')} ${noun}${number === 1 ? '' : 's'}`;
