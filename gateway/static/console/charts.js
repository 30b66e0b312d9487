// The view of what the services do now: a table of the newest figures, and their last minutes.
import { h } from "/docs/dom.js";
import { Chart } from "./chart.js";
import { feed } from "./metrics.js";
import { empty, failure, heading, number, seconds, state, table } from "./parts.js";

const rate = (value) => (Number.isFinite(value) ? `${number(value)}/s` : number(null));
const one = (key, label) => [{ key, label }];
const percentiles = (prefix) => ["50", "90", "99"].map((n) => ({ key: prefix + n, label: `p${n}` }));

const REQUESTS = { title: "Requests", format: rate, lines: one("requests", "requests") };
const LATENCY = { title: "Latency", format: seconds, least: 0.001, lines: percentiles("p") };
const REJECTED = { title: "Rejected", format: rate, lines: one("rejected", "rejected") };
const ERRORS = { title: "Errors", format: rate, lines: one("errors", "errors") };
const QUEUE = { title: "Queue", format: number, lines: one("queue", "items") };
const CHARTS = {
  classifier: [REQUESTS, LATENCY, QUEUE, { title: "Batch size", format: number, lines: one("batch", "items") }, REJECTED, ERRORS],
  generator: [
    REQUESTS, LATENCY,
    { title: "Tokens", format: rate, lines: one("tokens", "tokens") },
    { title: "Time to first token", format: seconds, least: 0.001, lines: percentiles("first") },
    { title: "Prompts", format: number, lines: [{ key: "running", label: "running" }, { key: "waiting", label: "waiting" }] },
    { title: "Refused and failed", format: rate, lines: [{ key: "rejected", label: "rejected" }, { key: "errors", label: "errors" }] },
  ],
  registry: [REQUESTS, LATENCY, ERRORS],
};
const PORTS = { registry: 9151, classifier: 9152, generator: 9153 };
const COLUMNS = ["Service", "Instances", "Requests", "Errors", "Rejected", "Queue", "Batch", "p50", "p90", "p99", "Tokens", "First token"];

export class Charts {
  constructor(root) {
    this.charts = [];
    this.notice = h("div", {});
    this.table = h("div", { class: "figures" });
    root.append(
      heading("Charts", h("p", { class: "quiet" }, "Rates and percentiles of the last ten seconds. Health checks are not counted.")),
      this.notice, this.table,
      ...Object.entries(CHARTS).map(([name, kinds]) => this.service(name, kinds)));
    feed.addEventListener("change", () => this.update());
  }

  service(name, kinds) {
    const grid = h("div", { class: "charts" });
    const note = h("div", {});
    const charts = kinds.map((kind) => new Chart(kind));
    grid.append(...charts.map((chart) => chart.element));
    this.charts.push({ name, grid, note, charts });
    return h("section", { id: `charts-${name}` }, h("h2", { class: "name" }, name), note, grid);
  }

  show() {
    this.seen = true;
    this.update();
  }

  hide() {
    this.seen = false;
  }

  update() {
    if (!this.seen) return;
    const services = feed.latest?.services ?? {};
    const failed = feed.state instanceof Error;
    this.notice.replaceChildren(...(failed ? [failure(feed.state)] : []));
    for (const { name, grid, note, charts } of this.charts) {
      const told = services[name];
      grid.hidden = !told;
      note.replaceChildren(...this.remark(name, told));
      if (told) for (const chart of charts) chart.draw(feed.points[name], feed.latest.time, feed.span());
    }
    const rows = Object.keys(CHARTS).filter((name) => services[name]).map((name) => this.row(name, services[name]));
    this.table.replaceChildren(...(rows.length ? [table("The newest figures", COLUMNS, rows)] : []));
  }

  remark(name, told) {
    if (!told) {
      if (!feed.latest) return [];
      return [empty("There are no charts of it.", "Tell the gateway where it counts with the setting ", h("code", {}, `${name}_metrics`),
        ": ", h("code", {}, `--${name}-metrics=http://127.0.0.1:${PORTS[name]}/metrics`))];
    }
    const away = told.instances - told.answered.length;
    if (!away) return [];
    return [h("p", {}, state("unavailable"), ` ${away} of ${told.instances} admin ${told.instances === 1 ? "endpoint does" : "endpoints do"} not answer.`)];
  }

  row(name, told) {
    const now = feed.now(name);
    const answering = `${told.answered.length} of ${told.instances}`;
    return [h("span", { class: "strong" }, name), answering, rate(now.requests), rate(now.errors), rate(now.rejected), number(name === "registry" ? null : now.queue), number(now.batch),
      seconds(now.p50), seconds(now.p90), seconds(now.p99), name === "generator" ? rate(now.tokens) : number(null), seconds(now.first50)];
  }
}
