// Calls the gateway with the token, and turns refusals into errors that say what to do.
import { token } from "/docs/settings.js";

/** What the gateway answers instead of what was asked for. */
export class Refused extends Error {
  constructor(status, error = {}) {
    super(error.message ?? `the gateway answered ${status}`);
    this.status = status;
    this.reason = error.reason ?? "";
    this.id = error.requestId ?? "";
  }
}

/** The response to a GET, or to a POST where there is a body; Refused where it is none. */
export async function open(path, body, signal) {
  const headers = {};
  if (token()) headers.authorization = `Bearer ${token().trim()}`;
  if (body) headers["content-type"] = "application/json";
  const response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  const error = new Refused(response.status, said.error);
  if (response.status === 401 || response.status === 403) {
    document.dispatchEvent(new CustomEvent("refused", { detail: error }));
  }
  throw error;
}

/** The same as JSON. */
export const call = async (path, body, signal) => (await open(path, body, signal)).json();

/** What a service has loaded, the ready ones first. */
export async function loaded(service) {
  const { models } = await call(`/${service}/v1/models`);
  const rank = (one) => Number(one.state !== "LOAD_STATE_READY");
  return models.map((one) => ({ ...one, service })).sort((a, b) => rank(a) - rank(b));
}

/** The names of models that answer, each once. */
export const ready = (models) =>
  [...new Set(models.filter((one) => one.state === "LOAD_STATE_READY").map((one) => one.model))];

/** Runs a few at a time, in order; a failure is a value. */
export async function each(items, work, atOnce = 6) {
  const results = [];
  const todo = items.entries();
  const one = async () => {
    for (const [index, item] of todo) {
      results[index] = await work(item).catch((error) => error);
    }
  };
  await Promise.all(Array.from({ length: atOnce }, one));
  return results;
}
