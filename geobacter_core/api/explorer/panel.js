/* The pieces that the panel is put together from. Each function makes an element; none keeps anything. */

import { showPicture } from "./api.js";

const SVG = "http://www.w3.org/2000/svg";

/** An element with properties (`on…` are listeners, `data-…`/`aria-…` attributes) and children. Text is never markup. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** `porto-alegre` → `Porto Alegre`. */
export const titleOf = (name) => name.replace(/[-_]+/g, " ").replace(/(^|\s)\S/g, (letter) => letter.toUpperCase());

export function metres(value) {
  if (value < 1000) return `${Math.round(value)} m`;
  const km = value / 1000;
  return `${km < 10 ? km.toFixed(1).replace(/\.0$/, "") : Math.round(km).toLocaleString("en")} km`;
}

export const degrees = ({ lon, lat }) =>
  `${Math.abs(lat).toFixed(4)}° ${lat < 0 ? "S" : "N"}, ${Math.abs(lon).toFixed(4)}° ${lon < 0 ? "W" : "E"}`;

const count = (n) => n.toLocaleString("en");

function picture(path, alt = "") {
  const img = h("img", { alt, width: 192, height: 192, draggable: false });
  if (path) showPicture(img, path);
  return h("span", { className: "thumb" }, img);
}

/** The vector itself, one bar a number: up is positive, down negative. */
function barcode(embedding) {
  const top = Math.max(...embedding.map(Math.abs)) || 1;
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", embedding.map((value, index) => `M${index + 0.5} 0V${(-value / top).toFixed(3)}`).join(""));
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 -1 ${embedding.length} 2`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "barcode");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `The place's embedding: ${embedding.length} numbers`);
  svg.append(path);
  return svg;
}

/** Metres along a side of the pictures: all that the encoder learns from. */
const seenOf = (model) => model.context_m || model.size_m;

/** What the page says before anything was clicked. */
export function intro(regions, model, onRegion) {
  return h("div", { className: "intro" },
    h("p", { className: "lead" }, "Every place has a likeness somewhere else."),
    h("p", {}, `An encoder looked at ${model ? `${seenOf(model)} m` : "some hundred metres"} of the map around every cell and turned them into a vector. `
      + "Like vectors mean like places: the colours on the map show them, and a click finds the nearest ones."),
    h("h2", {}, "Start in"),
    h("ul", { className: "region-list" }, regions.map((region) => h("li", {},
      h("button", { type: "button", onclick: () => onRegion(region.name) },
        h("b", {}, titleOf(region.name)), h("span", {}, region.n_cells ? `${count(region.n_cells)} cells` : "no embeddings yet"))))),
  );
}

/** The place that was clicked. `info` is null while it is fetched. */
export function placeCard(place, info, { onCopy, onClear }) {
  const facts = info
    ? [h("h2", {}, titleOf(info.region)), h("p", {}, degrees(place)), h("p", {}, h("code", { title: "H3 cell" }, info.cell))]
    : [h("h2", {}, "…"), h("p", {}, degrees(place))];
  return h("section", { className: "place", "aria-label": "The place you picked" },
    picture(info?.image, "The map around the place, as the encoder sees it"),
    h("div", { className: "place-facts" }, facts,
      h("div", { className: "actions" },
        h("button", { type: "button", className: "quiet", onclick: onCopy }, "Copy link"),
        h("button", { type: "button", className: "quiet", onclick: onClear }, "Clear"))),
    info && h("div", { className: "vector", title: `${info.encoder}: ${info.embedding.length} numbers` }, barcode(info.embedding)),
  );
}

/** Heading above results, with a way to see them all on the map. */
export function resultsHead(title, onShowAll) {
  return h("div", { className: "results-head" },
    h("h2", {}, title),
    onShowAll && h("button", { type: "button", className: "quiet", onclick: onShowAll }, "Show all"));
}

/** Listeners of something that stands for a numbered place: looked at, it lights up on the map. */
const lights = (index, on) => ({
  onclick: () => on.show(index),
  onmouseenter: () => on.light(index),
  onmouseleave: () => on.light(null),
  onfocus: () => on.light(index),
  onblur: () => on.light(null),
});

/**
 * The thumbnails of similar places.
 * @param on `show(index)`, `light(index | null)`, `use(index)`
 * @param use what the small button on a thumbnail does, in words
 * @param home region that needs no mention
 */
