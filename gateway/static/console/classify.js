// Tries a classifier: text or numbers in, labels with their scores and where the time went out.
import { h } from "/docs/dom.js";
import { call, loaded, ready } from "./api.js";
import { choose, chip, empty, failure, heading, percent, seconds } from "./parts.js";
import { example, features } from "./snippets.js";

const TOP = 10;
const TEXTS = "I love this wonderful film.\nA terrible, boring waste of time.\nNot bad at all.";
const STAGES = [["queueUs", "queue"], ["batchUs", "batch"], ["computeUs", "compute"]];

export class Classify {
  constructor(root) {
    this.drafts = {};
    this.model = h("select", { id: "classify-model", onchange: () => this.choose() });
    this.hint = h("span", {});
    this.input = h("textarea", { rows: 7, spellcheck: "false", id: "classify-input" });
    this.button = h("button", { class: "button primary", type: "submit" }, "Classify");
    this.result = h("div", { class: "results", "aria-live": "polite" });
    this.form = h("form", { class: "sheet pad", onsubmit: (event) => this.submit(event) },
      h("label", { class: "field" }, h("span", {}, "Model"), this.model),
      h("label", { class: "field" }, this.hint, this.input),
      h("div", { class: "row" }, this.button, h("span", { class: "quiet" }, "or Ctrl + Enter")));
    this.form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.form.requestSubmit();
    });
    this.body = h("div", { class: "halves" }, this.form, this.result);
    this.none = h("div", { hidden: true });
    root.append(heading("Try a classifier", h("p", { class: "quiet" }, "Each line is an item; all of them go in one call.")), this.none, this.body);
    this.invite();
  }

  invite() {
    this.result.replaceChildren(h("p", { class: "placeholder quiet" }, "The labels and their scores appear here."));
  }

  async show(wanted) {
    try {
      this.models = await loaded("classifier");
      const names = ready(this.models);
      this.none.hidden = names.length > 0;
      this.none.replaceChildren(empty("No classifier is loaded.", "The classifier loads what an alias live points to: ", h("code", {}, "gristmill push --alias=live ./my-model"), "."));
      choose(this.model, names, wanted);
      this.choose();
    } catch (error) {
      this.none.hidden = false;
      this.none.replaceChildren(failure(error));
    }
    this.body.hidden = !this.none.hidden;
  }

  /** Shows what the chosen model takes, and what was typed for it before. */
  choose() {
    const name = this.model.value;
    if (!name || name === this.chosen) return;
    if (this.chosen) this.drafts[this.chosen] = this.input.value;
    this.chosen = name;
    const signature = this.models.find((one) => one.model === name && one.state === "LOAD_STATE_READY").signature;
    const kinds = signature?.inputKinds ?? [];
    this.count = features(signature);
    this.pairs = !this.count && !kinds.includes("INPUT_KIND_TEXT") && kinds.includes("INPUT_KIND_TEXT_PAIR");
    const takes = this.count || this.pairs || kinds.includes("INPUT_KIND_TEXT");
    this.hint.textContent = this.count ? `Numbers, ${this.count} a line` : this.pairs ? "Two texts a line, with | between them" : "Text, one item a line";
    if (!takes) this.hint.textContent = "This model takes images or tensors, which the API docs can send";
    this.input.disabled = this.button.disabled = !takes;
    this.input.value = this.drafts[name] ?? (this.count ? example(this.count).join(", ") : this.pairs ? "A man sleeps. | Somebody is awake." : TEXTS);
    this.invite();
  }

  items() {
    const lines = this.input.value.split("\n").filter((line) => line.trim());
    if (!lines.length) throw new Error("Type something first.");
    if (!this.count && !this.pairs) return lines.map((text) => ({ text: { text } }));
    if (this.pairs) {
      return lines.map((line) => {
        const [first, ...second] = line.split("|");
        return { text_pair: { first: first.trim(), second: second.join("|").trim() } };
      });
    }
    return lines.map((line, index) => {
      const values = line.split(/[\s,;]+/).filter(Boolean).map(Number);
      if (values.length !== this.count || !values.every(Number.isFinite)) {
        throw new Error(`Line ${index + 1} has to be ${this.count} numbers, such as ${example(this.count).join(", ")}.`);
      }
      return { float_features: { values } };
    });
  }

  async submit(event) {
    event.preventDefault();
    if (this.button.disabled) return;
    this.button.disabled = true;
    const started = performance.now();
    try {
      const items = this.items();
      const answer = await call("/classifier/v1/classify", { model: { model: this.chosen }, items, options: { top_k: TOP } });
      const took = (performance.now() - started) / 1000;
      const lines = this.input.value.split("\n").filter((line) => line.trim());
      this.result.replaceChildren(
        h("p", { class: "quiet" }, `${answer.model}, version ${answer.version}: ${answer.results.length === 1 ? "one item" : `${answer.results.length} items`} in `, h("strong", {}, seconds(took)), ", round trip"),
        ...answer.results.map((one, index) => shown(lines[index], one)));
    } catch (error) {
      this.result.replaceChildren(failure(error));
    } finally {
      this.button.disabled = false;
    }
  }
}

/** One item: what it was, its labels, its timings. */
function shown(line, { classification, error, timings }) {
  const said = h("blockquote", {}, line);
  if (!classification) {
    const reason = error?.details?.find((one) => one.reason)?.reason;
    return h("article", { class: "sheet pad result" }, said, failure({ reason, message: error?.message ?? "no answer" }));
  }
  const { labels, tokens, truncated, cached } = classification;
  return h("article", { class: "sheet pad result" }, said,
    h("ul", { class: "scores" }, labels.map(score)),
    timings?.batchSize ? clock(timings) : null,
    h("p", { class: "chips" }, cached ? chip("from the cache") : null, truncated ? chip("cut to fit") : null, tokens ? chip(`${tokens} tokens`) : null,
      timings?.batchSize ? chip(`batch of ${timings.batchSize}`) : null));
}

function score({ label, score }, index) {
  const fill = h("span", { class: "fill" });
  fill.style.width = `${Math.max(0.4, score * 100)}%`;
  return h("li", { class: index ? "" : "best" }, h("span", { class: "label" }, label), h("span", { class: "track", "aria-hidden": "true" }, fill), h("span", { class: "value" }, percent(score)));
}

/** Where the time went, as a strip and in words. */
function clock(timings) {
  const parts = STAGES.map(([key, name], index) => ({ name, index, us: timings[key] ?? 0 }));
  const strip = parts.map(({ us, index }) => {
    const part = h("span", { class: `weight weight-${index}` });
    part.style.flexGrow = us;
    return part;
  });
  return h("div", { class: "traffic small" },
    h("div", { class: "weights thin", "aria-hidden": "true" }, strip),
    h("div", { class: "legend" }, parts.map(({ name, us, index }) => h("span", { class: `key key-w${index}` }, `${name} `, h("strong", {}, seconds(us / 1e6))))));
}
