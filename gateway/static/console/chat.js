// A conversation with a generator, kept in memory only: messages out, tokens in as they come.
import { h } from "/docs/dom.js";
import { events } from "/docs/stream.js";
import { loaded, open, ready, Refused } from "./api.js";
import { choose, empty, failure, number, seconds, word } from "./parts.js";

const SHOWN_MS = 250;
const ENDS = { stop: "finished", length: "stopped at max tokens", "tool calls": "called a tool" };

export class Chat {
  constructor(root) {
    this.turns = [];
    this.stopping = null;
    this.model = h("select", { id: "chat-model" });
    this.system = h("textarea", { rows: 3, id: "chat-system", placeholder: "none" });
    this.temperature = h("input", { type: "number", id: "chat-temperature", min: 0, max: 2, step: 0.1, value: 0.7, inputmode: "decimal" });
    this.most = h("input", { type: "number", id: "chat-most", min: 1, max: 1048576, step: 1, value: 256, inputmode: "numeric" });
    this.log = h("div", { class: "log", role: "region", "aria-label": "Conversation", tabindex: "0" });
    this.input = h("textarea", { rows: 2, id: "chat-input", placeholder: "Say something", "aria-label": "Message" });
    this.send = h("button", { class: "button primary", type: "submit" }, "Send");
    this.stop = h("button", { class: "button", type: "button", hidden: true, onclick: () => this.stopping?.abort() }, "Stop");
    this.said = h("p", { class: "hidden", role: "status" });
    this.form = h("form", { class: "composer", onsubmit: (event) => this.submit(event) }, this.input, this.send, this.stop);
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.stopping?.abort();
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.form.requestSubmit();
      }
    });
    this.options = h("details", { class: "options sheet pad" }, h("summary", {}, "Model and settings"),
      h("label", { class: "field" }, h("span", {}, "Model"), this.model),
      h("label", { class: "field" }, h("span", {}, "System prompt"), this.system),
      h("div", { class: "pair" },
        h("label", { class: "field" }, h("span", {}, "Temperature"), this.temperature),
        h("label", { class: "field" }, h("span", {}, "Max tokens"), this.most)),
      h("button", { class: "button", type: "button", onclick: () => this.begin(true) }, "New chat"));
    const wide = matchMedia("(min-width: 1001px)");
    const fit = () => { this.options.open = wide.matches; };
    wide.addEventListener("change", fit);
    fit();
    this.body = h("div", { class: "chat" },
      this.options,
      h("div", { class: "talk sheet" }, this.log, this.form, this.said));
    this.none = h("div", { hidden: true });
    root.append(h("h1", { class: "hidden" }, "Chat"), this.none, this.body);
    this.begin();
  }

  async show(wanted) {
    try {
      const names = ready(await loaded("generator"));
      this.none.hidden = names.length > 0;
      this.none.replaceChildren(empty("No generator is loaded.", "The generator loads what an alias live points to: ", h("code", {}, "gristmill push --alias=live ./my-model"), "."));
      choose(this.model, names, wanted);
    } catch (error) {
      this.none.hidden = false;
      this.none.replaceChildren(failure(error));
    }
    this.body.hidden = !this.none.hidden && !this.turns.length;
  }

  /** Forgets the conversation. */
  begin(again = false) {
    this.stopping?.abort();
    this.turns = [];
    this.log.replaceChildren(h("p", { class: "placeholder quiet" }, "Enter sends, Shift + Enter begins a line, Escape stops. Nothing is stored: closing the page forgets the conversation."));
    if (again) this.input.focus();
  }

  submit(event) {
    event.preventDefault();
    const content = this.input.value.trim();
    if (!content || this.stopping) return;
    this.input.value = "";
    this.log.querySelector(".placeholder")?.remove();
    const turn = { asked: content, text: "", failed: false };
    this.turns.push(turn);
    this.log.append(h("div", { class: "message user" }, h("span", { class: "hidden" }, "You: "), content));
    this.answer(turn);
  }

  request(turn) {
    const messages = this.system.value.trim() ? [{ role: "ROLE_SYSTEM", content: this.system.value.trim() }] : [];
    for (const one of this.turns) {
      // What brought no answer is left out, or the model would see two questions in a row.
      if (one !== turn && !one.text) continue;
      messages.push({ role: "ROLE_USER", content: one.asked });
      if (one.text) messages.push({ role: "ROLE_ASSISTANT", content: one.text });
    }
    const params = { max_tokens: Number(this.most.value) || 256 };
    if (this.temperature.value !== "") params.temperature = Number(this.temperature.value);
    return { model: { model: this.model.value }, prompt: { chat: { messages } }, params };
  }

  async answer(turn) {
    const text = h("div", { class: "text" });
    const facts = h("p", { class: "facts" }, "Waiting…");
    const message = h("div", { class: "message model", "aria-busy": "true" }, h("span", { class: "hidden" }, `${this.model.value}: `), text, facts);
    this.log.append(message);
    this.follow(true);
    const mine = (this.stopping = new AbortController());
    const meter = new Meter();
    this.busy(true);
    let ending = "";
    try {
      const response = await open("/generator/v1/generate:stream", this.request(turn), mine.signal);
      for await (const { event, data } of events(response)) {
        if (event === "ping") continue;
        const told = JSON.parse(data);
        if (event === "error") throw new Refused(told.error.code, told.error);
        if (told.delta) {
          const near = this.near();
          turn.text += told.delta.text;
          text.append(told.delta.text);
          if (meter.count(told.delta.tokenIds.length)) facts.textContent = meter.says();
          this.follow(near);
        }
        if (told.finished) {
          const reason = word(told.finished.choices[0].finishReason, "FINISH_REASON_");
          ending = ENDS[reason] ?? reason;
          meter.tokens = told.finished.usage.completionTokens ?? meter.tokens;
        }
      }
      ending ||= "cut off";
    } catch (error) {
      ending = error.name === "AbortError" ? "stopped by you" : "failed";
      if (ending === "failed") message.insertBefore(failure(error), facts);
    }
    facts.textContent = [meter.says(), ending].filter(Boolean).join(" · ");
    message.setAttribute("aria-busy", "false");
    this.follow(this.near());
    if (this.stopping === mine) this.busy(false);
    // Once, as a whole: word by word would be too much to listen to.
    this.said.textContent = turn.text || ending;
  }

  busy(on) {
    if (!on) this.stopping = null;
    // The focus must not vanish with the button that had it.
    if (document.activeElement === (on ? this.send : this.stop)) this.input.focus();
    this.send.hidden = on;
    this.stop.hidden = !on;
  }

  /** Whether the end of the conversation is seen. */
  near() {
    return this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 60;
  }

  follow(near) {
    if (near) this.log.scrollTop = this.log.scrollHeight;
  }
}

/** Counts tokens by the clock. */
class Meter {
  constructor() {
    this.tokens = 0;
    this.started = performance.now();
    this.first = this.last = this.shown = null;
  }

  /** Adds tokens; whether it is time to show them. */
  count(more) {
    const now = performance.now();
    this.tokens += more;
    this.first ??= { at: now, tokens: this.tokens };
    this.last = now;
    if (this.shown !== null && now - this.shown < SHOWN_MS) return false;
    this.shown = now;
    return true;
  }

  says() {
    if (!this.first) return "";
    const spent = (this.last - this.first.at) / 1000;
    const speed = spent > 0 ? `${number((this.tokens - this.first.tokens) / spent)} tokens/s` : "";
    return [`${this.tokens} ${this.tokens === 1 ? "token" : "tokens"}`, speed, `first after ${seconds((this.first.at - this.started) / 1000)}`].filter(Boolean).join(" · ");
  }
}
