// Light or dark as Airflow's page around this one is; alone, as the system is. Runs before the first paint.
"use strict";
(() => {
  const own = document.documentElement;
  const outer = window.parent === window ? null : window.parent.document.documentElement;
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const choose = () => {
    const said = ["dark", "light"].find((name) => outer?.classList.contains(name));
    own.dataset.theme = said ?? (system.matches ? "dark" : "light");
  };
  choose();
  system.addEventListener("change", choose);
  if (outer) new MutationObserver(choose).observe(outer, { attributes: true, attributeFilter: ["class"] });
})();
