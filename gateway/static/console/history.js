// What happened to a model: who did what, and when; newest first.
import { h } from "/docs/dom.js";
import { call } from "./api.js";
import { ago, empty, failure, last, percent, word } from "./parts.js";
import { shares } from "./traffic.js";

const PAGE = 20;

export class History {
  constructor(path) {
    this.path = path;
    this.list = h("ol", { class: "history" });
    this.foot = h("div", {});
    this.element = h("div", {}, this.list, this.foot);
    this.next = "";
  }

  /** Reads the next page. */
  async more() {
    try {
      const { changes, nextPageToken } = await call(`${this.path}/history?page_size=${PAGE}&page_token=${encodeURIComponent(this.next)}`);
      this.list.append(...changes.map(entry));
      this.next = nextPageToken;
      const button = this.next && h("button", { class: "button small", type: "button", onclick: () => this.more() }, "Older changes");
      this.foot.replaceChildren(...(button ? [button] : this.list.hasChildNodes() ? [] : [empty("Nothing happened yet.")]));
    } catch (error) {
      this.foot.replaceChildren(failure(error));
    }
  }
}

function entry(change) {
  return h("li", {},
    h("div", { class: "what" }, says(change)),
    h("div", { class: "quiet" }, change.actor ? ["by ", h("strong", {}, change.actor), " "] : "", ago(change.commitTime),
      ` · revision ${change.revision}`, change.requestId ? [" · ", h("code", {}, change.requestId)] : ""));
}

/** A change in words. */
function says({ name, kind, before, after }) {
  const now = after ?? before ?? {};
  const gone = kind === "CHANGE_KIND_DELETED";
  const fresh = kind === "CHANGE_KIND_CREATED";
  if (now.alias) {
    const alias = h("strong", {}, last(name));
    if (gone) return ["Alias ", alias, " deleted"];
    if (fresh) return ["Alias ", alias, ` points to version ${after.alias.version}`];
    if (before.alias.version === after.alias.version) return ["Gates of alias ", alias, " changed"];
    return ["Alias ", alias, ` moved from version ${before.alias.version} to `, h("strong", {}, String(after.alias.version))];
  }
  if (now.trafficPolicy) {
    if (gone) return ["Traffic policy deleted"];
    return ["Traffic set to ", h("strong", {}, shares(after.trafficPolicy.splits).map((one) => `${percent(one.share)} ${one.name}`).join(", "))];
  }
  if (now.version) return ["Version ", h("strong", {}, String(now.version.version)), gone ? " deleted" : fresh ? " created" : ` ${altered(before.version, after.version)}`];
  if (now.model) return [`Model ${gone ? "deleted" : fresh ? "created" : stored(before.model, after.model)}`];
  return [`${name} ${word(kind, "CHANGE_KIND_")}`];
}

function altered(before, after) {
  if (before.state !== after.state) return `became ${word(after.state, "VERSION_STATE_")}`;
  if (JSON.stringify(before.metrics) !== JSON.stringify(after.metrics)) return "has new metrics";
  return "described anew";
}

function stored(before, after) {
  if (before.latestVersion !== after.latestVersion) return `counts ${after.latestVersion} ${after.latestVersion === 1 ? "version" : "versions"} now`;
  if (Boolean(before.archiveTime) === Boolean(after.archiveTime)) return "described anew";
  return after.archiveTime ? "archived" : "restored";
}
