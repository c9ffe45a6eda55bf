/* The explorer: what a click does, what is searched, what is shown. The pieces are in the modules beside this one. */

import { getJson, isAbort, isSignedIn, onTokenNeeded, Problem, signIn, signOut } from "./api.js";
import { MapView } from "./map.js";
import { about, adder, chips, h, intro, labelOfStep, metres, placeCard, resultGrid, resultsHead, skeleton, titleOf, walkList } from "./panel.js";
import { makeSheet } from "./sheet.js";
import { fromHash, toHash } from "./state.js";

const N_RESULTS = 12;
const MAX_EXAMPLES = 10;
const MIN_CHOICES = [0, 100, 200, 500, 1000, 2000, 5000, 10_000, 50_000];
const MAX_CHOICES = [500, 1000, 2000, 5000, 10_000, 50_000, 200_000, 1_000_000];
const MODE_KEYS = { similar: ["at"], walk: ["ends"], more: ["plus", "minus"] };
const OVERLAY_KEY = "geobacter-overlay";

const $ = (id) => document.getElementById(id);
const click = matchMedia("(pointer: coarse)").matches ? "Tap" : "Click";

let state = fromHash(location.hash);
let regions = [];
let model = null;
let adding = "plus"; // in "more": what the next click adds
let shown = []; // the numbered places, in the panel and on the map
let search = new AbortController(); // the search in progress; a newer one stops it

const map = new MapView($("map"), { pick, move: onMove, region: setRegion, hover: light, choose: onPin });
const sheet = makeSheet($("panel"), $("sheet-handle"), $("panel-head"), () => map.resize());

/* ---- start ---- */

onTokenNeeded(askForToken);
wireControls();
map.setView(state.view ?? { lat: 30, lon: 5, zoom: 8 });
start();

async function start() {
  say("Opening the map…", true);
  showError(null);
  try {
    regions = (await getJson("regions")).regions;
  } catch (error) {
    say("");
    showError(error, error.status === 401 ? ["Sign in", async () => (await signIn()) && start()] : ["Try again", start]);
    return;
  }
  // Only some words about the encoder depend on this: nothing waits for it.
  if (!model) getJson("model").then((answer) => ((model = answer), showWords()), () => {});
  if (!regions.length) {
    say("");
    showError(new Problem(404, "No region has embeddings yet. Materialise region_embeddings for one, then reload this page."));
    return;
  }
  regions.sort((a, b) => a.name.localeCompare(b.name));
  $("region").replaceChildren(...regions.map(({ name }) => h("option", { value: name, textContent: titleOf(name) })));
  if (!regionNamed(state.region)) state.region = (state.view && regionAt(state.view)?.name) ?? (searchable()[0] ?? regions[0]).name;
  $("tools").hidden = false;
  map.setRegions(regions.map((region) => ({ ...region, title: titleOf(region.name) })));
  showOverlay();
  apply();
}

/** Bring the whole page to `state`. */
function apply() {
  if (picksOf().length) sheet.open(); // first, as it changes the map's size
  const before = state.view;
  if (state.view) map.setView(state.view);
  else map.showBounds(regionNamed(state.region).bounds);
  state.view = before ?? map.view();
  showControls();
  run();
}

/* ---- what a person does ---- */

/** A place was clicked, or the map's centre taken. */
function pick(place) {
  if (!regions.length) return;
  if (!regionAt(place)) {
    // Known without asking; the service would say the same.
    showError(new Problem(404, `No region covers this place. There ${regions.length === 1 ? "is" : "are"}: ${listOf(regions.map(({ name }) => titleOf(name)))}.`));
    sheet.open();
    return;
  }
  const rounded = { lon: Number(place.lon.toFixed(5)), lat: Number(place.lat.toFixed(5)) }; // as in the link
  if (state.mode === "similar") state.at = rounded;
  if (state.mode === "walk") state.ends = [...(state.ends.length < 2 ? state.ends : []), rounded];
  if (state.mode === "more") {
    if (state[adding].length >= MAX_EXAMPLES) return say(`${MAX_EXAMPLES} places are enough: remove one first.`);
    state[adding] = [...state[adding], rounded];
  }
  sheet.open();
  map.keepInView(rounded);
  changed();
}

function setMode(mode) {
  if (mode === state.mode) return;
  // A place that was picked is kept as the beginning of the new mode, so that trying a mode costs no click.
  const last = { similar: state.at, walk: state.ends.at(-1), more: state.plus.at(-1) }[state.mode];
  state.mode = mode;
  if (last && MODE_KEYS[mode].every((key) => !state[key]?.length && !state[key]?.lat)) {
    if (mode === "similar") state.at = last;
    if (mode === "walk") state.ends = [last];
    if (mode === "more") state.plus = [last];
  }
  changed();
}

