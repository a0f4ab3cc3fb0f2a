// Times and figures as people read them.

const STEPS = [
  [60, "second", 1],
  [3600, "minute", 60],
  [86400, "hour", 3600],
  [Infinity, "day", 86400],
];
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

export function ago(at, now) {
  const seconds = Math.max(0, now - at);
  if (seconds < 5) return "just now";
  const [, unit, size] = STEPS.find(([limit]) => seconds < limit);
  return relative.format(-Math.floor(seconds / size), unit);
}

export function lasted(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

export const moment = (at) => new Date(at * 1000).toLocaleString("en", { dateStyle: "medium", timeStyle: "medium" });

export const iso = (at) => new Date(at * 1000).toISOString();

// A share of the traffic, which no line break comes into.
export const percent = (weight) => `${weight}\u00a0%`;
