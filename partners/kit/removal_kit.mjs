/* Receive removal notices and answer them. One file, no packages, Node 18 or newer: copy it.

     const receiver = new Receiver({ partner: "acme", take: storeIt, secrets: ["whsec_…"] });
     const { status, headers, body } = await receiver.receive(request.headersDistinct, rawBody); // any web framework
     await new Client({ baseUrl: "https://removal.example", apiKey: "rk_…" }).acknowledge([{ sequence: 7, status: "completed" }]);

   Licence: Apache-2.0. Signatures follow Standard Webhooks 1.0.0 (https://www.standardwebhooks.com). */

import { createHmac, createPrivateKey, createPublicKey, randomBytes, sign, timingSafeEqual, verify as verifySignature } from "node:crypto";
import { setTimeout as wait } from "node:timers/promises";

export const TOLERANCE_SECONDS = 300;
export const MAX_SIGNATURES = 8; // rotation needs two a version; a longer list is somebody making us work
export const MAX_BODY_BYTES = 1024 * 1024;
const PAUSE_SECONDS = 1; // before asking for more, where the answer was "nothing" and came at once
const KINDS = new Set(["opt_out", "deletion", "recall", "offboarding", "reinstatement"]);

/** Whatever went wrong. `code` is stable: programs go by it. `status` is the service's answer, 0 without one. */
export class KitError extends Error {
  constructor(code, message, status = 0, cause = undefined) {
    super(message, { cause });
    this.name = new.target.name;
    Object.assign(this, { code, status });
  }
}
/** Do not believe this message. Tell the sender 401 and nothing more. */
export class NotVerified extends KitError {}
/** Signed, but not for us, or nothing that this file understands. */
export class Unreadable extends KitError {}
/** The service did not do what it was asked. */
export class ServiceFailed extends KitError {}

// --- verify ---

/** Check that the service signed these bytes, and return the message's id. Throws `NotVerified`.

   `secrets` are whsec_ texts (two while one is rotated), `publicKeys` are whpk_ texts; `now` and `tolerance` are in
   seconds. `headers` is an object of texts or of lists of them, or a Headers. Give the raw body: the same JSON in other
   bytes is not signed. */
export function verify(headers, body, { secrets = [], publicKeys = [], now = Date.now() / 1000, tolerance = TOLERANCE_SECONDS } = {}) {
  const hmacKeys = secrets.map((text) => decodeKey(text, "whsec_"));
  const ed25519Keys = publicKeys.map((text) => decodeKey(text, "whpk_"));
  const [id, timestamp, signatures] = ["webhook-id", "webhook-timestamp", "webhook-signature"].map((name) => onlyHeader(headers, name));
  // A full stop could make the end of an id pass for a timestamp. Number() would take signs, spaces and 1e9.
  if (!/^[!-\-/-~]{1,256}$/.test(id)) {
    throw new NotVerified("header_unreadable", "webhook-id is 1 to 256 visible ASCII characters without a full stop");
  }
  if (!/^[0-9]{1,11}$/.test(timestamp)) {
    throw new NotVerified("header_unreadable", "webhook-timestamp is whole seconds since 1970 in ASCII digits");
  }
  const age = now - Number(timestamp);
  if (age > tolerance) throw new NotVerified("signature_too_old", `signed ${Math.round(age)} s ago; check this machine's clock`);
  if (age < -tolerance) throw new NotVerified("signature_too_new", `signed ${Math.round(-age)} s ahead; check this machine's clock`);

  const content = Buffer.concat([Buffer.from(`${id}.${timestamp}.`), body]);
  for (const offered of signatures.trim().split(/\s+/, MAX_SIGNATURES)) {
    const comma = offered.indexOf(",");
    const version = offered.slice(0, Math.max(comma, 0));
    const signature = decodeBase64(offered.slice(comma + 1));
    if (!signature) continue; // another one may still be good
    // A key has one algorithm, whatever the sender calls it: the version only says which keys are asked.
    if (version === "v1" && hmacKeys.some((key) => equal(createHmac("sha256", key).update(content).digest(), signature))) return id;
    if (version === "v1a" && ed25519Keys.some((key) => isSignedBy(key, content, signature))) return id;
  }
  throw new NotVerified("no_matching_signature", "no signature was made with a key we know");
}

