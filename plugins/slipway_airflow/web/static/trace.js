// From the id of a request to what its answer was made of.

import { h, link, pill } from "./dom.js";
import { moment } from "./words.js";

export function listenForTraces() {
  const form = document.getElementById("trace");
  const field = form.elements.request_id;
  const button = form.querySelector("button");
  const result = document.getElementById("traced");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const id = field.value.trim();
    if (!id) return;
    button.disabled = true;
    result.replaceChildren(h("p", { class: "muted" }, "Following it through the logs, MLflow and the artifact store…"));
    try {
      result.replaceChildren(...drawn(await ask(id)));
    } catch (error) {
      result.replaceChildren(h("p", { class: "trouble" }, error.message));
    }
    button.disabled = false;
  });
}

async function ask(id) {
  const answer = await fetch(`api/trace?request_id=${encodeURIComponent(id)}`, { cache: "no-store" });
  const said = await answer.json().catch(() => null);
  if (answer.ok) return said;
  throw new Error(typeof said?.detail === "string" ? said.detail : `${id} is no request's id: it has letters, digits, . _ and - only.`);
}

const short = (digest) => h("code", { title: digest }, (digest ?? "").slice(0, 12));
const outside = (text, url) => link(text, url, { target: "_blank" });

function drawn(found) {
  const { request, rollout, version, recipe, quantization, validation } = found;
  const asked = [`${moment(request.at)}, status ${request.status}`];
  if (request.duration_ms !== null) asked.push(`${Math.round(request.duration_ms)} ms`);
  if (request.client) asked.push(`by ${request.client}`);
  const rows = [
    ["Request", [h("strong", null, request.request_id), ` ${asked.join(", ")}`]],
    version && ["Version", [outside(`${version.name} version ${version.version}`, version.url), ", bundle ", short(version.bundle_digest)]],
    rollout && [
      "Rollout",
      [link(`#${rollout.generation}`, rollout.url), ` ${rollout.outcome}, asked for by ${rollout.by}${rollout.why ? `: ${rollout.why}` : ""}`],
    ],
    found.runs.length && ["Steps", found.runs.map((run, index) => [index ? " · " : "", outside(run.step, run.url)]).flat()],
    recipe && ["Recipe", [`${recipe.name}, ${recipe.method} of ${recipe.base_model}, `, short(recipe.digest)]],
    quantization && ["Quantization", [h("strong", null, quantization.scheme), ` ${quantization.reason}`]],
    validation && [
      "Data set",
      [`${validation.train_rows} training rows keep ${validation.rules} rules; rows `, short(validation.artifact_digest), ", file ", short(validation.train_digest)],
    ],
  ].filter(Boolean);
  return [
    h("dl", null, rows.map(([name, what]) => h("div", null, h("dt", { class: "muted" }, name), h("dd", null, what)))),
    ...found.missing.map((why) => h("p", { class: "line" }, pill("missing", "quiet"), h("span", { class: "muted" }, why))),
  ];
}
