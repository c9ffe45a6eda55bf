/* The map: our own tiles, the cells' colours, the marks of places. Knows nothing of searches. */

import { getBlob, isAbort } from "./api.js";

const L = window.L; // Leaflet is a classic script, loaded before this module
const BASE_ZOOMS = [10, 18];
const CELL_ZOOMS = [8, 18];
const CLOSE_ZOOM = 16; // a window of 200 m is well seen
const FAR_ZOOM = 3; // from afar regions are labelled boxes
const LABEL_ZOOM = 10; // closer than this a region needs no label

export const prefersStill = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

const toLatLngs = (boundary) => boundary.map(([lon, lat]) => [lat, lon]);
const toBounds = ([west, south, east, north]) => L.latLngBounds([south, west], [north, east]);

/** Bounds of a tile in degrees, `[west, south, east, north]`. */
function tileBounds({ x, y, z }) {
  const n = 2 ** z;
  const lat = (row) => (Math.atan(Math.sinh(Math.PI * (1 - (2 * row) / n))) * 180) / Math.PI;
  return [(x / n) * 360 - 180, lat(y + 1), ((x + 1) / n) * 360 - 180, lat(y)];
}

const overlap = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];

/**
 * Tiles fetched with the token in a header, which an <img> cannot send, and shown as blobs. A tile that leaves
 * the view stops its request; a tile that no region touches makes none. A tile is a <div>, as Chromium draws a
 * frame around an <img> without a picture.
 */
const FetchedTiles = L.GridLayer.extend({
  initialize(pathOf, areas, options) {
    this._pathOf = pathOf;
    this._areas = areas;
    L.GridLayer.prototype.initialize.call(this, options);
    this.on("tileunload", ({ tile }) => {
      tile.stop?.abort();
      if (tile.blobUrl) URL.revokeObjectURL(tile.blobUrl);
    });
  },

  createTile(coords, done) {
    const tile = document.createElement("div");
    const box = tileBounds(coords);
    if (!this._areas.some((area) => overlap(area, box))) {
      setTimeout(done, 0, null, tile);
      return tile;
    }
    tile.stop = new AbortController();
    getBlob(this._pathOf(coords), { signal: tile.stop.signal, quiet: true }).then(
      (blob) => {
        if (tile.stop.signal.aborted) return;
        if (!blob) return done(null, tile); // no data here: the paper shows
        const img = document.createElement("img");
        img.alt = "";
        img.onload = () => done(null, tile);
        img.onerror = () => (img.remove(), done(new Error("not a picture"), tile));
        img.src = tile.blobUrl = URL.createObjectURL(blob);
        tile.append(img);
      },
      (error) => isAbort(error) || done(error, tile),
    );
    return tile;
  },
});

export class MapView {
  /** `on` has the callbacks `pick(place)`, `move()`, `region(name)`, `hover(index | null)` and `choose(index)`. */
  constructor(element, on) {
    this.on = on;
    this.map = L.map(element, {
      minZoom: FAR_ZOOM,
      maxZoom: BASE_ZOOMS[1],
      zoomControl: false,
      attributionControl: false,
      worldCopyJump: true,
      fadeAnimation: !prefersStill(),
      zoomAnimation: !prefersStill(),
      inertia: !prefersStill(),
    });
    L.control.attribution({ position: "bottomright", prefix: false })
      .addAttribution('© <a href="https://www.openstreetmap.org/copyright" target="_blank" rel="noopener">OpenStreetMap contributors</a>')
      .addTo(this.map);
    L.control.zoom({ position: "bottomright" }).addTo(this.map);
    L.control.scale({ position: "bottomleft", imperial: false }).addTo(this.map);
    this.map.createPane("cells").style.zIndex = 250; // above the base map, below all marks
    this.map.createPane("active").style.zIndex = 450; // the highlighted place, above the other outlines
    this.map.getPane("active").style.pointerEvents = "none";
    this.map.createPane("regions").style.zIndex = 240;
    this.tiles = L.layerGroup().addTo(this.map);
    this.frames = L.layerGroup();
    this.cells = L.layerGroup().addTo(this.map);
    this.marks = L.layerGroup().addTo(this.map);
    this.pins = [];
    this.lit = null;
    this.map.on("click", ({ latlng, originalEvent }) => {
      if (originalEvent.detail > 1) return; // the second half of a double click, which zooms
      const { lat, lng } = latlng.wrap();
      on.pick({ lon: lng, lat });
    });
    this.map.on("moveend", () => on.move());
    this.map.on("zoomend", () => this._showFrames());
    // The crosshair is for the keyboard only. Leaflet focuses the map at a click too, so :focus-visible cannot tell.
    element.addEventListener("pointerdown", () => element.classList.remove("is-keyed"), true);
    element.addEventListener("blur", () => element.classList.remove("is-keyed"));
    element.addEventListener("keyup", (event) => element.classList.toggle("is-keyed", event.target === element));
    element.addEventListener("keydown", (event) => {
      if (event.target !== element || event.key !== "Enter") return;
      event.preventDefault();
      on.pick(this.centre());
    });
  }

