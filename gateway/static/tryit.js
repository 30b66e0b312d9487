// The form that sends a request, and the view of what comes back.
import { h, json } from "./dom.js";
import { events } from "./stream.js";

const MAX_EVENTS = 500;

export class TryIt {
  constructor(operation, schemas, token) {
    this.operation = operation;
    this.token = token;
    this.inputs = [];
    this.stop = null;
    const parameters = operation.parameters.map((one) => schemas.parameter(one));
    const shown = parameters.filter((one) => one.in === "path" || one.required || one.example !== undefined);
    const others = parameters.filter((one) => !shown.includes(one));
    this.body = this.editor();
    this.send = h("button", { class: "button primary", type: "submit" }, "Send");
    this.cancel = h("button", { class: "button", type: "button", hidden: true, onclick: () => this.stop?.abort() }, "Stop");
    this.result = h("div", { class: "result", "aria-live": "polite" });
    this.form = h("form", { class: "try", onsubmit: (event) => this.submit(event) },
      h("h4", {}, "Try it"),
      shown.map((one) => this.field(one)),
      others.length ? h("details", { class: "more" }, h("summary", {}, `${others.length} optional`), others.map((one) => this.field(one))) : null,
      this.body,
      h("div", { class: "buttons" }, this.send, this.cancel,
        h("button", { class: "button ghost", type: "button", onclick: (event) => this.copy(event) }, "Copy as curl")),
      this.result);
    this.form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.form.requestSubmit();
    });
  }

  field(parameter) {
    const { schema } = parameter;
    const many = schema.type === "array";
    const given = parameter.example ?? "";
    const input = schema.type === "boolean"
      ? h("select", {}, h("option", { value: "" }, "–"), h("option", {}, "true"), h("option", {}, "false"))
      : h("input", {
          type: "text", autocomplete: "off", spellcheck: "false", required: parameter.required,
          value: many ? [].concat(given).join(", ") : typeof given === "object" ? "" : String(given),
          placeholder: many ? "one, two" : "",
        });
    this.inputs.push({ parameter, input, many });
    return h("label", { class: "field" }, h("span", {}, h("code", {}, parameter.name)), input);
  }

  editor() {
    const content = this.operation.requestBody?.content["application/json"];
    if (!content) return null;
    const text = JSON.stringify(content.example ?? {}, null, 2);
    const said = h("span", { class: "said", role: "status" });
    this.area = h("textarea", { rows: Math.min(18, text.split("\n").length + 1), spellcheck: "false", autocapitalize: "off" });
    this.area.value = text;
    this.area.addEventListener("input", () => {
      said.textContent = fault(this.area.value);
      this.area.setAttribute("aria-invalid", said.textContent !== "");
    });
    return h("label", { class: "field" }, h("span", {}, "Body ", said), this.area);
  }

  request() {
    let path = this.operation.path;
    const query = new URLSearchParams();
    const headers = {};
    for (const { parameter, input, many } of this.inputs) {
      const value = input.value.trim();
      if (!value) continue;
      if (parameter.in === "path") path = path.replace(`{${parameter.name}}`, encodeURIComponent(value));
      else if (parameter.in === "header") headers[parameter.name] = value;
      else if (many) value.split(",").forEach((one) => query.append(parameter.name, one.trim()));
      else query.append(parameter.name, value);
    }
    if (this.token.value) headers.authorization = `Bearer ${this.token.value}`;
    if (this.area) headers["content-type"] = "application/json";
    const search = query.toString();
    return { method: this.operation.method, url: path + (search ? `?${search}` : ""), headers, body: this.area?.value };
  }

  async copy(event) {
    const { method, url, headers, body } = this.request();
    const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
    const words = ["curl", this.operation["x-gristmill-stream"] ? "-NsS" : "-sS", "-X", method, quoted(location.origin + url)];
    for (const [name, value] of Object.entries(headers)) words.push("-H", quoted(`${name}: ${value}`));
    if (body !== undefined) words.push("-d", quoted(compact(body)));
    const button = event.target;
    await navigator.clipboard.writeText(words.join(" "));
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy as curl"; }, 1500);
  }

  async submit(event) {
    event.preventDefault();
    this.stop?.abort();
    this.stop = new AbortController();
    const { method, url, headers, body } = this.request();
    const started = performance.now();
    this.busy(true);
    try {
      const response = await fetch(url, { method, headers, body, signal: this.stop.signal });
      const kind = response.headers.get("content-type") ?? "";
      await (kind.startsWith("text/event-stream") ? this.stream(response, started) : this.whole(response, started));
    } catch (error) {
      if (error.name !== "AbortError") this.show(null, started, h("p", { class: "notice" }, `No answer: ${error.message}`));
      else this.result.querySelector(".status")?.append(" · stopped");
    } finally {
      this.busy(false);
    }
  }

  busy(on) {
    this.send.disabled = on;
    this.cancel.hidden = !on;
    if (on) this.result.replaceChildren(h("p", { class: "quiet" }, "Waiting…"));
  }

  async whole(response, started) {
    const text = await response.text();
    this.show(response, started, h("pre", { tabindex: "0" }, json(pretty(text))));
  }

  async stream(response, started) {
    const list = h("ol", { class: "events", tabindex: "0" });
    this.show(response, started, list);
    let count = 0;
    for await (const { event, data } of events(response)) {
      if (event === "ping") continue;
      count += 1;
      const at = `${Math.round(performance.now() - started)} ms`;
      list.append(h("li", { class: event === "error" ? "bad" : "" }, h("time", {}, at), h("pre", {}, json(data))));
      if (list.children.length > MAX_EVENTS) list.firstChild.remove();
      list.scrollTop = list.scrollHeight;
    }
    this.result.querySelector(".status").append(` · ${count} ${count === 1 ? "event" : "events"} in ${Math.round(performance.now() - started)} ms`);
  }

  show(response, started, view) {
    const took = `${Math.round(performance.now() - started)} ms`;
    const line = response && h("p", { class: `status ${response.ok ? "good" : "bad"}` },
      h("strong", {}, `${response.status} ${response.statusText}`), ` · ${took}`,
      h("span", { class: "quiet" }, ` · ${response.headers.get("x-request-id") ?? ""}`));
    this.result.replaceChildren(...[line, view].filter(Boolean));
  }
}

function fault(text) {
  try {
    JSON.parse(text);
    return "";
  } catch (error) {
    return error.message;
  }
}

const pretty = (text) => (fault(text) ? text : JSON.stringify(JSON.parse(text), null, 2));
const compact = (text) => (fault(text) ? text : JSON.stringify(JSON.parse(text)));
