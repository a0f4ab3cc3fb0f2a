// One model's card: traffic, rollout, versions, replicas, history.

import { h, link, pill } from "./dom.js";
import { comparisons } from "./plot.js";
import { buttons } from "./press.js";
import { ago, iso, lasted, moment, percent } from "./words.js";

const ROLES = { serving: "serving", canary: "canary", previous: "kept warm", champion: "champion, not served yet" };
const OUTCOMES = {
  promoted: "good",
  failed: "bad",
  "rolled back": "bad",
  superseded: "quiet",
  unchanged: "quiet",
  running: "busy",
};
const PHASES = ["plan", "start_canary", "shift", "promote", "retire"];
const PHASE_NAMES = {
  plan: "Plan",
  start_canary: "Start canary",
  shift: "Shift traffic",
  promote: "Promote",
  retire: "Retire",
};
const FINDINGS = { healthy: "good", unhealthy: "bad", undecided: "busy" };
const SHOWN = 5;

const PARTS = ["head", "traffic", "rollout", "versions", "replicas", "history"];

export function modelCard(node, model, page, draw, refresh) {
  if (!node.childElementCount) node.append(...PARTS.map((part) => h("div", { "data-part": part, class: part })));
  const part = (name, value, make) =>
    draw(node.querySelector(`:scope > [data-part="${name}"]`), `${model.name}/${name}`, value, make);
  const shown = page.may_press ? buttons(model, refresh) : [];
  part("head", [model.champion, model.versions, model.mlflow_url, model.controls, model.generation], () => head(model, shown));
  part("traffic", model.versions, traffic);
  part("rollout", [model.rollout, model.judgement, model.versions], () => (model.rollout ? underWay(model) : []));
  part("versions", model.versions, versionList);
  part("replicas", model.replicas, replicaList);
  part("history", model.history, history);
}

export const services = (page) => [
  h("li", null, service("Gateway", page.gateway_answers, null, page.gateway_url)),
  h("li", null, service("MLflow", page.mlflow_answers, page.mlflow_url, page.mlflow_url)),
];

const service = (name, answers, url, address) =>
  h(
    "span",
    { class: `chip ${answers ? "good" : "bad"}`, title: address ?? "" },
    h("span", { class: "dot", "aria-hidden": "true" }),
    link(name, url, { target: "_blank" }),
    h("span", { class: "muted" }, answers ? "answers" : "does not answer"),
  );

function head(model, shown) {
  const serving = model.versions.find((row) => row.role === "serving");
  return [
    h(
      "div",
      { class: "title" },
      h("h2", null, link(model.name, model.mlflow_url, { target: "_blank", title: "The model in MLflow" })),
      h(
        "p",
        { class: "muted" },
        serving ? `Version ${serving.version} is served` : "Nothing is served",
        model.champion && model.champion !== serving?.version ? `; version ${model.champion} should be.` : ".",
      ),
    ),
    shown.length && h("div", { class: "buttons", role: "group", "aria-label": `What to do with ${model.name}` }, shown),
  ].filter(Boolean);
}

function traffic(versions) {
  const shares = versions.filter((row) => row.weight > 0);
  if (!shares.length) return h("p", { class: "muted" }, "No traffic goes to this model.");
  const said = shares.map((row) => `version ${row.version} (${ROLES[row.role]}) ${row.weight} %`).join(", ");
  const bar = h("div", { class: "bar", role: "img", "aria-label": `Traffic: ${said}` });
  for (const row of shares) {
    const share = percent(row.weight);
    const piece = h("span", { class: row.role, title: `version ${row.version}: ${share}` }, h("b", null, share));
    piece.style.flexGrow = row.weight;
    bar.append(piece);
  }
  return bar;
}

const time = (at) => h("time", { datetime: iso(at), title: moment(at), "data-at": at }, ago(at, Date.now() / 1000));

function underWay({ rollout, judgement, versions }) {
  const canary = versions.find((row) => row.role === "canary");
  const done = new Set(["plan", ...rollout.phases]);
  const current = PHASES.find((phase) => !done.has(phase));
  const steps = PHASES.map((phase) =>
    h(
      "li",
      { class: done.has(phase) ? "done" : phase === current ? "now" : "", "aria-current": phase === current ? "step" : null },
      PHASE_NAMES[phase],
      phase === "shift" && phase === current && canary ? ` · ${percent(canary.weight)}` : "",
    ),
  );
  return [
    h(
      "div",
      { class: "line" },
      h("h3", null, `Rollout ${rollout.generation}`),
      rollout.paused ? pill("paused", "quiet") : pill("under way", "busy"),
      h("span", null, `version ${rollout.previous ?? "none"} → ${rollout.version}`),
      h("span", { class: "muted" }, "began ", time(rollout.started_at), rollout.by ? `, asked for by ${rollout.by}` : ""),
      rollout.run_url && h("a", { href: rollout.run_url }, "DAG run"),
    ),
    rollout.paused &&
      h("p", { class: "paused" }, h("strong", null, `Paused by ${rollout.paused.by} `), time(rollout.paused.at), `: ${rollout.paused.reason}`),
    h("ol", { class: "phases", "aria-label": "Phases" }, steps),
    judgement && judged(judgement),
  ].filter(Boolean);
}