  centre() {
    const { lat, lng } = this.map.getCenter().wrap();
    return { lon: lng, lat };
  }

  view() {
    return { ...this.centre(), zoom: this.map.getZoom() };
  }

  /** Lay base map and colours of these regions; also to draw them again with a new token. */
  setRegions(regions) {
    this.tiles.clearLayers();
    this.cells.clearLayers();
    this.frames.clearLayers();
    const padded = regions.map(({ bounds: [w, s, e, n] }) => [w - 0.01, s - 0.01, e + 0.01, n + 0.01]);
    new FetchedTiles(({ z, x, y }) => `tile/${z}/${x}/${y}.png`, padded, { minZoom: BASE_ZOOMS[0], maxZoom: BASE_ZOOMS[1], className: "base-tiles" })
      .addTo(this.tiles);
    regions.forEach(({ name, title, bounds }, index) => {
      const frame = L.rectangle(toBounds(bounds), { pane: "regions", interactive: false, className: "frame" });
      const label = document.createElement("b");
      label.textContent = title;
      const icon = L.divIcon({ className: "frame-label", html: label, iconSize: null });
      this.frames.addLayer(frame).addLayer(
        L.marker([bounds[1], (bounds[0] + bounds[2]) / 2], { icon, keyboard: false, bubblingMouseEvents: false, zIndexOffset: -1000 })
          .on("click", () => this.on.region(name)), // the panel's list of regions is for the keyboard
      );
      new FetchedTiles(({ z, x, y }) => `cells/${encodeURIComponent(name)}/${z}/${x}/${y}.png`, [padded[index]], {
        minZoom: CELL_ZOOMS[0],
        maxZoom: CELL_ZOOMS[1],
        pane: "cells",
      }).addTo(this.cells);
    });
    this._showFrames();
  }

  /** How strongly the colours cover the base map, 0 to 1. */
  setOverlay(opacity) {
    this.map.getPane("cells").style.opacity = opacity;
    if (opacity > 0) this.cells.addTo(this.map);
    else this.cells.remove();
  }

  setView({ lat, lon, zoom }) {
    this.map.setView([lat, lon], zoom, { animate: false });
  }

  showBounds(bounds) {
    this.map.fitBounds(toBounds(bounds), { padding: [24, 24], maxZoom: CLOSE_ZOOM, animate: !prefersStill() });
  }

  /** Fit whatever is marked. */
  showMarks() {
    const bounds = this._markBounds();
    if (bounds) this.map.fitBounds(bounds, { paddingTopLeft: [50, 90], paddingBottomRight: [50, 50], maxZoom: 17, animate: !prefersStill() });
  }

  /** How many of the numbered places lie in view. */
  pinsInView() {
    const view = this.map.getBounds();
    return this.pins.filter(({ latlng }) => view.contains(latlng)).length;
  }

