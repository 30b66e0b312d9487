// The page: which view is seen, where it leads, and what to do when a token is missing.
import { h } from "/docs/dom.js";
import { token } from "/docs/settings.js";
import { Chat } from "./chat.js";
import { Charts } from "./charts.js";
import { Classify } from "./classify.js";
import { feed } from "./metrics.js";
import { Models } from "./models.js";
import { Overview } from "./overview.js";

const byId = (id) => document.getElementById(id);
const tabs = [...document.querySelectorAll("[role=tab]")];
const makers = { overview: Overview, models: Models, classify: Classify, chat: Chat, charts: Charts };
const views = {};
let current = "";

/** "#models/sentiment" → ["models", "sentiment"] */
function place() {
  const [name, ...rest] = location.hash.slice(1).split("/");
  return makers[name] ? [name, decodeURIComponent(rest.join("/"))] : ["overview", ""];
}

function route() {
  if (location.hash === "#main") return;
  const [name, rest] = place();
  if (current && current !== name) views[current].hide?.();
  current = name;
  views[name] ??= new makers[name](byId(`${name}-panel`));
  for (const tab of tabs) {
    const chosen = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
    byId(tab.getAttribute("aria-controls")).hidden = !chosen;
    if (chosen) {
      document.title = `${rest ? `${rest} · ` : ""}${tab.textContent} · Gristmill`;
      tab.parentElement.scrollLeft = tab.offsetLeft - 40;
    }
  }
  views[name].show(rest);
}

/** Arrows, Home and End walk through the tabs; Space opens one as Enter does. */
function walk(event) {
  const at = tabs.indexOf(event.target);
  const steps = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: -1, " ": at };
  if (!(event.key in steps)) return;
  event.preventDefault();
  const tab = tabs.at(steps[event.key] % tabs.length);
  tab.focus();
  tab.click();
}

function refused({ detail }) {
  const missing = detail.status === 401;
  byId("refused").replaceChildren(
    h("p", {}, h("strong", {}, missing ? (token() ? "This token is not known here." : "This gateway asks for a token.") : "This token may not do that."), " ",
      missing ? "Give one that its token file knows; it stays in this tab." : detail.message),
    h("button", { class: "button small", type: "button", onclick: () => byId("token").focus() }, "Enter a token"));
  byId("refused").hidden = false;
  byId("token").setAttribute("aria-invalid", "true");
}

let settling;
function changed() {
  clearTimeout(settling);
  settling = setTimeout(() => {
    byId("refused").hidden = true;
    byId("token").removeAttribute("aria-invalid");
    feed.restart();
    route();
  }, 400);
}

document.addEventListener("refused", refused);
document.querySelector("[role=tablist]").addEventListener("keydown", walk);
byId("token").addEventListener("input", changed);
byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("main").focus();
});
window.addEventListener("hashchange", route);
feed.restart();
route();
