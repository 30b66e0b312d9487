// Renders a JSON schema as a tree that opens where one looks.
import { h, inline, prose } from "./dom.js";

export class Schemas {
  constructor(document) {
    this.components = document.components.schemas;
    this.parameters = document.components.parameters;
  }

  resolve(schema) {
    return schema.$ref ? { ...this.components[nameOf(schema)], ...rest(schema) } : schema;
  }

  parameter(parameter) {
    return parameter.$ref ? this.parameters[parameter.$ref.split("/").pop()] : parameter;
  }

  /** The fields of an object, each with what is inside it. */
  fields(schema, depth = 0) {
    const found = this.resolve(schema);
    const required = new Set(found.required ?? []);
    const choices = choiceOf(found);
    const rows = Object.entries(found.properties ?? {}).map(([name, field]) =>
      this.row(name, field, required.has(name), choices.get(name), depth));
    if (!rows.length) return h("p", { class: "quiet" }, "No fields.");
    return h("ul", { class: "tree" }, rows);
  }

  row(name, field, required, choice, depth) {
    const head = [
      h("code", { class: "name" }, name), " ",
      h("span", { class: "type" }, this.typeOf(field)),
      required ? h("span", { class: "tag need" }, "required") : null,
      choice ? h("span", { class: "tag" }, `one of ${choice}`) : null,
      limits(this.core(field)).map((text) => h("span", { class: "tag" }, text)),
    ];
    const text = field.description ? h("div", { class: "about" }, inline(field.description)) : null;
    const inside = this.core(field);
    const open = inside.properties || inside.enum;
    if (!open) return h("li", {}, h("div", { class: "row" }, head), text);
    const body = h("div", { class: "inside" });
    const details = h("details", { class: "node" }, h("summary", {}, head, text), body);
    details.addEventListener("toggle", () => {
      if (details.open && !body.hasChildNodes()) {
        body.append(inside.enum ? this.values(inside) : this.fields(inside, depth + 1));
      }
    });
    return h("li", {}, details);
  }

  values(schema) {
    const texts = new Map([...(schema.description ?? "").matchAll(/^- `(\w+)`: (.*)$/gm)].map((m) => [m[1], m[2]]));
    return h("ul", { class: "tree" }, schema.enum.map((value) =>
      h("li", {}, h("div", { class: "row" }, h("code", { class: "name" }, value)),
        texts.get(value) ? h("div", { class: "about" }, inline(texts.get(value))) : null)));
  }

  /** What a field holds, under its array or map. */
  core(field) {
    const found = this.resolve(field);
    if (found.type === "array") return this.core(found.items);
    if (found.type === "object" && found.additionalProperties?.type) return this.resolve(found.additionalProperties);
    if (found.type === "object" && found.additionalProperties?.$ref) return this.resolve(found.additionalProperties);
    return found;
  }

  typeOf(field) {
    if (field.$ref) return short(nameOf(field));
    if (field.type === "array") {
      const span = [field.minItems, field.maxItems].some((n) => n !== undefined)
        ? ` ${field.minItems ?? 0}–${(field.maxItems ?? "∞").toLocaleString("en")}` : "";
      return `${this.typeOf(field.items)}[]${span}`;
    }
    if (field.type === "object" && typeof field.additionalProperties === "object") {
      return `map of ${this.typeOf(field.additionalProperties)}`;
    }
    const format = field.format ?? (field.contentEncoding ? field.contentEncoding : "");
    return format && format !== "byte" ? `${field.type} · ${format}` : field.contentEncoding ? "base64" : field.type ?? "any";
  }
}

function rest(schema) {
  const { $ref, ...others } = schema;
  return others;
}

const nameOf = (schema) => schema.$ref.split("/").pop();
const short = (name) => name.split(".").pop();

/** For each field, the others it excludes. */
function choiceOf(schema) {
  const found = new Map();
  for (const { oneOf } of schema.allOf ?? []) {
    const names = (oneOf ?? []).filter((one) => one.required).map((one) => one.required[0]);
    for (const name of names) found.set(name, names.length);
  }
  return found;
}

function limits(schema) {
  const words = [];
  const number = (n) => n.toLocaleString("en");
  if (schema.type === "integer" || schema.type === "number") {
    const low = schema.exclusiveMinimum !== undefined ? `> ${number(schema.exclusiveMinimum)}`
      : schema.minimum !== undefined && schema.minimum > -2147483648 ? `≥ ${number(schema.minimum)}` : "";
    const high = schema.maximum !== undefined && schema.maximum < 2147483647 ? `≤ ${number(schema.maximum)}` : "";
    if (low && (low !== "≥ 0" || high)) words.push(low);
    if (high) words.push(high);
  }
  if (schema.type === "string" && !schema.enum) {
    if (schema.maxLength) words.push(`≤ ${number(schema.maxLength)} characters`);
    else if (schema.pattern && !schema.format) words.push(schema.pattern.replace(/^\^\(\?:(.*)\)\??\$$/, "$1"));
  }
  return words;
}

/** One entry of the list of schemas. */
export function schemaEntry(schemas, name, schema) {
  const [group, , ...own] = name.split(".");
  const body = h("div", { class: "inside" });
  const details = h("details", { class: "schema", id: `schema-${name}` },
    h("summary", {}, h("code", { class: "name" }, own.length ? own.join(".") : name),
      own.length ? h("span", { class: "type" }, group) : null),
    body);
  details.addEventListener("toggle", () => {
    if (!details.open || body.hasChildNodes()) return;
    const text = (schema.description ?? "").split("\n\n- ")[0];
    body.append(...prose(text), schema.enum ? schemas.values(schema) : schemas.fields(schema));
  });
  return details;
}
