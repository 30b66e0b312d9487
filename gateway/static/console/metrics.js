// Asks for the totals of the services while the page is seen, and keeps what they make of time:
// rates and percentiles over the last seconds, as points of the last minutes.
import { call } from "./api.js";

const STEP_MS = 2000;
const KEPT_S = 300;
const WINDOW_S = 10;
const IDLE_MS = 30000;

/** A percentile of what came between two histograms; null where nothing came. */
export function quantile(share, now, before) {
  const counts = now.counts.map((count, index) => count - (before.counts[index] ?? 0));
  const total = counts.at(-1);
  if (!total) return null;
  const rank = share * total;
  const at = counts.findIndex((count) => count >= rank);
  if (at >= now.bounds.length) return now.bounds.at(-1);
  const low = at ? now.bounds[at - 1] : 0;
  const below = at ? counts[at - 1] : 0;
  return low + (now.bounds[at] - low) * ((rank - below) / (counts[at] - below));
}

function mean(now, before) {
  const count = (now.counts.at(-1) ?? 0) - (before.counts.at(-1) ?? 0);
  return count ? (now.sum - before.sum) / count : null;
}

/** Whether the totals of two samples may be compared: the same instances, none begun anew. */
const follows = (now, before) =>
  String(now.answered) === String(before.answered) && now.requests_total >= before.requests_total
  && now.tokens_total >= before.tokens_total && now.rejected_total >= before.rejected_total;

const GAUGES = ({ queue, running, waiting }) => ({ queue, running, waiting });

function point(time, now, old) {
  if (!now.up) return { time };
  if (!old) return { time, ...GAUGES(now) };
  const { before } = old;
  const rate = (name) => (now[name] - before[name]) / (time - old.time);
  const share = (of, which) => quantile(which, now[of], before[of]);
  return {
    time, ...GAUGES(now),
    requests: rate("requests_total"), rejected: rate("rejected_total"), errors: rate("errors_total"), tokens: rate("tokens_total"),
    batch: mean(now.batch, before.batch),
    p50: share("latency", 0.5), p90: share("latency", 0.9), p99: share("latency", 0.99),
    first50: share("first_token", 0.5), first90: share("first_token", 0.9), first99: share("first_token", 0.99),
  };
}

class Feed extends EventTarget {
  constructor() {
    super();
    this.points = {};
    this.recent = {};
    /** "waiting", "ok", or the error that came instead. */
    this.state = "waiting";
    this.latest = null;
    this.timer = 0;
    document.addEventListener("visibilitychange", () => this.restart());
  }

  restart() {
    clearTimeout(this.timer);
    this.turn = Symbol("turn");
    if (!document.hidden) this.ask(this.turn);
  }

  async ask(turn) {
    let pause = STEP_MS;
    try {
      const sample = await call("/console/metrics");
      if (sample.time !== this.latest?.time) this.take(sample);
      this.state = "ok";
      if (!Object.keys(sample.services).length) pause = IDLE_MS;
    } catch (error) {
      this.state = error;
      // Asking again does not help before the token is another one.
      if (error.status === 401 || error.status === 403) pause = 0;
    }
    if (turn !== this.turn) return;
    this.dispatchEvent(new Event("change"));
    if (pause) this.timer = setTimeout(() => this.ask(turn), pause);
  }

  take(sample) {
    this.latest = sample;
    for (const [name, now] of Object.entries(sample.services)) {
      const kept = (this.recent[name] ?? []).filter((one) => sample.time - one.time <= WINDOW_S);
      const comparable = now.up && kept.length && kept.at(-1).before.up && follows(now, kept.at(-1).before);
      const old = comparable ? kept[0] : null;
      this.recent[name] = [...(old ? kept : []), { time: sample.time, before: now }];
      const all = [...(this.points[name] ?? []), point(sample.time, now, old)];
      this.points[name] = all.filter((one) => sample.time - one.time <= KEPT_S);
    }
  }

  /** How many seconds charts show: as many as there are, from one minute to all that is kept. */
  span() {
    const oldest = Math.min(...Object.values(this.points).map((points) => points[0].time));
    return Math.min(KEPT_S, Math.max(60, this.latest.time - oldest));
  }

  /** The newest point of a service; an empty one where there is none. */
  now(name) {
    return this.points[name]?.at(-1) ?? {};
  }
}

export const feed = new Feed();
