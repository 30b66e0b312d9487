// How to call a model: with curl, grpcurl and Python, ready to copy.
import { h } from "/docs/dom.js";
import { token } from "/docs/settings.js";
import { copier } from "./parts.js";

const PORTS = { classifier: 50052, generator: 50053 };
const METHODS = {
  classifier: ["/classifier/v1/classify", "gristmill.classifier.v1.ClassifierService/Classify"],
  generator: ["/generator/v1/generate:stream", "gristmill.generator.v1.GeneratorService/GenerateStream"],
};

/** Numbers that fit a model of features. */
export const example = (count) => (count === 4 ? [5.1, 3.5, 1.4, 0.2] : Array.from({ length: count }, (_, index) => index + 0.5));

/** How many features a model takes; 0 where it takes something else. */
export function features(signature) {
  if (!signature?.inputKinds?.includes("INPUT_KIND_FLOAT_FEATURES")) return 0;
  return Math.max(1, Number(signature.inputs[0]?.shape.at(-1) ?? 1));
}

function body(id, service, count) {
  if (service === "generator") {
    return {
      model: { model: id }, prompt: { chat: { messages: [{ role: "ROLE_USER", content: "Name a colour." }] } },
      params: { max_tokens: 64, temperature: 0 },
    };
  }
  const item = count ? { float_features: { values: example(count) } } : { text: { text: "not bad at all" } };
  return { model: { model: id }, items: [item] };
}

function python(id, service, count) {
  const call = service === "generator"
    ? ["    with client.stream(messages=[{\"role\": \"user\", \"content\": \"Name a colour.\"}],", `                       model=${JSON.stringify(id)}, max_tokens=64) as stream:`,
       "        for text in stream:", "            print(text, end=\"\", flush=True)"]
    : [`    for prediction in client.classify([${count ? JSON.stringify(example(count)).replaceAll(",", ", ") : "\"not bad at all\""}], model=${JSON.stringify(id)}):`,
       "        print(prediction.label, prediction.score)"];
  return ["from gristmill_client import Client", "", "with Client() as client:", ...call].join("\n");
}

/** The three, one shown at a time. */
export function snippets(id, service, signature) {
  const count = features(signature);
  const [path, method] = METHODS[service];
  const sent = JSON.stringify(body(id, service, count));
  const guarded = token() ? " \\\n  -H \"authorization: Bearer $GRISTMILL_TOKEN\"" : "";
  const stream = service === "generator" ? "-sN" : "-s";
  const texts = {
    curl: `curl ${stream} ${location.origin}${path} \\\n  -H 'content-type: application/json'${guarded} \\\n  -d '${sent}'`,
    grpcurl: `grpcurl -plaintext${guarded} \\\n  -d '${sent}' \\\n  ${location.hostname}:${PORTS[service]} ${method}`,
    Python: python(id, service, count),
  };
  const code = h("pre", { tabindex: "0" }, texts.curl);
  let chosen = "curl";
  const buttons = Object.keys(texts).map((name) => h("button", {
    class: "button small", type: "button", "aria-pressed": String(name === chosen),
    onclick: (event) => {
      chosen = name;
      code.textContent = texts[name];
      for (const one of buttons) one.setAttribute("aria-pressed", String(one === event.target));
    },
  }, name));
  return h("div", { class: "sheet pad snippets" },
    h("div", { class: "row" }, h("div", { class: "segments", role: "group", "aria-label": "Language" }, buttons), copier(() => texts[chosen])),
    code,
    h("p", { class: "quiet" }, `The ${service} itself listens on ${PORTS[service]} unless it is told otherwise.`,
      token() ? " The token is read from the environment." : ""));
}