function judged(judgement) {
  const against = judgement.stable_version ? `version ${judgement.version} against ${judgement.stable_version}` : `version ${judgement.version}`;
  const probes = judgement.probes === 1 ? "1 probe" : `${judgement.probes} probes`;
  const seen = `${judgement.client_requests} requests of clients and ${probes}`;
  return h(
    "div",
    { class: "judgement" },
    h(
      "div",
      { class: "line" },
      h("h3", null, "The canary compared"),
      pill(judgement.finding, FINDINGS[judgement.finding] ?? "busy"),
      h("span", null, `step ${judgement.step + 1}, ${percent(judgement.weight)} of the traffic: ${against}`),
      h("span", { class: "muted" }, seen),
    ),
    judgement.comparisons.length
      ? comparisons(judgement.comparisons)
      : h("p", { class: "muted" }, "There is nothing to compare yet."),
    judgement.reason && h("p", { class: "muted" }, judgement.reason),
  );
}

function versionList(versions) {
  const rows = versions.map((row) =>
    h(
      "li",
      null,
      h("span", { class: `mark ${row.role}`, "aria-hidden": "true" }),
      h(
        "span",
        { class: "name" },
        h("strong", null, link(`Version ${row.version}`, row.mlflow_url, { target: "_blank", title: "The version in MLflow" })),
        h("span", { class: "muted" }, ROLES[row.role], row.generation ? `, rollout ${row.generation}` : ""),
      ),
      h("span", { class: "figure" }, percent(row.weight)),
    ),
  );
  return [h("h3", null, "Versions"), rows.length ? h("ul", { class: "rows" }, rows) : h("p", { class: "muted" }, "None.")];
}

function replicaList(replicas) {
  const kinds = { healthy: "good", unhealthy: "bad", unknown: "quiet", starting: "busy", leaving: "quiet" };
  const state = (row) => (row.use === "serving" ? row.health : row.use);
  const rows = replicas.map((row) =>
    h(
      "li",
      null,
      row.aside ? pill(`put aside: ${row.aside.kind}`, "bad") : pill(state(row), kinds[state(row)]),
      h("span", { class: "name" }, h("strong", null, row.id), h("span", { class: "muted" }, row.address)),
      h("span", { class: "muted" }, `version ${row.version}`),
      h("span", { class: "figure" }, percent(row.weight)),
      row.aside && h("span", { class: "why muted" }, "Given nothing new since ", time(row.aside.since), `: ${row.aside.reason}.`),
    ),
  );
  const well = replicas.filter((row) => row.health === "healthy" && !row.aside).length;
  const known = replicas.some((row) => row.health !== "unknown");
  const count = known ? ` ${well} of ${replicas.length} healthy` : " whose health is not known";
  return [
    h("h3", null, "Replicas", replicas.length ? h("span", { class: "muted" }, count) : ""),
    rows.length ? h("ul", { class: "rows" }, rows) : h("p", { class: "muted" }, "None runs."),
  ];
}

function history(rollouts) {
  const rows = rollouts.map(past);
  const list = [h("ul", { class: "past" }, rows.slice(0, SHOWN))];
  if (rows.length > SHOWN) {
    const older = h("ul", { class: "past" }, rows.slice(SHOWN));
    list.push(h("details", { "data-key": "older" }, h("summary", null, `${rows.length - SHOWN} older`), older));
  }
  return [h("h3", null, "Rollouts"), rows.length ? list : h("p", { class: "muted" }, "None has ended yet.")].flat();
}

const past = (row) =>
  h(
    "li",
    null,
    h("span", { class: "number" }, `#${row.generation}`),
    pill(row.outcome, OUTCOMES[row.outcome] ?? "quiet"),
    h("span", { class: "move" }, `${row.previous ?? "none"} → `, link(row.version, row.mlflow_url, { target: "_blank" })),
    h(
      "div",
      { class: "why" },
      row.reason || row.why || h("span", { class: "muted" }, "nobody said why"),
      row.by && h("span", { class: "muted" }, ` · by ${row.by}`),
      row.comparisons.length > 0 &&
        h("details", { "data-key": `judged-${row.generation}` }, h("summary", null, "What was compared"), comparisons(row.comparisons)),
    ),
    h(
      "span",
      { class: "when muted" },
      time(row.ended_at ?? row.started_at),
      row.ended_at ? `, took ${lasted(row.ended_at - row.started_at)}` : "",
      row.run_url && [" · ", h("a", { href: row.run_url }, "DAG run")],
    ),
  );
