// Small parts that several views are made of, and how numbers, sizes and times are written.
import { h } from "/docs/dom.js";

const EMPTY = "–";
const round = (value, digits) => value.toLocaleString("en", { maximumFractionDigits: digits });

/** 0.04, 3.2, 128, 12,400 */
export const number = (value) =>
  value === null || value === undefined ? EMPTY : round(value, value >= 100 ? 0 : value >= 10 ? 1 : 2);

export function seconds(value) {
  if (value === null || value === undefined) return EMPTY;
  const [scale, unit] = value < 0.001 ? [1e6, "µs"] : value < 1 ? [1000, "ms"] : [1, "s"];
  return `${round(value * scale, value * scale >= 10 ? 0 : 1)} ${unit}`;
}

export function bytes(value) {
  const step = Math.min(4, Math.floor(Math.log10(Math.max(1, value)) / 3));
  return `${number(value / 1000 ** step)} ${["B", "kB", "MB", "GB", "TB"][step]}`;
}

export function percent(share) {
  if (share > 0 && share < 0.0001) return "<0.01%";
  if (share < 1 && share > 0.9999) return ">99.99%";
  return `${round(share * 100, share > 0.1 && share < 0.995 ? 1 : 2)}%`;
}

/** "models/sentiment/versions/3" → "3" */
export const last = (name) => name.split("/").pop();

/** "VERSION_STATE_READY" → "ready" */
export const word = (name, prefix) => name.replace(prefix, "").replaceAll("_", " ").toLowerCase();

const STEPS = [[60, "second"], [60, "minute"], [24, "hour"], [30, "day"], [12, "month"], [Infinity, "year"]];
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

export function ago(iso) {
  if (!iso) return EMPTY;
  let left = Math.min(0, (Date.parse(iso) - Date.now()) / 1000);
  for (const [size, unit] of STEPS) {
    if (Math.abs(left) < size) {
      return h("time", { datetime: iso, title: new Date(iso).toLocaleString() }, relative.format(Math.round(left), unit));
    }
    left /= size;
  }
  return EMPTY;
}

const TONES = { ready: "good", serving: "good", failed: "bad", rejected: "bad", quarantined: "bad", "not serving": "bad", unavailable: "bad", unknown: "bad" };

/** A dot and a word; the word alone says everything. */
export const state = (text) => h("span", { class: `state ${TONES[text] ?? "mid"}` }, text);

export const chip = (...content) => h("span", { class: "chip" }, ...content);

/** What stands where there is nothing: a line, and what to do about it. */
export const empty = (title, ...hint) =>
  h("div", { class: "empty" }, h("p", {}, h("strong", {}, title)), hint.length ? h("p", { class: "quiet" }, ...hint) : null);

/** A failure, in place. */
export function failure(error) {
  // The notice above says what to do about it.
  if (error.status === 401) return empty("Nothing to see without a token.");
  return h("div", { class: "failure", role: "alert" },
    h("p", {}, h("strong", {}, error.reason || "No answer"), " ", error.message),
    error.id ? h("p", { class: "quiet" }, "Request ", h("code", {}, error.id)) : null);
}

export function heading(title, ...more) {
  return h("div", { class: "heading" }, h("h1", {}, title), ...more);
}

/** A button that copies what `text` gives. */
export function copier(text, label = "Copy") {
  const button = h("button", { class: "button small", type: "button" }, label);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select and copy";
    }
    setTimeout(() => { button.textContent = label; }, 1500);
  });
  return button;
}

/** A choice of models; keeps what was chosen where it is still there. */
export function choose(select, names, wanted) {
  const keep = wanted && names.includes(wanted) ? wanted : names.includes(select.value) ? select.value : names[0];
  select.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
  if (keep) select.value = keep;
}

/** A table whose rows become cards where it is narrow. */
export function table(caption, columns, rows) {
  return h("div", { class: "sheet" }, h("table", { class: "rows" },
    h("caption", { class: "hidden" }, caption),
    h("thead", {}, h("tr", {}, columns.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, rows.map((cells) => h("tr", {}, cells.map((cell, index) =>
      h("td", { "data-name": columns[index] }, h("div", {}, cell))))))));
}
