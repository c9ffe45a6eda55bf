/* What a view is made of, and its form in the address's hash, so that a view can be shared. Never holds the token. */

export const MODES = ["similar", "walk", "more"];

export const initialState = () => ({
  mode: "similar",
  region: null, // name of the region that the chooser shows
  view: null, // { lat, lon, zoom }
  at: null, // similar: the place
  ends: [], // walk: up to two places
  plus: [], // more: places to be like
  minus: [], // more: places to be unlike
  min: 500, // metres
  max: null, // metres, or null: anywhere
  regions: null, // names to search in, or null: all
  steps: 7,
});

const toText = ({ lon, lat }) => `${lon.toFixed(5)},${lat.toFixed(5)}`;

function toPlace(text) {
  const [lon, lat] = (text ?? "").split(",").map(Number);
  return Math.abs(lon) <= 180 && Math.abs(lat) <= 85.06 ? { lon, lat } : null; // NaN fails the comparison
}

const toPlaces = (text) => (text ?? "").split(";").map(toPlace).filter(Boolean);

/** `#mode=similar&at=7.42,43.73&…`; commas and semicolons stay as they are, to be read by people. */
export function toHash(state) {
  const parts = [["mode", state.mode]];
  if (state.region) parts.push(["region", state.region]);
  if (state.mode === "similar" && state.at) parts.push(["at", toText(state.at)]);
  if (state.mode === "walk" && state.ends.length) parts.push(["ends", state.ends.map(toText).join(";")]);
  if (state.mode === "more") {
    if (state.plus.length) parts.push(["plus", state.plus.map(toText).join(";")]);
    if (state.minus.length) parts.push(["minus", state.minus.map(toText).join(";")]);
  }
  if (state.min !== 500) parts.push(["min", state.min]);
  if (state.max !== null) parts.push(["max", state.max]);
  if (state.regions) parts.push(["in", state.regions.join(",")]);
  if (state.steps !== 7) parts.push(["steps", state.steps]);
  if (state.view) parts.push(["view", `${state.view.zoom}/${state.view.lat.toFixed(5)}/${state.view.lon.toFixed(5)}`]);
  return `#${parts.map(([name, value]) => `${name}=${encodeURIComponent(value).replace(/%(2C|3B|2F)/g, decodeURIComponent)}`).join("&")}`;
}

/** Anything that cannot be read is as if it were not there: a mangled link still opens the page. */
export function fromHash(hash) {
  const said = new URLSearchParams(hash.replace(/^#/, ""));
  const state = initialState();
  const number = (name, low, high) => {
    const value = said.has(name) ? Number(said.get(name)) : NaN;
    return value >= low && value <= high ? value : null;
  };
  if (MODES.includes(said.get("mode"))) state.mode = said.get("mode");
  state.region = said.get("region");
  state.at = toPlace(said.get("at"));
  state.ends = toPlaces(said.get("ends")).slice(0, 2);
  state.plus = toPlaces(said.get("plus"));
  state.minus = toPlaces(said.get("minus"));
  state.min = number("min", 0, 2e7) ?? state.min;
  state.max = number("max", 1, 2e7);
  if (said.get("in")) state.regions = said.get("in").split(",");
  state.steps = Math.round(number("steps", 3, 15) ?? state.steps);
  const [zoom, lat, lon] = (said.get("view") ?? "").split("/").map(Number);
  if (zoom >= 0 && zoom <= 18 && Math.abs(lat) <= 85.06 && Math.abs(lon) <= 180) state.view = { zoom, lat, lon };
  return state;
}
