// Draws lines over time as SVG, with their values in words beside them. Knows no service.
import { h } from "/docs/dom.js";

const WIDTH = 600;
const HEIGHT = 120;
const GAP_S = 8;
/** Where the pointer is, as a share of the time that is drawn; the same for all charts. */
const pointer = new EventTarget();
pointer.at = null;

function s(name, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** The next of 1, 2, 5, 10, 20, ... */
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].find((step) => step * power >= value * 0.999) * power;
}

export class Chart {
  /** lines: [{key, label}], drawn in the colours one to three. */
  constructor({ title, lines, format, least = 1, plain = false }) {
    Object.assign(this, { title, lines, format, least, plain, points: [], now: 0, span: 60 });
    this.values = lines.map(() => h("strong", {}, format(null)));
    this.top = h("span", { class: "top" });
    this.paths = lines.map((_, index) => s("path", { class: `line line-${index + 1}` }));
    this.area = s("path", { class: "area" });
    this.cross = s("line", { class: "cross", y1: 0, y2: HEIGHT, visibility: "hidden" });
    this.svg = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": title },
      ...(plain ? [] : [0.5, HEIGHT / 2, HEIGHT - 0.5].map((y) => s("line", { class: "grid", x1: 0, x2: WIDTH, y1: y, y2: y }))),
      this.area, ...this.paths, this.cross);
    this.when = h("span", {}, "now");
    this.since = h("span", {});
    const plot = h("div", { class: plain ? "spark" : "plot" }, this.svg);
    this.element = plain ? plot : h("figure", { class: "chart" },
      h("figcaption", {}, h("span", { class: "title" }, title, this.top),
        h("span", { class: lines.length > 1 ? "legend" : "legend lone" }, lines.map((line, index) =>
          h("span", { class: `key key-${index + 1}` }, lines.length > 1 ? `${line.label} ` : "", this.values[index])))),
      plot, h("div", { class: "axis", "aria-hidden": "true" }, this.since, this.when));
    if (!plain) this.follow(plot);
  }

  follow(plot) {
    const move = (at) => {
      pointer.at = at;
      pointer.dispatchEvent(new Event("move"));
    };
    plot.addEventListener("pointermove", (event) => {
      const box = plot.getBoundingClientRect();
      move((event.clientX - box.left) / box.width);
    });
    plot.addEventListener("pointerleave", () => move(null));
    pointer.addEventListener("move", () => this.read());
  }

  draw(points, now, span) {
    Object.assign(this, { points, now, span });
    this.since.textContent = span < 120 ? `${Math.round(span)} s ago` : `${Math.round(span / 60)} min ago`;
    const all = points.flatMap((point) => this.lines.map((line) => point[line.key])).filter(Number.isFinite);
    this.max = ceiling(Math.max(this.least, ...all));
    this.top.textContent = `to ${this.format(this.max)}`;
    this.lines.forEach((line, index) => this.paths[index].setAttribute("d", this.path(line.key)));
    this.area.setAttribute("d", this.path(this.lines[0].key, true));
    this.read();
  }

  x(time) {
    return WIDTH * (1 - (this.now - time) / this.span);
  }

  /** The line of a figure, broken where it is not known; closed at the bottom as an area. */
  path(key, closed = false) {
    const runs = [];
    let before = -Infinity;
    for (const point of this.points) {
      if (!Number.isFinite(point[key])) continue;
      if (point.time - before > GAP_S) runs.push([]);
      before = point.time;
      const y = HEIGHT - 1 - (HEIGHT - 4) * (point[key] / this.max);
      runs.at(-1).push(`${this.x(point.time).toFixed(1)},${y.toFixed(1)}`);
    }
    const end = (run, index) => run.at(index).split(",")[0];
    return runs.filter((run) => run.length > 1 || !this.plain).map((run) => {
      const line = run.length > 1 ? run : [run[0], run[0]];
      return closed ? `M${end(line, 0)},${HEIGHT}L${line.join("L")}L${end(line, -1)},${HEIGHT}Z` : `M${line.join("L")}`;
    }).join("");
  }

  /** Shows the values under the pointer, or the newest. */
  read() {
    const time = pointer.at === null ? null : this.now - (1 - pointer.at) * this.span;
    const near = time === null ? this.points.at(-1)
      : this.points.reduce((best, one) => (Math.abs(one.time - time) < Math.abs((best?.time ?? Infinity) - time) ? one : best), undefined);
    this.lines.forEach((line, index) => { this.values[index].textContent = this.format(near?.[line.key]); });
    this.cross.setAttribute("visibility", time === null || !near ? "hidden" : "visible");
    if (near) {
      this.cross.setAttribute("x1", this.x(near.time));
      this.cross.setAttribute("x2", this.x(near.time));
    }
    const back = near ? Math.round(this.now - near.time) : 0;
    this.when.textContent = time === null || back < 1 ? "now" : `${back} s ago`;
    this.svg.setAttribute("aria-label", `${this.title}: ${this.lines.map((line, index) => `${line.label} ${this.values[index].textContent}`).join(", ")}`);
  }
}
