// The first view: what serves, how busy it is, and what can be called.
import { h } from "/docs/dom.js";
import { call, each, loaded } from "./api.js";
import { Chart } from "./chart.js";
import { feed } from "./metrics.js";
import { ago, chip, empty, failure, number, seconds, state, word } from "./parts.js";

const HEALTH_MS = 5000;
const MODELS_MS = 30000;
const ABOUT = {
  gateway: "HTTP for browsers and curl",
  registry: "Models, versions, aliases, history",
  classifier: "Labels and scores, in batches",
  generator: "Text, token by token",
};
const SERVICES = ["registry", "classifier", "generator"];
const rate = (value, unit) => (Number.isFinite(value) ? `${number(value)} ${unit}` : number(null));

export class Overview {
  constructor(root) {
    this.title = h("h1", {}, "Looking…");
    this.beneath = h("p", { class: "quiet", role: "status" });
    this.cards = Object.fromEntries(Object.keys(ABOUT).map((name) => [name, this.card(name)]));
    this.served = h("div", { "aria-busy": "true" });
    root.append(
      h("div", { class: "heading hero" }, this.title, this.beneath),
      h("div", { class: "cards" }, Object.values(this.cards).map((one) => one.element)),
      h("h2", {}, "Served now"), this.served);
    feed.addEventListener("change", () => this.figures());
    document.addEventListener("visibilitychange", () => this.seen && this.health());
  }

  card(name) {
    const status = h("span", {}, state("asking"));
    const facts = h("dl", {});
    const spark = name === "gateway" ? null
      : new Chart({ title: `Requests of the ${name}`, lines: [{ key: "requests", label: "a second" }], format: number, plain: true });
    const element = h("section", { class: "card", id: `card-${name}` },
      h("div", { class: "card-head" }, h("h2", { class: "name" }, name), status),
      h("p", { class: "quiet" }, ABOUT[name]), facts, spark?.element ?? null);
    return { element, status, facts, spark };
  }

  show() {
    this.seen = true;
    this.health();
    this.models();
    this.figures();
  }

  hide() {
    this.seen = false;
    clearTimeout(this.timer);
  }

  async health() {
    clearTimeout(this.timer);
    if (!this.seen || document.hidden) return;
    const started = performance.now();
    try {
      // Not ready is an answer too, with the same body.
      const response = await fetch("/health/ready");
      this.tell(await response.json(), (performance.now() - started) / 1000);
    } catch {
      this.title.textContent = "The gateway does not answer";
      this.beneath.textContent = "Is it running? This page asks again every five seconds.";
      for (const name of Object.keys(ABOUT)) this.cards[name].status.replaceChildren(state(name === "gateway" ? "unavailable" : "unknown"));
    }
    clearTimeout(this.timer);
    if (!this.seen) return;
    this.timer = setTimeout(() => this.health(), HEALTH_MS);
    // Not under the hands of somebody who is about to open one of them.
    if (started - this.read > MODELS_MS && !this.served.contains(document.activeElement)) this.models();
  }

  tell({ status, upstreams }, took) {
    const states = { gateway: status === "DRAINING" ? "draining" : "serving" };
    for (const name of SERVICES) states[name] = word(upstreams?.[name]?.status ?? "UNKNOWN", "");
    for (const [name, text] of Object.entries(states)) this.cards[name].status.replaceChildren(state(text));
    const down = Object.keys(states).filter((name) => states[name] !== "serving");
    const title = !down.length ? "Everything serves" : `${down.map((name) => `The ${name}`).join(", ")} ${down.length > 1 ? "do" : "does"} not serve`;
    const beneath = !down.length ? "The gateway and the three services behind it answer." : "Its log says why; this page asks again every five seconds.";
    if (this.title.textContent !== title) this.title.textContent = title;
    if (this.beneath.textContent !== beneath) this.beneath.textContent = beneath;
    this.facts("gateway", [["Health check", seconds(took)]]);
  }

  facts(name, pairs) {
    this.cards[name].facts.replaceChildren(...pairs.map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))));
  }

  figures() {
    if (!this.seen) return;
    for (const name of SERVICES) {
      const told = feed.latest?.services[name];
      this.cards[name].spark.element.hidden = !told;
      if (!told) continue;
      const now = feed.now(name);
      const more = { registry: ["Latency, p99", seconds(now.p99)], classifier: ["In the queue", number(now.queue)], generator: ["Tokens", rate(now.tokens, "a second")] };
      this.facts(name, [["Requests", rate(now.requests, "a second")], more[name]]);
      this.cards[name].spark.draw(feed.points[name], feed.latest.time, feed.span());
    }
  }

  async models() {
    this.read = performance.now();
    const [found, info] = await Promise.all([
      each(["classifier", "generator"], loaded),
      this.info ?? call("/registry/v1/server").catch(() => null),
    ]);
    this.info = info;
    const models = found.filter(Array.isArray).flat();
    const failed = found.filter((one) => one instanceof Error);
    this.served.setAttribute("aria-busy", "false");
    this.served.replaceChildren(
      ...(failed.length ? [failure(failed[0])] : []),
      ...(models.length ? [h("ul", { class: "served" }, models.map(served))] : []),
      ...(models.length || failed.length ? [] : [empty("Nothing is served yet.", "Push a folder with a model and point its alias: ",
        h("code", {}, "gristmill push --alias=live ./my-model"), ". The services follow by themselves.")]),
      ...(info ? [h("p", { class: "quiet foot" }, `Gristmill ${info.version} · revision ${number(Number(info.revision))} of the registry, in ${info.database}`)] : []));
  }
}

/** A version that a service has, and where to try it. */
function served(one) {
  const view = one.service === "classifier" ? "classify" : "chat";
  const isReady = one.state === "LOAD_STATE_READY";
  return h("li", {},
    h("div", { class: "grow" },
      h("a", { class: "strong", href: `#models/${encodeURIComponent(one.model)}` }, one.model), " ",
      h("span", { class: "quiet" }, `version ${one.version}`), " ", one.aliases.map((alias) => chip(alias)),
      one.reason ? h("p", { class: "reason" }, one.reason) : null),
    h("span", { class: "quiet" }, `${one.backend ?? one.engine ?? ""} on ${one.device}`),
    h("span", { class: "quiet since" }, isReady ? ["ready ", ago(one.readyTime)] : ""),
    state(word(one.state, "LOAD_STATE_")),
    isReady ? h("a", { class: "button small", href: `#${view}/${encodeURIComponent(one.model)}` }, view === "chat" ? "Chat" : "Try it") : null);
}