function clear() {
  for (const key of MODE_KEYS[state.mode]) state[key] = key === "at" ? null : [];
  changed();
}

function onMove() {
  if (!regions.length) return;
  state.view = map.view();
  const here = regionAt(state.view);
  if (here && !holds(regionNamed(state.region), state.view)) {
    state.region = here.name;
    showControls();
    $("about").replaceChildren(...about(model, here, isSignedIn() && onSignOut));
  }
  history.replaceState(null, "", toHash(state));
}

function setRegion(name) {
  state.region = name;
  map.showBounds(regionNamed(name).bounds);
  showControls();
}

/** State has changed by a person's doing: a step that "back" takes back. */
function changed() {
  history.pushState(null, "", toHash(state));
  showControls();
  run();
}

/* ---- searches ---- */

/** Search for what `state` says and show it; below `problem`, if there was one on the way. */
async function run(problem = null) {
  search.abort();
  search = new AbortController();
  const { signal } = search;
  showError(problem);
  try {
    await { similar: runSimilar, walk: runWalk, more: runMore }[state.mode](signal);
  } catch (error) {
    if (isAbort(error) || signal.aborted) return;
    if (error.isDropped) return run(error);
    say("");
    show({ picks: picksOf(), body: [] });
    showError(error, error.status === 401 ? ["Sign in", async () => (await signIn()) && start()] : error.status === 404 ? null : ["Try again", () => run()]);
    sheet.open();
  }
}

async function runSimilar(signal) {
  const { at } = state;
  if (!at) {
    say(`${click} a place to see where else it could be.`);
    return show({ body: [introNow()] });
  }
  const card = (info) => placeCard(at, info, { onCopy: copyLink, onClear: clear });
  const draw = (info, results) => show({
    picks: [{ ...at, boundary: info?.boundary }],
    results,
    rings: [state.min, state.max].filter(Boolean),
    body: [card(info), ...(results ? resultsBody(results, info.region) : [skeleton(N_RESULTS)])],
  });
  say("Looking for places like this one…", true);
  draw(null, null);
  const asked = getJson("similar", { params: [["lon", at.lon], ["lat", at.lat], ["k", N_RESULTS], ...filterParams()], signal });
  asked.catch(() => {}); // if the first fails too, its words are shown
  const info = await infoOf(at, signal);
  draw(info, null);
  const { results } = await asked;
  if (signal.aborted) return;
  draw(info, results);
  say(results.length ? `${places(results.length)} like this one${filterWords()}.` : NOTHING);
}

async function runWalk(signal) {
  const { ends } = state;
  if (ends.length < 2) {
    const hint = h("p", { className: "note" }, "A walk goes from one place to another through the space of vectors: each stop is the place "
      + "nearest to a mixture of the two. They need not lie between them on the ground.");
    say(ends.length ? `Now ${click.toLowerCase()} where the walk ends.` : `${click} where the walk begins.`);
    const draw = (info) => show({
      picks: picksOf([info]),
      body: [info && placeCard(ends[0], info, { onCopy: copyLink, onClear: clear }), hint],
    });
    draw(null);
    if (ends.length) draw(await infoOrDrop(ends[0], "ends", signal));
    return;
  }
  say("Looking for a way…", true);
  show({ picks: picksOf(), body: [skeleton(state.steps, "walk")] });
  await infoOrDrop(ends[1], "ends", signal);
  const params = [["from", toPair(ends[0])], ["to", toPair(ends[1])], ["steps", state.steps], ...regionParams()];
  const { steps } = await getJson("interpolate", { params, signal });
  if (signal.aborted) return;
  show({
    results: steps,
    labels: steps.map((_, index) => labelOfStep(index, steps.length)),
    path: true,
    body: [
      resultsHead("The walk", () => showAll()),
      walkList(steps, handlers),
      h("div", { className: "actions" }, quiet("Turn round", () => ((state.ends = [...ends].reverse()), changed())), quiet("Copy link", copyLink), quiet("Clear", clear)),
    ],
  });
  if (map.pinsInView() < steps.length) map.showMarks();
  say(`${steps.length} stops from A to B. ${click} to begin anew.`);
}

