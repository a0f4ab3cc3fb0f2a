// A comparison as a picture: the interval of canary − stable against the margin beyond which the canary is worse.

import { h, pill, svg } from "./dom.js";

const VERDICTS = { "not worse": "good", worse: "bad", undecided: "busy" };
const ROOM = 0.38; // of the width, kept beyond the margin for its label

const isShare = (found) => !found.unit && /rate|share/.test(found.measure);

// Worse lies above the margin, but below one that is less than zero, as for a score.
const isBelow = (found) => found.margin < 0;

// Three digits, as `slipway rollout status` has them, and no line break between a figure and its unit.
function figure(found, value, signed) {
  if (value === null) return "?";
  const sign = signed && value > 0 ? "+" : "";
  const [shown, unit] = isShare(found) ? [value * 100, "%"] : [value, found.unit];
  const rounded = Number(Math.abs(shown) >= 100 ? shown.toFixed(0) : shown.toPrecision(3));
  return `${sign}${rounded}${unit ? `\u00a0${unit}` : ""}`;
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
  const held = found.stable === null;
  const line = (value, kind) => svg("line", { class: kind, x1: at(value), x2: at(value), y1: 4, y2: 26 });
  const label = (value, text, end) =>
    svg("text", { x: at(value), dx: end ? -5 : 5, y: 38, "text-anchor": end ? "end" : "start" }, text);
  const worse = below ? { x: 0, width: at(margin) } : { x: at(margin), width: `${100 - x(margin)}%` };
  const marks = [
    svg("rect", { class: "worse", y: 4, height: 22, ...worse }),
    line(0, "zero"),
    line(margin, "margin"),
    label(0, held ? "0" : "equal", !below),
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
  const interval = `${figure(found, found.low, true)} to ${figure(found, found.high, true)}`;
  const what = found.stable === null ? "The canary's figure" : "Canary minus stable";
  return `${found.measure}: ${what} lies between ${interval}; the margin is ${figure(found, found.margin, true)}: ${found.verdict}.`;
}

// A row of the list of comparisons.
export function comparison(found) {
  const sides = [`canary ${figure(found, found.canary)}`];
  if (found.stable !== null) sides.push(`stable ${figure(found, found.stable)}`);
  const counted = found.num_stable ? `${found.num_canary} and ${found.num_stable} seen` : `${found.num_canary} seen`;
  const unknown = found.low === null && found.high === null;
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
      h("span", { class: "muted" }, unknown ? "no interval yet" : `${figure(found, found.low, true)} to ${figure(found, found.high, true)}`),
      h("span", { class: "muted" }, counted),
    ),
  );
}

export const comparisons = (found) => h("ul", { class: "comparisons" }, found.map(comparison));
