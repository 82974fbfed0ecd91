// Building nodes. Nothing here, or anywhere on this page, makes HTML of text.

export const $ = (id) => document.getElementById(id);

/** An element. Functions called `on…` listen; true sets an attribute; false and null leave it out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false)
      element.setAttribute(name, value === true ? '' : value);
  }
  return fill(element, ...children);
}

/** Give an element other children; lists among them are taken apart, null is left out. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(4).filter((child) => child !== null && child !== undefined));
  return element;
}

export function icon(name) {
  const space = 'http://www.w3.org/2000/svg';
  const svg = document.createElementNS(space, 'svg');
  svg.setAttribute('aria-hidden', 'true');
  svg.append(document.createElementNS(space, 'use'));
  svg.firstChild.setAttribute('href', `#i-${name}`);
  return svg;
}

export function iconButton(name, label, onclick, attributes = {}) {
  return h(
    'button',
    { type: 'button', class: 'icon', 'aria-label': label, title: label, onclick, ...attributes },
    icon(name),
  );
}

/** Tell it to those who don't see it. */
export function announce(text) {
  $('status').textContent = '';
  setTimeout(() => ($('status').textContent = text), 50); // the same words twice are told twice
}

/** A link out of this page; null where the address is not of the web. */
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

/** Where the character of a number stands in a string: the server counts code points, JavaScript UTF-16 units. */
export function unitsOf(text) {
  if (!/[\ud800-\udbff]/.test(text)) return (at) => at;
  const units = [0];
  for (const point of text) units.push(units.at(-1) + point.length);
  return (at) => units[Math.max(0, Math.min(at, units.length - 1))];
}

/** Ask whether something is to be deleted. */
export function sure(title, text, yes = 'Delete') {
  const dialog = $('sure');
  $('sure-title').textContent = title;
  $('sure-text').textContent = text;
  $('sure-yes').textContent = yes;
  dialog.showModal();
  $('sure-no').focus();
  return new Promise((resolve) => {
    let answer = false;
    $('sure-yes').onclick = () => ((answer = true), dialog.close());
    $('sure-no').onclick = () => dialog.close();
    dialog.addEventListener('close', () => resolve(answer), { once: true });
  });
}

export function sizeOf(bytes) {
  if (bytes < 1000) return `${bytes} bytes`;
  return bytes < 1e6 ? `${Math.round(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

export const count = (number, what) => `${number.toLocaleString('en')} ${what}${number === 1 ? '' : 's'}`;