function onlyHeader(headers, name) {
  const pairs = typeof headers.entries === "function" ? [...headers.entries()] : Object.entries(headers);
  const values = pairs.filter(([key]) => key.toLowerCase() === name).flatMap(([, value]) => value);
  if (values.length !== 1) throw new NotVerified("header_missing", `${name} must be there once, not ${values.length} times`);
  return values[0];
}

const equal = (one, other) => one.length === other.length && timingSafeEqual(one, other);

function decodeBase64(text) {
  // Buffer would read whatever it can, and leave out the rest.
  const isBase64 = text.length % 4 === 0 && /^[A-Za-z0-9+/]*={0,2}$/.test(text);
  return isBase64 ? Buffer.from(text, "base64") : null;
}

function decodeKey(text, prefix) {
  const raw = text.startsWith(prefix) ? decodeBase64(text.slice(prefix.length)) : null;
  if (!raw) throw new KitError("key_unusable", `a key here is ${prefix} and base64`);
  // A whsk_ key may have its public key behind the seed.
  const allowed = { whsec_: [24, 64], whpk_: [32, 32], whsk_: [32, 64] }[prefix];
  const isGood = raw.length >= allowed[0] && raw.length <= allowed[1] && (prefix !== "whsk_" || raw.length % 32 === 0);
  if (!isGood) throw new KitError("key_unusable", `a ${prefix} key has ${allowed[0]} to ${allowed[1]} bytes, not ${raw.length}`);
  return raw;
}

// What stands before the raw key in the form that node:crypto reads (RFC 8410).
const SPKI = Buffer.from("302a300506032b6570032100", "hex");
const PKCS8 = Buffer.from("302e020100300506032b657004220420", "hex");

function isSignedBy(rawKey, content, signature) {
  const key = createPublicKey({ key: Buffer.concat([SPKI, rawKey]), format: "der", type: "spki" });
  return verifySignature(null, content, key, signature);
}

// --- parse ---

/** Read a verified message: `{type, epoch, notices, data}`. `notices` is empty in all types but `removal.notices`.

   Throws `Unreadable`, also when it is another partner's. Unknown fields are ignored. */
export function parse(body, partner) {
  const message = readJson(body);
  if (get(message, "version", "string") !== "1") throw new Unreadable("unknown_version", "this file reads version 1; get a newer one");
  const [type, data] = [get(message, "type", "string"), get(message, "data", "object")];
  // One Ed25519 key signs for all partners: only this says that the message is for us.
  if (get(data, "partner", "string") !== partner) throw new Unreadable("wrong_partner", "this message is for another partner");
  return readData(data, type);
}

/** Read the `data` of a message, or a page of the stream. Throws `Unreadable`. */
export function readData(data, type = "removal.notices") {
  const epoch = get(data, "epoch", "number");
  if (type !== "removal.notices") return { type, epoch, notices: [], data };
  const notices = get(data, "notices", "array").map((raw) => readNotice(raw, epoch));
  const [first, last] = ["first", "last"].map((name) => get(data, name, "number", "null"));
  // A 2xx says that all of first..last came: one that is missing here would be lost.
  const isWhole = notices.length === last - first + 1 && notices.every((notice, index) => notice.sequence === first + index);
  if (first !== null && last !== null && !isWhole) throw new Unreadable("unreadable", "the notices are not those from first to last");
  return { type, epoch, notices, data };
}

/** Read one notice, such as `raw` of one that was stored. Throws `Unreadable`.

   It is known for ever by (epoch, sequence). `items` are distinct [subject, item] pairs; where `itemsUrl` is set,
   `client.items(itemsUrl)` lists them instead. Of an offboarding nothing is listed: it is everything of `releases`.
   A reinstatement has no items: answer it completed without outcomes. `withdrawn` means that it was taken back before
   you heard of it: nothing to do, and no answer is due. */