async function runMore(signal) {
  const { plus, minus } = state;
  const infos = { plus: [], minus: [] };
  const draw = (results) => show({
    picks: [
      ...plus.map((place, index) => ({ ...place, boundary: infos.plus[index]?.boundary, kind: "plus", label: "+" })),
      ...minus.map((place, index) => ({ ...place, boundary: infos.minus[index]?.boundary, kind: "minus", label: "−" })),
    ],
    results,
    body: [
      adder(adding, (kind) => ((adding = kind), draw(results))),
      chips("Like these", "plus", plus, infos.plus, (index) => remove("plus", index)),
      (minus.length > 0 || adding === "minus") && chips("Unlike these", "minus", minus, infos.minus, (index) => remove("minus", index)),
      plus.length + minus.length > 1 && h("div", { className: "actions" }, quiet("Copy link", copyLink), quiet("Clear all", clear)),
      ...(results ? resultsBody(results) : plus.length ? [skeleton(N_RESULTS)] : []),
    ],
  });
  if (!plus.length) {
    say(minus.length ? "Add at least one place to be like." : `${click} several places of one kind to find more of it.`);
  } else {
    say("Looking for more like these…", true);
  }
  draw(null);
  infos.plus = await Promise.all(plus.map((place) => infoOrDrop(place, "plus", signal)));
  infos.minus = await Promise.all(minus.map((place) => infoOrDrop(place, "minus", signal)));
  draw(null);
  if (!plus.length) return;
  const results = await askMore(signal);
  if (signal.aborted) return;
  draw(results);
  const these = plus.length === 1 ? "this one" : `these ${plus.length}`;
  const unlike = minus.length ? `, unlike ${minus.length === 1 ? "the other" : `the other ${minus.length}`}` : "";
  say(results.length ? `${places(results.length)} like ${these}${unlike}${filterWords()}.` : NOTHING);
}

async function askMore(signal) {
  // The service may count an example as its own likeness: ask for some more, and leave the examples out.
  const own = new Set([...state.plus, ...state.minus].map((place) => infoKnown(place)?.cell));
  const k = N_RESULTS + own.size;
  const { results } = await (state.minus.length ? askArithmetic(k, signal) : askMean(k, signal));
  return results.filter(({ cell }) => !own.has(cell)).slice(0, N_RESULTS);
}

function askMean(k, signal) {
  const body = { places: state.plus, k };
  if (state.regions) body.regions = state.regions;
  if (state.min) body.min_distance_m = state.min;
  return getJson("similar", { body, signal });
}

function askArithmetic(k, signal) {
  const terms = (sign) => state[sign].map((place) => [sign, toPair(place)]);
  const params = [...terms("plus"), ...terms("minus"), ["k", k], ...regionParams()];
  if (state.min) params.push(["min_distance_m", state.min]);
  return getJson("arithmetic", { params, signal });
}

/* What is known of a place: asked once. */
const known = new Map();

const infoKnown = (place) => known.get(toPair(place));

async function infoOf(place, signal) {
  const { lon, lat } = place;
  if (!infoKnown(place)) known.set(toPair(place), await getJson("embeddings", { params: [["lon", lon], ["lat", lat]], signal }));
  return infoKnown(place);
}

/** As `infoOf`; a place of which nothing is known is taken out of the list again. */
async function infoOrDrop(place, key, signal) {
  try {
    return await infoOf(place, signal);
  } catch (error) {
    if (error.status === 404) {
      state[key] = state[key].filter((other) => other !== place);
      history.replaceState(null, "", toHash(state));
      error.isDropped = true;
    }
    throw error;
  }
}

/* ---- what is shown ---- */

const NOTHING = "No place fits the filters. Allow nearer places, or search further away.";
const toPair = ({ lon, lat }) => `${lon},${lat}`;
const places = (n) => (n === 1 ? "1 place" : `${n} places`);
const quiet = (text, onclick) => h("button", { type: "button", className: "quiet", onclick }, text);
const listOf = (names) => names.join(", ").replace(/, ([^,]*)$/, " and $1");

const handlers = {
  light,
  show: (index) => {
    sheet.toMap();
    map.flyTo(shown[index]);
    light(index);
  },
  use: (index) => {
    const { lon, lat } = shown[index];
    pick({ lon, lat });
    focusContent();
  },
};

function resultsBody(results, home = new Set(results.map(({ region }) => region)).size === 1 ? results[0]?.region : null) {
  if (!results.length) return [h("p", { className: "note" }, NOTHING)];
  const use = state.mode === "similar" ? { sign: "⌖", title: "Search from here" } : { sign: "+", title: adding === "plus" ? "Add to the examples" : "Add to those to be unlike" };
  return [resultsHead("Most alike", showAll), resultGrid(results, { on: handlers, use, home })];
}