  flyTo({ lon, lat }) {
    const zoom = Math.max(this.map.getZoom(), CLOSE_ZOOM);
    if (prefersStill()) this.map.setView([lat, lon], zoom, { animate: false });
    else this.map.flyTo([lat, lon], zoom, { duration: 0.9 });
  }

  /**
   * Draw all marks anew.
   * @param picks places that were clicked: `{ lon, lat, boundary?, label?, kind }`, kind "plus" or "minus"
   * @param results numbered places: `{ lon, lat, boundary, label }`
   * @param path whether a line joins the results
   * @param rings radii around the first pick, metres
   */
  setMarks({ picks = [], results = [], path = false, rings = [] }) {
    this.marks.clearLayers();
    this.lit = null;
    const add = (layer) => layer.addTo(this.marks);
    const still = { interactive: false };
    for (const radius of rings) {
      if (picks.length) add(L.circle([picks[0].lat, picks[0].lon], { ...still, radius, className: "ring" }));
    }
    if (path && results.length) {
      const line = results.map(({ lon, lat }) => [lat, lon]);
      add(L.polyline(line, { ...still, className: "path-halo" }));
      add(L.polyline(line, { ...still, className: "path" }));
    }
    this.pins = results.map((result, index) => {
      const latlng = L.latLng(result.lat, result.lon);
      const shape = toLatLngs(result.boundary);
      add(L.polygon(shape, { ...still, className: "cell-halo" }));
      add(L.polygon(shape, { ...still, className: "cell" }));
      const pin = L.marker(latlng, {
        icon: L.divIcon({ className: "pin", html: `<b>${result.label}</b>`, iconSize: [24, 30], iconAnchor: [12, 32] }),
        keyboard: false, // its thumbnail in the panel is the tab stop
        bubblingMouseEvents: false,
        zIndexOffset: -10 * index, // of two that overlap, the more similar one is seen
      });
      pin.on("mouseover", () => this.on.hover(index));
      pin.on("mouseout", () => this.on.hover(null));
      pin.on("click", () => this.on.choose(index));
      add(pin);
      return { latlng, shape, pin };
    });
    for (const { lon, lat, boundary, label = "", kind = "plus" } of picks) {
      if (boundary) add(L.polygon(toLatLngs(boundary), { ...still, className: `pick-cell ${kind}` }));
      add(L.marker([lat, lon], {
        icon: L.divIcon({ className: `pick ${kind}`, html: `<b>${label}</b>`, iconSize: [22, 22] }),
        interactive: false,
        keyboard: false,
        zIndexOffset: 500,
      }));
    }
    this.outline = L.polygon([], { ...still, pane: "active", className: "cell-active" }).addTo(this.marks);
    this._picks = picks;
  }

  /** Make one of the numbered places stand out. */
  highlight(index) {
    const before = this.pins[this.lit];
    before?.pin.getElement()?.classList.remove("is-active");
    before?.pin.setZIndexOffset(-10 * this.lit);
    this.lit = index;
    const now = this.pins[index];
    now?.pin.getElement()?.classList.add("is-active");
    now?.pin.setZIndexOffset(1000);
    this.outline?.setLatLngs(now ? now.shape : []);
  }

  /** Move just as far as it takes to see a place well. */
  keepInView({ lon, lat }) {
    this.map.panInside([lat, lon], { padding: [60, 80], animate: !prefersStill() });
  }

  /** The room for the map has changed; its centre stays. */
  resize() {
    this.map.invalidateSize({ animate: false });
  }

  _showFrames() {
    if (this.map.getZoom() < LABEL_ZOOM) this.frames.addTo(this.map);
    else this.frames.remove();
  }

  _markBounds() {
    const points = [...this.pins.map(({ latlng }) => latlng), ...(this._picks ?? []).map(({ lon, lat }) => [lat, lon])];
    return points.length ? L.latLngBounds(points) : null;
  }
}
