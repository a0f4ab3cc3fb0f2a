// Elements from values. Text only ever becomes text: nothing here, and nothing that uses it, reads HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "onclick") element.addEventListener("click", value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// A link to another page, or plain text where there is none.
export const link = (text, url, attributes) => (url ? h("a", { href: url, ...attributes }, text) : h("span", null, text));

export const pill = (text, kind) => h("span", { class: `pill ${kind}` }, text);

// Airflow's frame lets a page neither open a window nor leave its frame; the page around it may. It does it for us.
export function followLinksOutside() {
  if (window.parent === window) return;
  const follow = (event) => {
    const found = event.target.closest("a[href]");
    if (!found || event.button > 1) return;
    event.preventDefault();
    const outer = window.parent.document.createElement("a");
    outer.href = found.href;
    outer.rel = "noopener noreferrer";
    const apart = event.ctrlKey || event.metaKey || event.button === 1 || found.target === "_blank";
    outer.target = apart ? "_blank" : "_self";
    window.parent.document.body.append(outer);
    outer.click();
    outer.remove();
  };
  document.addEventListener("click", follow);
  document.addEventListener("auxclick", follow);
}
