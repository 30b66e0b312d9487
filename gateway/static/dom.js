// Builds elements. Text is always text: nothing here reads HTML.

/** h("p", {class: "quiet"}, "text", child, ...) */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else element.setAttribute(key, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

/** A line of text whose `back-quoted` parts are code. */
export function inline(text) {
  return text.split(/(`[^`]+`)/).map((part) =>
    part.length > 2 && part.startsWith("`") ? h("code", {}, part.slice(1, -1)) : part);
}

/** Paragraphs and lists, as the comments of the contract have them. */
export function prose(text) {
  return text.trim().split(/\n\s*\n/).map((block) => {
    const lines = block.split("\n");
    if (!lines.every((line) => line.startsWith("- "))) return h("p", {}, inline(block));
    return h("ul", {}, lines.map((line) => h("li", {}, inline(line.slice(2)))));
  });
}

const TOKEN = /("(?:[^"\\]|\\.)*")(\s*:)?|\b(true|false|null)\b|(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)/g;

/** JSON text with its parts coloured. */
export function json(text) {
  const parts = [];
  let at = 0;
  for (const found of text.matchAll(TOKEN)) {
    const [all, string, colon, word, number] = found;
    parts.push(text.slice(at, found.index));
    if (string) parts.push(h("span", { class: colon ? "j-key" : "j-string" }, string), colon ?? "");
    else parts.push(h("span", { class: word ? "j-word" : "j-number" }, word ?? number));
    at = found.index + all.length;
  }
  parts.push(text.slice(at));
  return parts;
}
