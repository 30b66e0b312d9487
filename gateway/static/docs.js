// The page: reads /openapi.json and renders its operations, by service, and its schemas.
import { h, inline, prose } from "./dom.js";
import { Schemas, schemaEntry } from "./schema.js";
import { TryIt } from "./tryit.js";
import "./settings.js";

const byId = (id) => document.getElementById(id);
const STREAMS = { server: "stream", bidi: "bidi" };

async function main() {
  const answer = await fetch("/openapi.json");
  const contract = await answer.json();
  const schemas = new Schemas(contract);
  const operations = operationsOf(contract);
  byId("loading").remove();
  byId("version").textContent = contract.info.version;
  byId("intro").append(h("h1", {}, `${contract.info.title} HTTP API`), ...prose(contract.info.description));
  for (const { name, description } of contract.tags) {
    const own = operations.filter((one) => one.tags[0] === name);
    byId("index").append(group(name, own));
    byId("operations").append(service(name, description, own, schemas));
  }
  listSchemas(contract, schemas);
  byId("filter").addEventListener("input", filter);
  document.addEventListener("keydown", shortcut);
  window.addEventListener("hashchange", openTarget);
  openTarget();
}

function operationsOf(contract) {
  return Object.entries(contract.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, one]) => ({ ...one, path, method: method.toUpperCase() })));
}

const label = (operation) => operation.operationId.split("_")[1];
const badge = (operation) => h("span", { class: `verb ${operation.method.toLowerCase()}` }, operation.method);

function group(name, operations) {
  return h("section", {}, h("h2", {}, h("a", { href: `#${name}` }, titled(name))),
    h("ul", {}, operations.map((one) => h("li", { "data-text": searchable(one) },
      h("a", { href: `#${one.operationId}` }, badge(one), h("span", {}, label(one)))))));
}

const searchable = (one) => `${one.operationId} ${one.path} ${one.summary}`.toLowerCase();
const titled = (name) => name.replace(/Service$/, "");

function service(name, description, operations, schemas) {
  return h("section", { class: "service", id: name },
    h("h2", {}, titled(name)), h("div", { class: "lead" }, prose(description)),
    operations.map((one) => entry(one, schemas)));
}

function entry(operation, schemas) {
  const stream = STREAMS[operation["x-gristmill-stream"]];
  const body = h("div", { class: "body" });
  const details = h("details", { class: "operation", id: operation.operationId, "data-text": searchable(operation) },
    h("summary", {}, badge(operation), h("code", { class: "path" }, path(operation.path)),
      stream ? h("span", { class: "tag" }, stream) : null,
      h("span", { class: "summary" }, inline(operation.summary))),
    body);
  details.addEventListener("toggle", () => {
    if (details.open && !body.hasChildNodes()) body.append(...content(operation, schemas));
  });
  return details;
}

/** A path that may break after its slashes. */
function path(text) {
  return text.split(/(?<=\/)/).flatMap((part, index) => (index ? [h("wbr"), part] : [part]));
}

function content(operation, schemas) {
  const facts = h("p", { class: "facts" },
    h("span", {}, "gRPC ", h("code", {}, operation["x-gristmill-method"])),
    operation["x-gristmill-scope"] ? h("span", {}, "scope ", h("code", {}, operation["x-gristmill-scope"])) : null);
  const parts = [h("div", { class: "text" }, prose(operation.description)), facts, ...parameters(operation, schemas)];
  const request = operation.requestBody?.content["application/json"].schema;
  if (request) parts.push(h("h4", {}, "Body"), schemas.fields(request));
  const good = operation.responses["200"]?.content;
  if (good) {
    const stream = good["text/event-stream"];
    const schema = stream ? stream["x-gristmill-item"] : good["application/json"].schema;
    parts.push(h("h4", {}, stream ? "Each event" : "Answer"), schemas.fields(schema));
  }
  const columns = [h("div", { class: "about-operation" }, parts)];
  if (operation["x-gristmill-stream"] === "bidi") {
    columns.push(h("p", { class: "notice" }, "A WebSocket: each text message is one message as JSON, an empty one says that there are no more. See the README."));
  } else {
    columns.push(new TryIt(operation, schemas, byId("token")).form);
  }
  return [h("div", { class: "columns" }, columns)];
}

function parameters(operation, schemas) {
  const all = operation.parameters.map((one) => schemas.parameter(one));
  return [["path", "Path"], ["query", "Query"]].flatMap(([place, title]) => {
    const own = all.filter((one) => one.in === place);
    if (!own.length) return [];
    return [h("h4", {}, title), h("ul", { class: "tree" }, own.map((one) =>
      schemas.row(one.name, { ...one.schema, description: one.description, pattern: place === "path" ? undefined : one.schema.pattern }, one.required, null, 0)))];
  });
}

function listSchemas(contract, schemas) {
  const section = byId("schemas");
  section.append(h("h2", {}, "Schemas"), ...Object.entries(contract.components.schemas)
    .map(([name, schema]) => schemaEntry(schemas, name, schema)));
  section.hidden = false;
}

function filter() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const element of document.querySelectorAll("[data-text]")) {
    element.hidden = !words.every((word) => element.dataset.text.includes(word));
  }
  for (const section of document.querySelectorAll("#index section, .service")) {
    section.hidden = words.length > 0 && !section.querySelector("[data-text]:not([hidden])");
  }
}

function shortcut(event) {
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName);
  if (event.key === "/" && !typing) {
    event.preventDefault();
    byId("filter").focus();
  }
}

function openTarget() {
  const target = byId(decodeURIComponent(location.hash.slice(1)));
  document.querySelectorAll("#index [aria-current]").forEach((link) => link.removeAttribute("aria-current"));
  if (!target) return;
  if (target.tagName === "DETAILS") target.open = true;
  document.querySelector(`#index a[href="${CSS.escape(location.hash)}"]`)?.setAttribute("aria-current", "true");
  target.scrollIntoView();
}

main().catch((error) => { byId("loading").textContent = `The contract could not be read: ${error.message}`; });
