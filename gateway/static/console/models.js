// The models of the registry: their list, from which each opens.
import { h } from "/docs/dom.js";
import { call, each, loaded } from "./api.js";
import { Model } from "./model.js";
import { chip, empty, failure, heading, last, state, table, word } from "./parts.js";
import { bar, policyOf } from "./traffic.js";

const COLUMNS = ["Model", "Task", "Latest", "Aliases", "Traffic", "Loaded"];
const PAGE = 50;

export class Models {
  constructor(root) {
    this.root = root;
  }

  async show(name) {
    const turn = (this.turn = Symbol("turn"));
    const fresh = this.name !== name;
    this.name = name;
    if (fresh) this.root.replaceChildren(h("p", { class: "quiet" }, "Reading the registry…"));
    let content;
    try {
      content = name ? await new Model(name).content() : await this.list();
    } catch (error) {
      content = [...(name ? [back()] : [heading("Models")]), failure(error)];
    }
    // Another one may have been asked for in the meantime.
    if (turn === this.turn) this.root.replaceChildren(...content);
  }

  async list() {
    const more = h("div", {});
    const rows = h("div", {});
    const running = (await each(["classifier", "generator"], loaded)).filter(Array.isArray).flat();
    const all = [];
    const next = async (token) => {
      const page = await call(`/registry/v1/models?page_size=${PAGE}&page_token=${encodeURIComponent(token)}`);
      all.push(...(await each(page.models, (model) => row(model, running))));
      rows.replaceChildren(table("Models", COLUMNS, all));
      const button = page.nextPageToken && h("button", { class: "button", type: "button", onclick: () => next(page.nextPageToken) }, "More models");
      more.replaceChildren(...(button ? [button] : []));
    };
    await next("");
    const intro = heading("Models", h("p", { class: "quiet" }, "What the registry keeps, and what of it is loaded."));
    if (all.length) return [intro, rows, more];
    return [intro, empty("The registry is empty.", "Push a folder with a model: ", h("code", {}, "gristmill push --alias=live ./my-model"), ".")];
  }
}

const back = () => h("p", { class: "back" }, h("a", { href: "#models" }, "← All models"));

async function row(model, running) {
  const id = last(model.name);
  const path = `/registry/v1/${model.name}`;
  const [aliases, policy] = await Promise.all([call(`${path}/aliases`), policyOf(model.name)]);
  const own = running.filter((one) => one.model === id);
  return [
    h("div", {}, h("a", { class: "strong", href: `#models/${encodeURIComponent(id)}` }, id), h("div", { class: "quiet about" }, model.description)),
    word(model.task, "TASK_"),
    model.latestVersion ? String(model.latestVersion) : "none",
    aliases.aliases.length ? aliases.aliases.map((one) => chip(`${last(one.name)} → ${one.version}`)) : h("span", { class: "quiet" }, "none"),
    policy ? bar(policy.splits, true) : h("span", { class: "quiet" }, aliases.aliases.some((one) => last(one.name) === "live") ? "all to live" : "none"),
    own.length ? own.map((one) => h("div", { class: "nowrap" }, `${one.version} `, state(word(one.state, "LOAD_STATE_"))))
      : h("span", { class: "quiet" }, model.task === "TASK_DATASET" ? "not served" : "nowhere"),
  ];
}
