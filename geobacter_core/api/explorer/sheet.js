/* On a phone the panel is a sheet at the bottom: dragged or tapped, it rests at one of three heights. */

const NARROW = matchMedia("(max-width: 719px)");

/** `onRest` is called whenever the room left to the map has changed. */
export function makeSheet(panel, handle, head, onRest) {
  const root = document.documentElement;
  let at = "low";
  let drag = null;

  const heights = () => {
    const low = handle.offsetHeight + head.offsetHeight;
    return { low, half: Math.max(low, Math.round(innerHeight * 0.5)), high: Math.round(innerHeight * 0.9) };
  };

  function rest(name) {
    at = name;
    const { [name]: height, low, half } = heights();
    root.style.setProperty("--sheet", `${height}px`);
    root.style.setProperty("--map-bottom", `${name === "low" ? low : half}px`); // below a high sheet the map need not change
    handle.setAttribute("aria-expanded", String(name !== "low"));
    onRest();
  }

  handle.addEventListener("click", () => {
    if (drag?.moved) return;
    rest({ low: "half", half: "high", high: "low" }[at]);
  });

  handle.addEventListener("pointerdown", (event) => {
    drag = { y: event.clientY, height: panel.offsetHeight, moved: false };
    handle.setPointerCapture(event.pointerId);
  });
  handle.addEventListener("pointermove", (event) => {
    if (!drag || !handle.hasPointerCapture(event.pointerId)) return;
    const by = drag.y - event.clientY;
    if (!drag.moved && Math.abs(by) < 6) return;
    drag.moved = true;
    panel.classList.add("is-dragged");
    const { low, high } = heights();
    root.style.setProperty("--sheet", `${Math.min(Math.max(drag.height + by, low), high)}px`);
  });
  const drop = () => {
    if (!drag?.moved) return;
    panel.classList.remove("is-dragged");
    const now = panel.offsetHeight;
    const near = Object.entries(heights()).sort(([, a], [, b]) => Math.abs(a - now) - Math.abs(b - now));
    rest(near[0][0]);
  };
  handle.addEventListener("pointerup", drop);
  handle.addEventListener("pointercancel", drop);

  const refit = () => NARROW.matches && rest(at);
  NARROW.addEventListener("change", () => (NARROW.matches ? rest(at) : onRest()));
  addEventListener("resize", refit);
  new ResizeObserver(() => at === "low" && refit()).observe(head); // the status may take another line
  refit();

  return {
    /** Make room for results, or for the map. */
    open: () => NARROW.matches && at === "low" && rest("half"),
    toMap: () => NARROW.matches && at === "high" && rest("half"),
  };
}