export function resultGrid(results, { on, use, home }) {
  return h("ol", { className: "grid" }, results.map((result, index) => {
    const far = Number.isFinite(result.ground_m) ? metres(result.ground_m) : "";
    const away = result.region === home ? "" : titleOf(result.region);
    const label = `${index + 1}: similarity ${result.similarity.toFixed(3)}${far && `, ${far} away`}, ${titleOf(result.region)}. Show on the map.`;
    return h("li", { className: "card" },
      h("button", { type: "button", className: "card-main", "data-testid": "result", "data-index": index, "data-cell": result.cell, "aria-label": label, ...lights(index, on) },
        picture(result.image),
        h("b", { className: "number" }, String(index + 1)),
        h("span", { className: "meta" }, h("b", {}, result.similarity.toFixed(3)), h("span", {}, far)),
        away && h("span", { className: "away" }, away)),
      h("button", { type: "button", className: "card-use", title: use.title, "aria-label": `${use.title}: ${index + 1}`, onclick: () => on.use(index) }, use.sign));
  }));
}

/** Grey squares where thumbnails will be. */
export const skeleton = (n, className = "grid") =>
  h("ol", { className: `${className} is-waiting`, "aria-hidden": "true" },
    Array.from({ length: n }, () => h("li", { className: "card" }, h("span", { className: "thumb" }), h("span", { className: "meta" }, " "))));

/** The stops of a walk, one below the other along a line. */
export function walkList(steps, on) {
  return h("ol", { className: "walk" }, steps.map((step, index) => {
    const isEnd = index === 0 || index === steps.length - 1;
    return h("li", {},
      h("button", { type: "button", className: "stop", "data-testid": "step", "data-index": index, "data-cell": step.cell,
        "aria-label": `Stop ${index + 1} of ${steps.length}: ${titleOf(step.region)}, similarity ${step.similarity.toFixed(3)}. Show on the map.`, ...lights(index, on) },
        h("b", { className: isEnd ? "number is-end" : "number" }, labelOfStep(index, steps.length)),
        picture(step.image),
        h("span", { className: "stop-facts" },
          h("b", {}, index === 0 ? "From here" : isEnd ? "To here" : `${Math.round(step.t * 100)}% of the way`),
          h("span", {}, titleOf(step.region)),
          h("span", {}, isEnd ? degrees(step) : `similarity ${step.similarity.toFixed(3)}`))));
  }));
}

export const labelOfStep = (index, n) => (index === 0 ? "A" : index === n - 1 ? "B" : String(index + 1));

/** Collected places, each with a button that takes it away again. `infos` maps to null while fetched. */
export function chips(title, kind, places, infos, onRemove) {
  return h("section", { className: `chips ${kind}` },
    h("h2", {}, title),
    places.length
      ? h("ul", {}, places.map((place, index) => h("li", { className: "chip", "data-testid": "chip" },
        picture(infos[index]?.image),
        h("span", {}, infos[index] ? titleOf(infos[index].region) : "…", h("small", {}, degrees(place))),
        h("button", { type: "button", title: "Remove", "aria-label": `Remove ${degrees(place)}`, onclick: () => onRemove(index) }, "×"))))
      : h("p", { className: "note" }, kind === "plus" ? "None yet." : "None. Optional."));
}

/** Where the next click goes: to the examples, or to the counter-examples. */
export function adder(adding, onChange) {
  const choice = (kind, text) =>
    h("button", { type: "button", "aria-pressed": String(adding === kind), "data-adding": kind, onclick: () => onChange(kind) }, text);
  return h("div", { className: "segmented small", role: "group", "aria-label": "What the next click adds" },
    choice("plus", "+ like this"), choice("minus", "− unlike this"));
}

/** Encoder, map date and sign-out at the panel's foot. */
export function about(model, region, onSignOut) {
  const facts = [];
  if (model) facts.push(`${model.name} · ${model.style} · ${seenOf(model)} m windows · ${model.embedding_dim} numbers`);
  if (region?.osm_timestamp) facts.push(`${titleOf(region.name)}: map of ${region.osm_timestamp.slice(0, 10)}`);
  return [
    ...facts.map((fact) => h("p", {}, fact)),
    onSignOut && h("button", { type: "button", className: "quiet", onclick: onSignOut }, "Sign out"),
  ].filter(Boolean);
}