export function readNotice(raw, epoch) {
  const [sequence, kind, itemsTotal] = [get(raw, "sequence", "number"), get(raw, "kind", "string"), get(raw, "items_total", "number")];
  // "completed" must not be said to what nobody understood.
  if (!KINDS.has(kind)) throw new Unreadable("unknown_kind", "this file does not know this kind of notice; get a newer one");
  const subject = get(raw, "subject", "string", "null");
  const releases = strings(get(raw, "releases", "array", "null") ?? []);
  const withdrawn = (raw.withdrawn_at ?? null) !== null;
  const needsItems = !withdrawn && kind !== "reinstatement" && kind !== "offboarding";
  const url = get(raw, "items_url", "string", "null");
  const itemsUrl = needsItems ? url : null;
  const items = new Set();
  if (needsItems && itemsUrl === null) {
    for (const held of get(raw, "held", "array")) {
      get(raw, "subject", "string");
      for (const item of strings(get(held, "items", "array"))) items.add(item);
    }
  }
  return { epoch, sequence, kind, itemsTotal, subject, items: [...items].map((item) => [subject, item]), itemsUrl, releases, withdrawn, raw };
}

function get(parent, name, ...types) {
  const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
  const value = (isObject(parent) && Object.hasOwn(parent, name) ? parent[name] : null) ?? null;
  const type = value === null ? "null" : Array.isArray(value) ? "array" : typeof value;
  const isGood = types.includes(type) && (type !== "number" || (Number.isSafeInteger(value) && value >= 0));
  if (!isGood) throw new Unreadable("unreadable", `${name} is missing, or not what it must be`);
  return value;
}