const picksOf = (infos = []) =>
  state.mode === "similar" ? (state.at ? [{ ...state.at }] : [])
  : state.mode === "walk" ? state.ends.map((place, index) => ({ ...place, label: "AB"[index], boundary: infos[index]?.boundary }))
  : [...state.plus.map((place) => ({ ...place, label: "+" })), ...state.minus.map((place) => ({ ...place, label: "−", kind: "minus" }))];

/** Put marks on the map and pieces into the panel. */
function show({ picks = [], results = null, labels, path = false, rings = [], body }) {
  shown = results ?? [];
  map.setMarks({ picks, path, rings, results: shown.map((result, index) => ({ ...result, label: labels?.[index] ?? index + 1 })) });
  const content = $("content");
  const had = content.contains(document.activeElement) ? document.activeElement : null;
  content.replaceChildren(...body.filter(Boolean));
  if (had) {
    // The keyboard stays where it was, or at least in the panel.
    const nameOf = (element) => element.getAttribute("aria-label") ?? element.textContent;
    ([...content.querySelectorAll("button")].find((button) => nameOf(button) === nameOf(had)) ?? content).focus({ preventScroll: true });
  }
  showWords();
}

const introNow = () => intro(regions, model, setRegion);

/** What is said of encoder and region: neither need be known when the rest is shown. */
function showWords() {
  $("about").replaceChildren(...about(model, regionNamed(state.region), isSignedIn() && onSignOut));
  document.querySelector(".intro")?.replaceWith(introNow());
}

/** Let a numbered place stand out, in both places. */
function light(index) {
  map.highlight(index);
  for (const element of document.querySelectorAll("[data-index]")) {
    element.classList.toggle("is-active", Number(element.dataset.index) === index);
  }
}

function onPin(index) {
  const element = document.querySelector(`[data-index="${index}"]`);
  sheet.open();
  element?.scrollIntoView({ block: "nearest" });
  element?.focus({ preventScroll: true });
}

function showAll() {
  sheet.toMap();
  map.showMarks();
}

function say(text, isBusy = false) {
  $("status").textContent = text;
  $("progress").hidden = !isBusy;
}

/** Words of a problem, with a button where something can be done about it. */
function showError(error, action = null) {
  $("error").hidden = !error;
  $("error").replaceChildren(...(error ? [h("p", {}, error.message)] : []), ...(action ? [h("button", { type: "button", className: "quiet", onclick: action[1] }, action[0])] : []));
  if (error && !(error instanceof Problem)) console.error(error);
}

function focusContent() {
  $("panel-body").scrollTop = 0;
  $("content").focus({ preventScroll: true });
}

async function copyLink() {
  try {
    await navigator.clipboard.writeText(location.href);
    say("Link copied.");
  } catch {
    say("Copy the link from the address bar: it holds this view."); // no clipboard without https
  }
}

function onSignOut() {
  signOut();
  location.reload();
}

function remove(key, index) {
  state[key] = state[key].filter((_, other) => other !== index);
  changed();
  focusContent();
}

/* ---- regions and filters ---- */

const regionNamed = (name) => regions.find((region) => region.name === name);
const searchable = () => regions.filter((region) => region.n_cells > 0);
const areaOf = ({ bounds: [w, s, e, n] }) => (e - w) * (n - s);

const holds = ({ bounds: [w, s, e, n] }, { lon, lat }) => lon >= w && lon <= e && lat >= s && lat <= n;

/** The smallest region around a place; one without embeddings only where there is no other. */
const regionAt = (place) =>
  regions.filter((region) => holds(region, place)).sort((a, b) => (b.n_cells > 0) - (a.n_cells > 0) || areaOf(a) - areaOf(b))[0];

const regionParams = () => (state.regions ?? []).map((name) => ["region", name]);

function filterParams() {
  const params = regionParams();
  if (state.min) params.push(["min_distance_m", state.min]);
  if (state.max) params.push(["max_distance_m", state.max]);
  return params;
}

/** The filters of this mode in words, to follow others; "" where there are none. */
function filterWords() {
  const { mode, min, max } = state;
  if (mode === "more") return min ? `, at least ${metres(min)} apart` : "";
  if (min && max) return `, ${metres(min)} to ${metres(max)} away`;
  if (min) return `, at least ${metres(min)} away`;
  return max ? `, at most ${metres(max)} away` : "";
}

