// Asks for the fleet every two seconds and draws what has changed.

import { auditLog } from "./audit.js";
import { h, followLinksOutside } from "./dom.js";
import { modelCard, services } from "./model.js";
import { listenForTraces } from "./trace.js";
import { ago, moment } from "./words.js";

const POLL_MS = 2000;
const PATIENCE_MS = 10000;
const parts = new Map();
let seen = null;
let latest = null;

const place = (id) => document.getElementById(id);

// Draws a part of the page anew if what it shows has changed; what had the focus keeps it.
function draw(node, key, value, make) {
  const text = JSON.stringify(value);
  if (parts.get(key) === text) return;
  parts.set(key, text);
  const focused = node.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  const open = [...node.querySelectorAll("details[data-key][open]")].map((found) => found.dataset.key);
  node.replaceChildren(...[make(value)].flat());
  for (const name of open) node.querySelector(`details[data-key="${name}"]`)?.setAttribute("open", "");
  if (focused) node.querySelector(`[data-key="${focused}"]`)?.focus();
}

async function ask() {
  const answer = await fetch("api/fleet", { signal: AbortSignal.timeout(PATIENCE_MS), cache: "no-store" });
  if (answer.ok) return answer.json();
  if (answer.status === 401) throw new Error("You are signed out of Airflow. Sign in again, then come back to this page.");
  const said = await answer.json().catch(() => null);
  throw new Error(said?.detail ?? `Airflow answered ${answer.status} ${answer.statusText}.`);
}

function show(page) {
  seen = page.at;
  draw(place("services"), "services", [page.gateway_answers, page.gateway_url, page.mlflow_answers, page.mlflow_url], () =>
    services(page),
  );
  const main = place("models");
  if (main.getAttribute("aria-busy") === "true") {
    main.setAttribute("aria-busy", "false");
    main.replaceChildren();
  }
  draw(place("trouble"), "trouble", [page.gateway_answers, page.models.length > 0, page.damaged], () => trouble(page));
  place("user").textContent = page.may_press ? `Signed in as ${page.user}` : `Signed in as ${page.user}, who may only look`;
  const names = page.models.map((model) => model.name);
  draw(main, "names", [names, page.damaged.length], () =>
    names.length ? names.map((name) => h("section", { class: "card", "data-model": name })) : page.damaged.length ? [] : empty(),
  );
  for (const model of page.models) {
    const node = main.querySelector(`[data-model="${CSS.escape(model.name)}"]`);
    modelCard(node, model, page, draw, refresh);
  }
  draw(place("audit"), "audit", page.entries, auditLog);
  tellNews(page);
  if (!latest) goTo(new URLSearchParams(window.location.search).get("model"));
  latest = page;
}

// The model that a link from elsewhere asks for.
function goTo(name) {
  if (name) document.querySelector(`[data-model="${CSS.escape(name)}"]`)?.scrollIntoView();
}

function trouble(page) {
  const found = [];
  if (!page.gateway_answers && page.models.length) {
    found.push(
      banner(
        "The gateway does not answer. ",
        "What is shown is what the fleet is meant to be; the health of its replicas is not known, and clients may be getting no answers.",
      ),
    );
  }
  if (page.damaged.length) {
    const files = h("ul", null, page.damaged.map((file) => h("li", null, file.reason)));
    found.push(banner("What the fleet's files say is not all here. ", files));
  }
  return found;
}

const banner = (title, ...text) => h("div", { class: "banner bad" }, h("strong", null, title), text);

const empty = () =>
  h(
    "section",
    { class: "card empty" },
    h("h2", null, "Nothing is served yet"),
    h("p", { class: "muted" }, "A release registers a first version and rolls it out; then it is shown here."),
    h("p", null, h("code", null, "./slipway release demo")),
  );

// For who does not see the page: what is different from before, in a sentence.
function tellNews(page) {
  const said = [];
  for (const model of page.models) {
    const before = latest?.models.find((found) => found.name === model.name);
    if (!before) continue;
    const weights = (found) => found.versions.filter((row) => row.weight).map((row) => `version ${row.version} ${row.weight} %`);
    if (weights(before).join() !== weights(model).join()) said.push(`${model.name}: traffic is ${weights(model).join(", ")}.`);
    const paused = model.rollout?.paused;
    if (paused && !before.rollout?.paused) said.push(`${model.name}: paused by ${paused.by}.`);
    if (before.rollout && !model.rollout) {
      const ended = model.history.find((found) => found.generation === before.rollout.generation);
      if (ended) said.push(`${model.name}: rollout ${ended.generation} ended: ${ended.outcome}.`);
    }
  }
  if (said.length) place("news").textContent = said.join(" ");
}

function fail(error) {
  const stale = seen ? ` What is shown is from ${moment(seen)}.` : "";
  const reason = error.name === "TypeError" || error.name === "TimeoutError" ? "Airflow does not answer." : error.message;
  parts.delete("trouble");
  place("trouble").replaceChildren(banner("Not up to date. ", reason + stale));
  if (!seen) place("models").replaceChildren();
  document.body.classList.add("stale");
}

function tick() {
  const now = Date.now() / 1000;
  for (const node of document.querySelectorAll("time[data-at]")) node.textContent = ago(Number(node.dataset.at), now);
  if (seen) place("updated").textContent = `Updated ${ago(seen, now)}`;
}

async function refresh() {
  try {
    show(await ask());
    document.body.classList.remove("stale");
  } catch (error) {
    fail(error);
  }
  tick();
}

async function poll() {
  if (!document.hidden) await refresh();
  setTimeout(poll, POLL_MS);
}

followLinksOutside();
listenForTraces();
document.addEventListener("visibilitychange", () => document.hidden || refresh());
poll();