function strings(values) {
  if (!Array.isArray(values) || !values.every((value) => typeof value === "string")) {
    throw new Unreadable("unreadable", "a list of texts is something else");
  }
  return values;
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

function readJson(body) {
  try {
    const text = utf8.decode(body);
    const value = JSON.parse(text);
    refuseRepeatedNames(text);
    return value;
  } catch (error) {
    throw new Unreadable("unreadable", "the body is not JSON in UTF-8, with each name once", 0, error);
  }
}

/** Refuse an object that has a name twice: of two values, one reader takes the first and another the last. */
function refuseRepeatedNames(text) {
  const open = []; // the names of each object that is not closed yet
  for (const [token, string, colon] of text.matchAll(/("[^"\\]*(?:\\.[^"\\]*)*")\s*(:)?|[{}]/g)) {
    if (token === "{") open.push(new Set());
    else if (token === "}") open.pop();
    else if (colon) {
      const names = open.at(-1);
      const name = JSON.parse(string); // "\u0061" is "a", too
      if (names.has(name)) throw new SyntaxError("a name comes twice");
      names.add(name);
    }
  }
}

// --- receive ---

/** Notices in memory, for trying out: a restart forgets them. Give its two functions to a `Receiver`. */
export class Memory {
  notices = new Map();
  seen = (epoch, sequence) => this.notices.has(`${epoch} ${sequence}`);
  take = (notice) => {
    if (!this.seen(notice.epoch, notice.sequence)) this.notices.set(`${notice.epoch} ${notice.sequence}`, notice);
  };
}

/** Turns a request into the response for it, in any web framework.

   `take(notice)` stores one notice in a transaction of yours and resolves when it is COMMITTED: with our 2xx the service
   stops sending it. Two copies of a message may come at once, so your table needs (epoch, sequence) as its primary key
   and an insert that ignores what is there. `seen(epoch, sequence)`, if given, spares the call. `publicKeys` are whpk_
   texts, or a function that lists them: `() => client.publicKeys()`. `remind(message)`, if given, is called with a
   reminder. Samples (epoch 0) oblige nobody: they are taken only if `takeSamples` says so. `log` gets a line
   about what went wrong. */
export class Receiver {
  constructor({ partner, take, seen, secrets = [], publicKeys = [], remind, takeSamples = false, tolerance = TOLERANCE_SECONDS, log = console.error }) {
    Object.assign(this, { partner, take, seen, remind, takeSamples, tolerance, log });
    this.keys = () => ({ secrets, publicKeys }); // a function, so that nobody's log shows them
    // Keys that cannot be used stop the start, not the first message.
    if (!secrets.length && !publicKeys.length && typeof publicKeys !== "function") {
      throw new KitError("key_unusable", "a receiver needs a secret or a public key");
    }
    secrets.forEach((text) => decodeKey(text, "whsec_"));
    if (typeof publicKeys !== "function") publicKeys.forEach((text) => decodeKey(text, "whpk_"));
  }

  /** Verify, read, take, and resolve to {status, headers, body} to send. Never rejects. */
  async receive(headers, body, now = Date.now() / 1000) {
    try {
      if (body.length > MAX_BODY_BYTES) return respond(413, { code: "too_large" });
      let { secrets, publicKeys } = this.keys();
      if (typeof publicKeys === "function") publicKeys = await publicKeys();
      verify(headers, body, { secrets, publicKeys, now, tolerance: this.tolerance });
      return respond(200, await this.#answer(parse(body, this.partner)));
    } catch (error) {
      this.log(`a message was not taken: ${error instanceof KitError ? `${error.code}: ${error.message}` : error?.stack ?? error}`);
      if (error instanceof NotVerified) return { status: 401, headers: {}, body: "" }; // a forger must not learn what was wrong
      // 400 is about the content: a message of many is halved until the culprit stands alone. 403 is not.
      if (error instanceof Unreadable) return respond(error.code === "wrong_partner" ? 403 : 400, { code: error.code, detail: error.message });
      return { status: 500, headers: {}, body: "" }; // it will come again
    }
  }

  async #answer(message) {
    if (message.type === "removal.reminder") await this.remind?.(message);
    for (const notice of message.notices) {
      const isWanted = notice.epoch > 0 || this.takeSamples;
      if (isWanted && !(await this.seen?.(notice.epoch, notice.sequence))) await this.take(notice);
    }
    // The same words for a repeat: whoever missed them the first time needs them now.
    const lines = message.notices.map((notice) => ({ sequence: notice.sequence, status: "received" }));
    return lines.length ? { acknowledgements: lines } : {};
  }
}

const respond = (status, document) => ({ status, headers: { "content-type": "application/json" }, body: JSON.stringify(document) });

// --- call the service ---

/** The service, as a partner calls it. Each call may be repeated, retries by itself, and rejects with `ServiceFailed`.

   `signingKey` (whsk_ and the base64 of a 32-byte Ed25519 seed) signs acknowledgements; register its public key with
   the service first. `attempts` are made in all, with growing waits of up to `longestWait` seconds. No redirect sees
   the key. */
export class Client {
  #apiKey;
  #seed;
  #keys = null;
  #keysStaleAt = 0;
  #keysComing = null;

  constructor({ baseUrl, apiKey, signingKey, allowHttp = false, attempts = 6, firstWait = 0.5, longestWait = 60, timeout = 20, sleep = (seconds) => wait(seconds * 1000) }) {
    const { protocol } = new URL(baseUrl);
    if (protocol !== "https:" && !(allowHttp && protocol === "http:")) {
      throw new KitError("https_needed", "the service's address must be https, or others read your key");
    }
    Object.assign(this, { baseUrl: baseUrl.replace(/\/+$/, ""), attempts, firstWait, longestWait, timeout, sleep });
    this.#apiKey = apiKey;
    this.#seed = signingKey ? decodeKey(signingKey, "whsk_").subarray(0, 32) : null;
  }

  /** Post answers, in calls of at most 1000 lines. When one fails, post all again: a repeat changes nothing.

     Resolves to {accepted, unchanged, refused}; `refused` has {sequence, code, message} for each that changed nothing. */
  async acknowledge(lines) {
    const answer = { accepted: 0, unchanged: 0, refused: [] };
    for (const [body, contentType] of batches(lines)) {
      const said = readJson((await this.#ask("/v1/acknowledgements", { body, contentType })).body);
      answer.accepted += get(said, "accepted", "number");
      answer.unchanged += get(said, "unchanged", "number");
      answer.refused.push(...get(said, "refused", "array"));
    }
    return answer;
  }

  /** Yield [subject, items] of a long list, by `itemsUrl` or number. One page is in memory at a time. */
  async *items(notice, limit = 1000) {
    let url = typeof notice === "number" ? `/v1/stream/${notice}/items?limit=${limit}` : notice;
    while (url) {
      const { body, headers } = await this.#ask(url);
      for (let start = 0, end; start < body.length; start = end + 1) {
        end = body.indexOf(10, start);
        if (end < 0) end = body.length;
        const entry = readJson(body.subarray(start, end));
        yield [get(entry, "subject", "string"), strings(get(entry, "items", "array"))];
      }
      const link = /<([^>]*)>[^,]*;\s*rel="?next\b/.exec(headers.get("link") ?? ""); // RFC 8288
      url = link && new URL(link[1], this.baseUrl).href;
    }
  }

  /** Yield messages of the notices behind number `after` of `epoch`; when the stream is in another, of all.

     Goes on for ever, asking anew every `wait` seconds; with `wait: 0` it ends when nothing follows any more. Asking for
     the next message tells the service that you have this one, the last one included: commit its notices, `epoch` and
     last sequence first, and begin there the next time. */
  async *pull({ after = 0, epoch = null, wait = 20, limit = 100 } = {}) {
    for (;;) {
      const askedAt = performance.now();
      const path = `/v1/stream?after=${after}&limit=${limit}&wait=${wait}${epoch && after ? `&epoch=${epoch}` : ""}`;
      let page = null;
      try {
        page = readJson((await this.#ask(path, { wait })).body);
      } catch (error) {
        if (error.status !== 409 || !after) throw error;
      }
      const message = page && readData(page);
      if (after && (!page || (epoch !== null && epoch !== message.epoch))) {
        [epoch, after] = [null, 0]; // numbers began anew: what was asked for means nothing now
        continue;
      }
      epoch = message.epoch;
      if (message.notices.length) {
        yield message;
        after = message.notices.at(-1).sequence;
      } else if (!wait) {
        return;
      } else if (performance.now() - askedAt < wait * 500) {
        await this.sleep(PAUSE_SECONDS); // too many wait at the service, and we were sent away
      }
    }
  }

  /** List the service's whpk_ keys that are not retired. However often it is called, it asks once a minute. */
  async publicKeys(now = Date.now() / 1000) {
    if (now >= this.#keysStaleAt) {
      this.#keysStaleAt = now + 60; // first: while the service is down, forgers must not make us wait
      this.#keysComing = this.#ask("/.well-known/removal-notices", { attempts: 1 })
        .then(({ body }) => (this.#keys = get(readJson(body), "keys", "array")))
        .catch((error) => console.error(`no public keys from the service: ${error.message}`));
    }
    await this.#keysComing;
    if (!this.#keys) throw new ServiceFailed("no_public_keys", "the service has not told its public keys yet");
    const isGood = (key) => key.algorithm === "ed25519" && !(key.retire_at && Date.parse(key.retire_at) / 1000 <= now);
    return this.#keys.filter(isGood).map((key) => key.public_key);
  }

  /** Fetch the signed statement of what you should have, and resolve to its `data`. Rejects with `NotVerified`, too.

     Without a key of yours it is checked with the service's published ones. */
  async statement({ secrets = [], publicKeys = [] } = {}) {
    const { body, headers } = await this.#ask("/v1/stream/statement");
    if (!secrets.length && !publicKeys.length) publicKeys = await this.publicKeys();
    verify(headers, body, { secrets, publicKeys });
    const statement = readJson(body);
    if (get(statement, "type", "string") !== "removal.statement" || get(statement, "version", "string") !== "1") {
      throw new Unreadable("unknown_type", "this is not a statement of version 1");
    }
    return get(statement, "data", "object");
  }

  /** Ask until there is an answer, or no sense in asking. Reads it whole: what was cut off is asked for again. */
  async #ask(path, { body, contentType, wait = 0, attempts = this.attempts } = {}) {
    const url = path.includes("://") ? path : this.baseUrl + path;
    if (new URL(url).origin !== new URL(this.baseUrl).origin) {
      throw new ServiceFailed("another_host", `${new URL(url).host} is not the service; it must not see your key`);
    }
    const id = `ack_${randomBytes(18).toString("base64url")}`; // the same on every retry; the timestamp is not
    for (let attempt = 1; ; attempt += 1) {
      const headers = { authorization: `Bearer ${this.#apiKey}` };
      if (body) headers["content-type"] = contentType;
      if (body && this.#seed) Object.assign(headers, signAcknowledgement(this.#seed, body, id, Math.floor(Date.now() / 1000)));
      let failure;
      let askedFor = 0;
      try {
        const signal = AbortSignal.timeout((this.timeout + wait) * 1000);
        const response = await fetch(url, { method: body ? "POST" : "GET", body, headers, redirect: "manual", signal });
        const answer = Buffer.from(await response.arrayBuffer());
        if (response.ok) return { body: answer, headers: response.headers };
        failure = readFailure(response.status, answer);
        if (![408, 425, 429].includes(response.status) && response.status < 500) throw failure;
        askedFor = retryAfter(response.headers.get("retry-after") ?? "");
      } catch (error) {
        if (error === failure) throw error;
        failure = new ServiceFailed("unreachable", `no answer from ${this.baseUrl}: ${error.cause?.code ?? error.message}`, 0, error);
      }
      if (attempt >= attempts) throw failure;
      const step = this.firstWait * 2 ** (attempt - 1) * (1 + Math.random() / 2);
      await this.sleep(Math.min(this.longestWait, Math.max(step, askedFor)));
    }
  }
}

/** Make the headers of a signed answer. The word in front keeps it from passing for a message of the service. */
export function signAcknowledgement(seed, body, id, timestamp) {
  const content = Buffer.concat([Buffer.from(`acknowledgement.${id}.${timestamp}.`), Buffer.from(body)]);
  const key = createPrivateKey({ key: Buffer.concat([PKCS8, seed]), format: "der", type: "pkcs8" });
  const signature = sign(null, content, key).toString("base64");
  return { "webhook-id": id, "webhook-timestamp": String(timestamp), "webhook-signature": `v1a,${signature}` };
}

/** Pack lines into bodies of at most 1000, and below the 1 MiB that the service takes as JSON. */
function* batches(lines) {
  const most = (MAX_BODY_BYTES * 3) / 4;
  let batch = [];
  let size = 0;
  // A line that is too long for JSON goes alone, as NDJSON, whose lines may be longer.
  const close = () =>
    batch.length === 1 && size > most ? [batch[0], "application/x-ndjson"] : [`{"acknowledgements":[${batch}]}`, "application/json"];
  for (const line of lines) {
    const text = JSON.stringify(line);
    const length = Buffer.byteLength(text);
    if (batch.length && (batch.length === 1000 || size + length > most)) {
      yield close();
      [batch, size] = [[], 0];
    }
    batch.push(text);
    size += length;
  }
  if (batch.length) yield close();
}

function readFailure(status, answer) {
  try {
    const problem = readJson(answer);
    return new ServiceFailed(get(problem, "code", "string"), String(problem.detail), status);
  } catch {
    return new ServiceFailed(`http_${status}`, `the service answered ${status}`, status);
  }
}

/** Read a Retry-After of seconds or a date (RFC 9110 §10.2.3), in seconds from now; 0 if there is none. */
function retryAfter(text) {
  if (/^[0-9]{1,9}$/.test(text)) return Number(text);
  return (Date.parse(text) - Date.now()) / 1000 || 0;
}