/** Bring chooser, modes and filters to `state`. */
function showControls() {
  for (const button of document.querySelectorAll("[data-mode]")) button.setAttribute("aria-pressed", String(button.dataset.mode === state.mode));
  for (const element of document.querySelectorAll("[data-for]")) element.hidden = !element.dataset.for.split(" ").includes(state.mode);
  $("region").value = state.region;
  const option = (value, text, chosen) => h("option", { value, textContent: text, selected: value === chosen });
  const withOwn = (choices, own) => (own === null || choices.includes(own) ? choices : [...choices, own].sort((a, b) => a - b));
  $("min-distance").replaceChildren(...withOwn(MIN_CHOICES, state.min).map((m) => option(m, m ? metres(m) : "any distance", state.min)));
  $("max-distance").replaceChildren(option("", "any distance", state.max ?? ""), ...withOwn(MAX_CHOICES, state.max).map((m) => option(m, metres(m), state.max)));
  $("filter-regions").hidden = searchable().length < 2;
  $("region-checks").replaceChildren(...searchable().map(({ name }) =>
    h("label", {}, h("input", { type: "checkbox", value: name, checked: !state.regions || state.regions.includes(name) }), titleOf(name))));
  $("steps").value = state.steps;
  $("steps-out").textContent = state.steps;
  const where = state.regions ? ` · ${state.regions.length === 1 ? titleOf(state.regions[0]) : `${state.regions.length} regions`}` : "";
  const words = state.mode === "walk" ? `${state.steps} stops` : filterWords().replace(/^, /, "") || "any distance";
  $("filters-summary").textContent = words + where;
}

function wireControls() {
  for (const button of document.querySelectorAll("[data-mode]")) button.addEventListener("click", () => setMode(button.dataset.mode));
  $("region").addEventListener("change", ({ target }) => setRegion(target.value));
  $("min-distance").addEventListener("change", ({ target }) => {
    state.min = Number(target.value);
    if (state.max !== null && state.max <= state.min) state.max = null;
    changed();
  });
  $("max-distance").addEventListener("change", ({ target }) => {
    state.max = target.value ? Number(target.value) : null;
    if (state.max !== null && state.max <= state.min) state.min = 0;
    changed();
  });
  $("region-checks").addEventListener("change", ({ target }) => {
    const chosen = [...$("region-checks").querySelectorAll(":checked")].map(({ value }) => value);
    if (!chosen.length) {
      target.checked = true; // to search nowhere finds nothing
      return;
    }
    state.regions = chosen.length === searchable().length ? null : chosen;
    changed();
    $("region-checks").querySelector(`[value="${CSS.escape(target.value)}"]`)?.focus();
  });
  $("steps").addEventListener("input", ({ target }) => ($("steps-out").textContent = target.value));
  $("steps").addEventListener("change", ({ target }) => ((state.steps = Number(target.value)), changed()));
  $("overlay").addEventListener("change", showOverlay);
  $("opacity").addEventListener("input", () => (($("overlay").checked = true), showOverlay()));
  const [isOn, strength] = (localStorage.getItem(OVERLAY_KEY) ?? "1,55").split(",");
  $("overlay").checked = isOn === "1";
  $("opacity").value = strength;
  $("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the hash is the view's
    $("map").focus();
  });
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.defaultPrevented || document.querySelector("dialog[open]")) return;
    clear();
  });
  addEventListener("popstate", () => {
    state = fromHash(location.hash);
    if (!regions.length) return;
    if (!regionNamed(state.region)) state.region = (searchable()[0] ?? regions[0]).name;
    apply();
  });
}

function showOverlay() {
  const { checked } = $("overlay");
  map.setOverlay(checked ? $("opacity").value / 100 : 0);
  localStorage.setItem(OVERLAY_KEY, `${checked ? 1 : 0},${$("opacity").value}`);
}

/* ---- signing in ---- */

/** Ask until `check` takes the token, or the person gives up. */
function askForToken(check) {
  const dialog = $("token-dialog");
  const submit = $("token-submit");
  $("token").value = "";
  $("token-error").textContent = "";
  dialog.showModal();
  $("token").focus();
  return new Promise((resolve) => {
    const leave = (token) => {
      $("token-form").onsubmit = $("token-cancel").onclick = dialog.oncancel = null;
      $("token").value = "";
      dialog.close();
      resolve(token);
    };
    $("token-cancel").onclick = () => leave(null);
    dialog.oncancel = (event) => (event.preventDefault(), leave(null));
    $("token-form").onsubmit = async (event) => {
      event.preventDefault();
      const token = $("token").value.trim();
      if (!token) return ($("token-error").textContent = "Enter the token that you were given.");
      submit.disabled = true;
      try {
        if (await check(token)) return leave(token);
        $("token-error").textContent = "The service does not take this token.";
        $("token").select();
      } catch (error) {
        $("token-error").textContent = error.message;
      } finally {
        submit.disabled = false;
      }
    };
  });
}
