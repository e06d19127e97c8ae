// Calls to the server, and its stream of events. EventSource cannot send a token, fetch can.

const KEY = "stepwell.token";
const ANSWER_MS = 60_000;

/** What the server says against a call: a sentence for people, and a code. */
export class Problem extends Error {
  constructor(status, fields, secret) {
    super(fields.detail ?? fields.title ?? `The server answered with status ${status}`);
    this.status = status;
    this.code = fields.code ?? "";
    this.secret = secret; // the token that it was asked with
  }
}

/** Nobody answered: the server is away, or the network. */
export class NoAnswer extends Error {}

/** Return "sessionStorage" or "localStorage"; where the browser gives a page none, one until it is left. */
export function storage(kind) {
  try {
    globalThis[kind].getItem(KEY);
    return globalThis[kind];
  } catch {
    const kept = new Map();
    return {
      getItem: (name) => kept.get(name) ?? null,
      setItem: (name, text) => kept.set(name, text),
      removeItem: (name) => kept.delete(name),
    };
  }
}

// Of this tab and origin, gone with the tab, and sent nowhere by itself.
const ofTab = storage("sessionStorage");
export const token = () => ofTab.getItem(KEY);
export const remember = (secret) => ofTab.setItem(KEY, secret);
export const forget = () => ofTab.removeItem(KEY);

export const modelPath = (name) => `/v1/models/${encodeURIComponent(name)}`;

async function request(path, secret, { method = "GET", body, headers = {}, signal } = {}) {
  const all = { ...headers };
  if (secret !== null) all.Authorization = `Bearer ${secret}`;
  if (body !== undefined) all["Content-Type"] = "application/json";
  try {
    return await fetch(path, {
      method, headers: all, signal, cache: "no-store", credentials: "omit", redirect: "error",
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new NoAnswer(`The server did not answer: ${error.message}`);
  }
}

async function checked(answer, secret) {
  if (answer.ok) return answer;
  let fields = {};
  try {
    fields = await answer.json();
  } catch {
    // Not of our server, such as a proxy's: the status is all there is to say.
  }
  throw new Problem(answer.status, fields, secret);
}

/** Return the answer itself, for its headers or bytes. */
export async function send(path, options = {}) {
  const signal = options.signal ?? AbortSignal.timeout(options.timeoutMs ?? ANSWER_MS);
  const secret = token();
  return checked(await request(path, secret, { ...options, signal }), secret);
}

/** Return the JSON that a call answers. */
export async function call(path, options = {}) {
  const answer = await send(path, options);
  try {
    return await answer.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new NoAnswer(`The server's answer broke off: ${error.message}`);
  }
}

/** Yield the server-sent events of a path: {id, kind, data}; ends when the server ends it. */
export async function* events(path, signal) {
  const secret = token();
  const answer = await checked(await request(path, secret, { signal }), secret);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const messages = (rest + value).split("\n\n");
    rest = messages.pop();
    for (const message of messages) yield parsed(message);
  }
}

function parsed(message) {
  const event = { id: null, kind: "message", data: null };
  for (const line of message.split("\n")) {
    if (line.startsWith("id: ")) event.id = Number(line.slice(4));
    else if (line.startsWith("event: ")) event.kind = line.slice(7);
    else if (line.startsWith("data: ")) event.data = JSON.parse(line.slice(6));
  }
  return event;
}
