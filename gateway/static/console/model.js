// One model: where its calls go, its versions, what is loaded of it, how to call it, its history.
import { h } from "/docs/dom.js";
import { call, each, loaded } from "./api.js";
import { History } from "./history.js";
import { ago, bytes, chip, empty, last, number, state, table, word } from "./parts.js";
import { snippets } from "./snippets.js";
import { bar, policyOf } from "./traffic.js";

const COLUMNS = ["Version", "State", "Aliases", "Size", "Metrics", "Created", "Digest"];
const FEW = 4;
const SERVICE = { TASK_CLASSIFICATION: "classifier", TASK_GENERATION: "generator" };

export class Model {
  constructor(id) {
    this.id = id;
    this.name = `models/${id}`;
    this.path = `/registry/v1/models/${encodeURIComponent(id)}`;
  }

  async content() {
    const [{ model }, { aliases }, policy, versions] = await Promise.all([
      call(this.path), call(`${this.path}/aliases?page_size=1000`), policyOf(this.name), call(`${this.path}/versions?page_size=50`)]);
    const service = SERVICE[model.task];
    const [running] = service ? await each([service], loaded) : [[]];
    const own = Array.isArray(running) ? running.filter((one) => one.model === this.id) : [];
    const signature = own[0]?.signature ?? versions.versions.find((one) => one.signature)?.signature;
    const history = new History(this.path);
    await history.more();
    return [
      h("p", { class: "back" }, h("a", { href: "#models" }, "← All models")),
      this.head(model, own),
      this.traffic(policy, aliases),
      h("h2", {}, "Versions"), this.versions(versions, aliases),
      ...(service ? [h("h2", {}, "Loaded"), this.loaded(own, service)] : []),
      ...(service ? [h("h2", {}, "Call it"), snippets(this.id, service, signature)] : []),
      h("h2", {}, "History"), history.element,
    ];
  }

  head(model, own) {
    const isReady = own.some((one) => one.state === "LOAD_STATE_READY");
    const view = model.task === "TASK_GENERATION" ? "chat" : "classify";
    return h("div", { class: "heading" },
      h("div", { class: "head-row" }, h("h1", {}, this.id), chip(word(model.task, "TASK_")),
        model.archiveTime ? chip("archived") : null,
        Object.entries(model.labels).map(([key, value]) => chip(`${key}=${value}`)),
        isReady ? h("a", { class: "button primary", href: `#${view}/${encodeURIComponent(this.id)}` }, view === "chat" ? "Chat with it" : "Try it") : null),
      h("p", { class: "quiet" }, model.description || "It has no description."));
  }

  traffic(policy, aliases) {
    const live = aliases.find((one) => last(one.name) === "live");
    const parts = [];
    if (policy) {
      parts.push(bar(policy.splits), h("p", { class: "quiet" },
        policy.stickyKey ? `One caller stays on one version, by ${policy.stickyKey}. ` : "Each call is drawn by itself. ",
        policy.shadowVersion ? `Version ${policy.shadowVersion} sees a copy of every call.` : ""));
    } else if (live) {
      parts.push(bar([{ alias: "live", weight: 1 }]), h("p", { class: "quiet" }, `There is no traffic policy: calls go to live, version ${live.version}.`));
    } else {
      parts.push(h("p", { class: "quiet" }, "Nothing points to a version, so calls must name one. ", h("code", {}, `gristmill promote ${this.id} 1`), " moves its alias live."));
    }
    const gates = aliases.flatMap((one) => (one.gates ?? []).map((gate) => h("li", {}, gated(last(one.name), gate))));
    return h("section", { class: "sheet pad" }, h("h2", { class: "name" }, "Where calls go"), parts,
      h("p", { class: "chips" }, aliases.map((one) => chip(`${last(one.name)} → ${one.version}`))),
      gates.length ? h("ul", { class: "quiet gates" }, gates) : null);
  }

  versions({ versions, nextPageToken }, aliases) {
    if (!versions.length) {
      return empty("It has no version yet.", "Push a folder: ", h("code", {}, `gristmill push --name=${this.id} ./my-model`), ".");
    }
    const rows = versions.map((one) => version(one, aliases.filter((alias) => alias.version === one.version)));
    return h("div", {}, table("Versions", COLUMNS, rows),
      nextPageToken ? h("p", { class: "quiet" }, "These are the newest 50; ", h("code", {}, `gristmill ls ${this.id}`), " lists all.") : null);
  }

  loaded(own, service) {
    if (!own.length) return empty(`The ${service} has none of its versions.`, "It loads what the alias live, or a traffic policy, points to.");
    return table("Loaded versions", ["Version", "State", "On", "Since", "Reason"], own.map((one) => [
      `version ${one.version}`, state(word(one.state, "LOAD_STATE_")), `${one.backend ?? one.engine ?? ""}, ${one.device}`, ago(one.readyTime), one.reason || "–"]));
  }
}

function gated(alias, gate) {
  const limit = gate.holderPlus === undefined ? number(gate.value ?? 0) : `that of the present one, ${gate.holderPlus < 0 ? "−" : "+"} ${number(Math.abs(gate.holderPlus))}`;
  return `${alias} takes a version only when its ${gate.metric} is ${gate.comparison === "COMPARISON_AT_LEAST" ? "at least" : "at most"} ${limit}`;
}

function version(one, aliases) {
  const size = one.artifacts.reduce((sum, artifact) => sum + Number(artifact.sizeBytes ?? 0), 0);
  return [
    h("span", { class: "strong" }, String(one.version)),
    h("div", {}, state(word(one.state, "VERSION_STATE_")),
      one.rejections.map((why) => h("p", { class: "reason" }, h("strong", {}, why.rule), ` ${why.path} ${why.message}`))),
    aliases.length ? aliases.map((alias) => chip(last(alias.name))) : "–",
    h("span", { title: one.artifacts.map((artifact) => artifact.path).join(", ") }, `${bytes(size)} in ${one.artifacts.length} ${one.artifacts.length === 1 ? "file" : "files"}`),
    metrics(one.metrics),
    h("div", {}, ago(one.createTime), one.creator ? h("div", { class: "quiet" }, one.creator) : null),
    h("code", { title: one.digest }, one.digest.slice(0, 12)),
  ];
}

function metrics(values) {
  const all = Object.entries(values).sort().map(([name, value]) => h("li", {}, h("span", { class: "quiet" }, name), " ", value.toLocaleString("en", { maximumSignificantDigits: 4 })));
  if (!all.length) return "–";
  if (all.length <= FEW) return h("ul", { class: "metrics" }, all);
  return h("details", {}, h("summary", {}, `${all.length} figures`), h("ul", { class: "metrics" }, all));
}
