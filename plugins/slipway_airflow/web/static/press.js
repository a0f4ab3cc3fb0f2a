// The buttons: each opens a dialog that asks for the reason, and sends what was confirmed.

import { h } from "./dom.js";

const TEXTS = {
  promote: {
    button: "Promote…",
    title: (model) => `Promote a version of ${model.name}`,
    what: () => "Makes it the champion without a gate or a comparison. A rollout then brings the fleet to it, step by step.",
    confirm: "Promote",
    doing: "Promoting…",
  },
  pause: {
    button: "Pause…",
    title: (model) => `Pause rollout ${model.generation} of ${model.name}`,
    what: () => "The traffic stays as it is until somebody resumes the rollout. A canary that is found worse is taken back all the same.",
    confirm: "Pause",
    doing: "Pausing…",
  },
  resume: {
    button: "Resume…",
    title: (model) => `Resume rollout ${model.generation} of ${model.name}`,
    what: () => "The rollout goes on from where it is.",
    confirm: "Resume",
    doing: "Resuming…",
  },
  rollback: {
    button: "Roll back…",
    title: (model) => `Roll ${model.name} back`,
    what: (model) =>
      model.rollout
        ? `Takes version ${model.rollout.version} out of the traffic, and the champion back to what is served.`
        : "Back to the version before: at once while its replicas are warm, otherwise by a rollout.",
    confirm: "Roll back",
    doing: "Rolling back…",
    danger: true,
  },
};

// One of them stands out: what most likely comes next.
const next = (model) => (model.controls.includes("resume") ? "resume" : "promote");

export const buttons = (model, refresh) =>
  model.controls.map((action) =>
    h(
      "button",
      {
        type: "button",
        class: TEXTS[action].danger ? "danger" : action === next(model) ? "main" : "",
        "data-key": `${model.name}/${action}`,
        onclick: () => open(model, action, refresh),
      },
      TEXTS[action].button,
    ),
  );

async function open(model, action, refresh) {
  const text = TEXTS[action];
  const reason = h("textarea", { name: "reason", rows: 2, maxlength: 500, required: true });
  const trouble = h("p", { class: "trouble", role: "alert" });
  const confirm = h("button", { type: "submit", class: text.danger ? "danger full" : "main" }, text.confirm);
  const cancel = h("button", { type: "button", onclick: () => dialog.close() }, "Cancel");
  const choice = action === "promote" ? h("select", { name: "version", required: true, disabled: true }) : null;
  const form = h(
    "form",
    null,
    h("h2", { id: "dialog-title" }, text.title(model)),
    h("p", { class: "muted" }, text.what(model)),
    choice && h("label", null, "Version", choice),
    h("label", null, h("span", null, "Reason ", h("span", { class: "muted" }, "for the audit log")), reason),
    trouble,
    h("div", { class: "actions" }, cancel, confirm),
  );
  const dialog = h("dialog", { "aria-labelledby": "dialog-title" }, form);
  dialog.addEventListener("close", () => dialog.remove());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const asked = { model: model.name, action, reason: reason.value.trim(), generation: model.generation };
    if (choice) asked.version = choice.value;
    for (const button of [confirm, cancel]) button.disabled = true;
    confirm.textContent = text.doing;
    try {
      const done = await send(asked);
      dialog.close();
      say(done.said);
      await refresh();
    } catch (error) {
      trouble.textContent = error.message;
      for (const button of [confirm, cancel]) button.disabled = false;
      confirm.textContent = text.confirm;
    }
  });
  document.body.append(dialog);
  dialog.showModal();
  (choice ?? reason).focus();
  if (choice) await fillVersions(choice, model, trouble);
}

async function fillVersions(choice, model, trouble) {
  choice.replaceChildren(h("option", { value: "" }, "Asking MLflow…"));
  try {
    const answer = await fetch(`api/versions?model=${encodeURIComponent(model.name)}`);
    if (!answer.ok) throw new Error(await detail(answer));
    const roles = new Map(model.versions.map((row) => [row.version, row.role]));
    const found = await answer.json();
    const options = found.map((row) => {
      const notes = [new Date(row.created_at * 1000).toLocaleDateString("en", { dateStyle: "medium" })];
      if (roles.has(row.version)) notes.push(roles.get(row.version));
      if (row.last_rollout) notes.push(`last rollout: ${row.last_rollout}`);
      return h("option", { value: row.version }, `Version ${row.version} · ${notes.join(" · ")}`);
    });
    choice.replaceChildren(h("option", { value: "" }, options.length ? "Choose…" : "None is registered"), ...options);
    choice.disabled = !options.length;
    choice.focus();
  } catch (error) {
    trouble.textContent = error.message;
    choice.replaceChildren(h("option", { value: "" }, "Not known"));
  }
}

async function detail(answer) {
  const said = await answer.json().catch(() => null);
  return typeof said?.detail === "string" ? said.detail : `Airflow answered ${answer.status} ${answer.statusText}.`;
}

async function send(asked) {
  const answer = await fetch("api/press", {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Slipway-Press": "1" },
    body: JSON.stringify(asked),
  });
  if (!answer.ok) throw new Error(await detail(answer));
  return answer.json();
}

// A line at the bottom, for some seconds.
function say(text) {
  document.querySelector(".toast")?.remove();
  const toast = h("p", { class: "toast", role: "status" }, text);
  document.body.append(toast);
  setTimeout(() => toast.remove(), 8000);
}
