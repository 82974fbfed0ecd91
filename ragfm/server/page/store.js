// What stays in the browser: chats and settings in localStorage, the key in sessionStorage, until the tab is closed.

const CHATS = 'ragfm/chat/';
const KEY = 'ragfm/key';
const MOST = 100;

class Memory extends Map {
  getItem(name) {
    return this.get(name) ?? null;
  }
  setItem(name, value) {
    this.set(name, value);
  }
  removeItem(name) {
    this.delete(name);
  }
}

const inMemory = { localStorage: new Memory(), sessionStorage: new Memory() };

function storage(name) {
  try {
    window[name].getItem(KEY);
    return window[name];
  } catch {
    // blocked
    return inMemory[name];
  }
}

export const key = {
  get: () => storage('sessionStorage').getItem(KEY) ?? '',
  set: (value) => storage('sessionStorage').setItem(KEY, value),
  forget: () => storage('sessionStorage').removeItem(KEY),
};

export const setting = {
  get: (name) => storage('localStorage').getItem(`ragfm/${name}`),
  set: (name, value) => {
    try {
      if (value === null) storage('localStorage').removeItem(`ragfm/${name}`);
      else storage('localStorage').setItem(`ragfm/${name}`, value);
    } catch {
      // full: it is as it was the next time
    }
  },
};

/** Who has another key sees other chats: the names of a key's chats begin with a short hash of it (FNV-1a). */
function mine() {
  let hash = 0x811c9dc5;
  for (const unit of key.get()) hash = Math.imul(hash ^ unit.codePointAt(0), 0x01000193) >>> 0;
  return `${CHATS}${key.get() ? hash.toString(36) : 'open'}/`;
}

function names() {
  const local = storage('localStorage');
  const all = local instanceof Memory ? [...local.keys()] : Object.keys(local);
  return all.filter((name) => name.startsWith(mine()));
}

function read(name) {
  try {
    const chat = JSON.parse(storage('localStorage').getItem(name));
    return typeof chat.title === 'string' && Array.isArray(chat.turns) ? chat : null;
  } catch {
    return null;
  }
}

export const chats = {
  isOne: (name) => name === null || name.startsWith(mine()),
  /** The latest first. */
  all: () =>
    names()
      .map(read)
      .filter(Boolean)
      .sort((a, b) => b.changed - a.changed),
  get: (id) => read(mine() + id),
  make: (title, model) => ({
    id: crypto.getRandomValues(new Uint32Array(2)).join('-'),
    title,
    model,
    turns: [],
    changed: Date.now(),
  }),
  /** Keep a chat. Where there is no more room, the oldest ones go. */
  save(chat) {
    const others = this.all().filter((other) => other.id !== chat.id);
    others.splice(MOST).forEach((other) => this.remove(other.id));
    for (;;) {
      try {
        storage('localStorage').setItem(mine() + chat.id, JSON.stringify(chat));
        return;
      } catch {
        if (!others.length) return;
        this.remove(others.pop().id);
      }
    }
  },
  remove: (id) => storage('localStorage').removeItem(mine() + id),
  clear: () => names().forEach((name) => storage('localStorage').removeItem(name)),
};
