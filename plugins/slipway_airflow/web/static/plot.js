// A comparison as a picture: the interval of canary − stable against the margin beyond which the canary is worse.

import { h, pill, svg } from "./dom.js";

const VERDICTS = { "not worse": "good", worse: "bad", undecided: "busy" };
const ROOM = 0.38; // of the width, kept beyond the margin for its label

const EDGE = 13; // per cent of the width, in which a label turns inwards

// Worse lies above the margin, but below one that is less than zero, as for a score.
const isBelow = (found) => found.margin < 0;

// Held to a limit by itself, with nothing beside it.
const isHeld = (found) => found.stable === null;

// Three digits, as `slipway rollout status` has them.
function number(value, signed) {
  const rounded = Number(Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(3));
  return `${signed && rounded > 0 ? "+" : ""}${rounded}`.replace("-", "−");
}

// A share is in per cent, a difference of two in points. No line break comes between a figure and its unit.
function inUnit(found, text, signed) {
  const unit = found.unit === "points" && !signed ? "%" : found.unit;
  return unit ? `${text}\u00a0${unit}` : text;
}

const figure = (found, value, signed) => inUnit(found, number(value, signed), signed);

// What is known of the difference, or of the canary's own figure.
function interval(found) {
  const signed = !isHeld(found);
  if (found.low === null && found.high === null) return "no interval yet";
  if (found.low === null) return `at most ${figure(found, found.high, signed)}`;
  if (found.high === null) return `at least ${figure(found, found.low, signed)}`;
  return inUnit(found, `${number(found.low, signed)} to ${number(found.high, signed)}`, signed);
}

function scale(found) {
  const { margin } = found;
  const below = isBelow(found);
  const known = [0, margin, found.low, found.high].filter((value) => value !== null);
  let low = Math.min(...known);
  let high = Math.max(...known);
  const span = high - low || Math.abs(margin) || 1;
  low -= span * 0.12;
  high += span * 0.12;
  if (below) low = Math.min(low, margin - ((high - margin) * ROOM) / (1 - ROOM));
  else high = Math.max(high, margin + ((margin - low) * ROOM) / (1 - ROOM));
  return (value) => (100 * (value - low)) / (high - low);
}

function drawing(found) {
  const { margin } = found;
  const below = isBelow(found);
  const x = scale(found);
  const at = (value) => `${x(value)}%`;
  const held = isHeld(found);
  const line = (value, kind) => svg("line", { class: kind, x1: at(value), x2: at(value), y1: 4, y2: 26 });
  const label = (value, text, end) =>
    svg("text", { x: at(value), dx: end ? -5 : 5, y: 38, "text-anchor": end ? "end" : "start" }, text);
  const worse = below ? { x: 0, width: at(margin) } : { x: at(margin), width: `${100 - x(margin)}%` };
  const marks = [
    svg("rect", { class: "worse", y: 4, height: 22, ...worse }),
    line(0, "zero"),
    line(margin, "margin"),
    label(0, held ? "0" : "equal", below ? x(0) > 100 - EDGE : x(0) > EDGE),
    label(margin, `${held ? "limit" : "margin"} ${figure(found, margin, !held)}`, below),
  ];
  if (found.low !== null || found.high !== null) {
    const from = found.low === null ? 0 : x(found.low);
    const to = found.high === null ? 100 : x(found.high);
    marks.push(svg("line", { class: "interval", x1: `${from}%`, x2: `${Math.max(to, from + 0.6)}%`, y1: 15, y2: 15 }));
    for (const end of [found.low, found.high]) if (end !== null) marks.push(line(end, "end"));
  }
  const point = found.canary === null ? null : held ? found.canary : found.stable === null ? null : found.canary - found.stable;
  if (point !== null && x(point) >= 0 && x(point) <= 100) marks.push(svg("circle", { cx: at(point), cy: 15, r: 4.5 }));
  const kind = VERDICTS[found.verdict] ?? "busy";
  return svg("svg", { class: `plot ${kind}`, role: "img", "aria-label": sentence(found), height: 42 }, marks);
}

function sentence(found) {
  const what = isHeld(found) ? "the canary's figure" : "canary minus stable";
  return `${found.measure}: ${what}: ${interval(found)}; margin ${figure(found, found.margin, !isHeld(found))}: ${found.verdict}.`;
}

// A row of the list of comparisons.
export function comparison(found) {
  const sides = ["canary", "stable"].filter((side) => found[side] !== null).map((side) => `${side} ${figure(found, found[side])}`);
  const counted = found.num_stable ? `${found.num_canary} and ${found.num_stable} seen` : `${found.num_canary} seen`;
  return h(
    "li",
    { "data-measure": found.measure },
    h(
      "div",
      { class: "measure" },
      h("strong", null, found.measure),
      h("span", { class: "muted" }, found.canary === null ? "no figures yet" : sides.join(" · ")),
    ),
    drawing(found),
    h(
      "div",
      { class: "verdict" },
      pill(found.verdict, VERDICTS[found.verdict] ?? "busy"),
      h("span", { class: "muted" }, interval(found)),
      h("span", { class: "muted" }, counted),
    ),
  );
}

export const comparisons = (found) => h("ul", { class: "comparisons" }, found.map(comparison));
