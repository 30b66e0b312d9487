// Traffic policies: reads the one of a model, and shows its shares as a bar.
import { h } from "/docs/dom.js";
import { call } from "./api.js";
import { percent } from "./parts.js";

/** The policy of a model, or null. Asked of the history: there, none is no failure. */
export async function policyOf(name) {
  const resource = encodeURIComponent(`${name}/trafficPolicy`);
  const { changes } = await call(`/registry/v1/${name}/history?page_size=1&resource=${resource}`);
  return changes[0]?.after?.trafficPolicy ?? null;
}

export const target = (split) => (split.alias ? split.alias : `version ${split.version}`);

/** The weights as shares of one. */
export function shares(splits) {
  const whole = splits.reduce((sum, split) => sum + (split.weight ?? 0), 0) || 1;
  return splits.map((split) => ({ name: target(split), share: (split.weight ?? 0) / whole }));
}

export function bar(splits, small = false) {
  const parts = shares(splits);
  const said = parts.map(({ name, share }) => `${percent(share)} ${name}`).join(", ");
  const strip = h("div", { class: "weights", role: "img", "aria-label": said }, parts.map(({ share }, index) => {
    const part = h("span", { class: `weight weight-${index % 5}` });
    part.style.flexGrow = share;
    return part;
  }));
  const legend = parts.map(({ name, share }, index) =>
    h("span", { class: `key key-w${index % 5}` }, `${name} `, h("strong", {}, percent(share))));
  return h("div", { class: small ? "traffic small" : "traffic" }, strip, h("div", { class: "legend" }, legend));
}
