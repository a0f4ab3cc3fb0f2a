// The newest entries of the audit log.

import { h } from "./dom.js";
import { ago, iso, moment } from "./words.js";

export function auditLog(entries) {
  if (!entries.length) return [];
  const rows = entries.map((row) =>
    h(
      "li",
      null,
      h("time", { class: "muted", datetime: iso(row.at), title: moment(row.at), "data-at": row.at }, ago(row.at, Date.now() / 1000)),
      h("strong", null, row.actor),
      h("span", null, row.action, row.model ? ` ${row.model}` : "", row.version ? ` version ${row.version}` : ""),
      h("span", { class: "why muted" }, row.reason),
    ),
  );
  return h("section", { class: "card" }, h("h2", null, "Audit log"), h("ul", { class: "entries" }, rows));
}
