// Browser storage: chats and settings in localStorage; the key in sessionStorage, until the tab closes.

const CHATS = 'ragfm/chat/';
const KEY = 'ragfm/key';
const MAX_CHATS = 100;

/** Replaces a storage that the browser blocks. */
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
    return inMemory[name];
  }
}

export const key = {
  get: () => storage('sessionStorage').getItem(KEY) ?? '',
  set: (value) => storage('sessionStorage').setItem(KEY, value),
  forget: () => storage('sessionStorage').removeItem(KEY),
};

/** Who has signed in. The name is unique; it is null if users cannot sign in here, '' if nobody has yet. */
export const user = { name: null, label: '' };

export const setting = {
  get: (name) => storage('localStorage').getItem(`ragfm/${name}`),
  set: (name, value) => {
    try {
      if (value === null) storage('localStorage').removeItem(`ragfm/${name}`);
      else storage('localStorage').setItem(`ragfm/${name}`, value);
    } catch {
      // storage is full: the setting lasts until the page is reloaded
    }
  },
};

/** Prefix of the current chats. It contains a short hash (FNV-1a) of the key or user, so that each has its own. */
function prefix() {
  const owner = key.get() || user.name || '';
  let hash = 0x811c9dc5;
  for (const unit of owner) hash = Math.imul(hash ^ unit.codePointAt(0), 0x01000193) >>> 0;
  return `${CHATS}${owner ? hash.toString(36) : 'open'}/`;
}

function names() {
  const local = storage('localStorage');
  const all = local instanceof Memory ? [...local.keys()] : Object.keys(local);
  return all.filter((name) => name.startsWith(prefix()));
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
  isChat: (name) => name === null || name.startsWith(prefix()),
  /** Newest first. */
  all: () =>
    names()
      .map(read)
      .filter(Boolean)
      .sort((a, b) => b.changed - a.changed),
  get: (id) => read(prefix() + id),
  make: (title, model) => ({
    id: crypto.getRandomValues(new Uint32Array(2)).join('-'),
    title,
    model,
    turns: [],
    changed: Date.now(),
  }),
  /** Save a chat. The oldest chats are removed if there is no room. */
  save(chat) {
    const others = this.all().filter((other) => other.id !== chat.id);
    others.splice(MAX_CHATS).forEach((other) => this.remove(other.id));
    for (;;) {
      try {
        storage('localStorage').setItem(prefix() + chat.id, JSON.stringify(chat));
        return;
      } catch {
        if (!others.length) return;
        this.remove(others.pop().id);
      }
    }
  },
  remove: (id) => storage('localStorage').removeItem(prefix() + id),
  clear: () => names().forEach((name) => storage('localStorage').removeItem(name)),
};
