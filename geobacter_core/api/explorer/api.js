/* Talks to the service: token, retries, pictures, problems in plain words. */

/** The service's root, wherever it is mounted: this file lies at ROOT/explorer/api.js. */
const ROOT = new URL("../", import.meta.url);
const TOKEN_KEY = "geobacter-token";
const MAX_TRIES = 5;
const MAX_WAIT_MS = 15_000;
const PICTURES_KEPT = 200;

/** What went wrong, in words for a person. `status` is 0 where the service did not answer. */
export class Problem extends Error {
  constructor(status, message) {
    super(message);
    this.name = "Problem";
    this.status = status;
  }
}

/** Whether a promise was rejected only because nobody waits for it any more. */
export const isAbort = (error) => error?.name === "AbortError";

let token = sessionStorage.getItem(TOKEN_KEY);
let signingIn = null;
let hasDeclined = false;
let askForToken = async () => null;

/** `ask(check)` shows the dialog and resolves to a token that `check` took, or to null. */
export function onTokenNeeded(ask) {
  askForToken = ask;
}

export const isSignedIn = () => token !== null;

export function signOut() {
  token = null;
  sessionStorage.removeItem(TOKEN_KEY);
}

/** Ask for a token once, however many requests found that they need one. */
export function signIn() {
  signingIn ??= (async () => {
    const given = await askForToken(async (candidate) => (await send("regions", {}, candidate)).status !== 401);
    hasDeclined = given === null;
    if (given !== null) {
      token = given;
      sessionStorage.setItem(TOKEN_KEY, given);
    }
    return given !== null;
  })().finally(() => (signingIn = null));
  return signingIn;
}

/**
 * Fetch a path of the service. Waits and tries again where the service is busy, and signs in where it must.
 * `quiet` requests (map pictures) never open the dialog: they are drawn again after signing in.
 */
export async function request(path, { params, body, signal, quiet = false } = {}) {
  const url = addressOf(path, params);
  const options = { signal, priority: quiet ? "low" : "high" };
  if (body !== undefined) {
    Object.assign(options, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
  }
  for (let tries = 1; ; tries += 1) {
    const used = token;
    const response = await send(url, options, used);
    if (response.ok) return response;
    if (response.status === 401 && !quiet && !hasDeclined) {
      if (used !== token || (await signIn())) continue;
    }
    if ((response.status === 429 || response.status === 503) && tries < MAX_TRIES) {
      await pause(waitOf(response, tries), signal);
      continue;
    }
    throw await problemOf(response);
  }
}

export const getJson = async (path, options) => (await request(path, options)).json();

/** A picture, or null where the service has none (204). */
export async function getBlob(path, options) {
  const response = await request(path, options);
  return response.status === 204 ? null : response.blob();
}

/* Window pictures are few and seen again and again: the latest are kept as blob addresses, the others revoked. */
const pictures = new Map();

/** Show a window picture in an <img>, which cannot send the token by itself. */
export async function showPicture(img, path) {
  let found = pictures.get(path);
  if (!found) {
    found = getBlob(path).then((blob) => blob && URL.createObjectURL(blob));
    found.catch(() => pictures.delete(path));
  }
  pictures.delete(path); // a Map keeps the order of insertion: this one is now the latest
  pictures.set(path, found);
  if (pictures.size > PICTURES_KEPT) {
    const [oldest, promise] = pictures.entries().next().value;
    pictures.delete(oldest);
    promise.then((url) => url && URL.revokeObjectURL(url), () => {});
  }
  try {
    const url = await found;
    if (url) img.src = url;
    img.classList.add(url ? "is-shown" : "is-missing");
  } catch {
    img.classList.add("is-missing");
  }
}

function addressOf(path, params) {
  const url = new URL(path.replace(/^\//, ""), ROOT);
  for (const [name, value] of params ?? []) url.searchParams.append(name, value);
  return url;
}

async function send(path, options, bearer) {
  const url = path instanceof URL ? path : addressOf(path);
  const headers = { Accept: "application/json, image/png", ...options.headers };
  if (bearer) headers.Authorization = `Bearer ${bearer}`;
  try {
    return await fetch(url, { ...options, headers });
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new Problem(0, "The service does not answer. Check that it is running and that you are online, then try again.");
  }
}

async function problemOf(response) {
  if (response.status === 401) return new Problem(401, "This service asks for an access token, and you are not signed in.");
  const said = await response.json().catch(() => ({}));
  // FastAPI's own answer to a malformed request has a list of faults as `detail`.
  const detail = Array.isArray(said.detail) ? said.detail.map((fault) => fault.msg).join(" ") : said.detail;
  const fallback = {
    404: "There is nothing at this place.",
    429: "The service is busy. Wait a moment and try again.",
    503: "The service is not ready. Wait a moment and try again.",
  }[response.status];
  return new Problem(response.status, detail || said.title || fallback || `The service answered ${response.status}.`);
}

/** How long to wait by Retry-After (seconds or a date), else longer and longer; a little at random, so as not to queue up. */
function waitOf(response, tries) {
  const said = response.headers.get("Retry-After");
  const seconds = Number(said);
  let ms = 500 * 2 ** tries;
  if (said !== null) ms = Number.isFinite(seconds) ? seconds * 1000 : Date.parse(said) - Date.now() || ms;
  return Math.min(Math.max(ms, 300), MAX_WAIT_MS) * (1 + Math.random() / 4);
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}
