// What callers do with OpenAI's SDK for JavaScript, unmodified: `node openai.js BASE_URL MODEL`.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none needed", maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const short = { model, messages, max_completion_tokens: 12, temperature: 0, seed: 1 };

// A whole answer, and the same in pieces.
const whole = await client.chat.completions.create(short);
assert.equal(whole.object, "chat.completion");
assert.equal(whole.choices[0].message.role, "assistant");
assert.ok(whole.usage.completion_tokens > 0);
assert.ok(whole._request_id);
const pieces = [];
let usage;
const stream = await client.chat.completions.create({
  ...short, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  assert.equal(chunk.object, "chat.completion.chunk");
  if (chunk.usage) usage = chunk.usage;
  pieces.push(chunk.choices[0]?.delta?.content ?? "");
}
assert.equal(pieces.join(""), whole.choices[0].message.content);
assert.deepEqual(usage, whole.usage);

// The SDK's own helper over a stream.
const helped = client.chat.completions.stream(short);
const final = await helped.finalChatCompletion();
assert.equal(final.choices[0].message.content, whole.choices[0].message.content);

// A stream that its reader leaves: the connection ends, and the next request is answered.
const endless = await client.chat.completions.create({
  ...short, max_completion_tokens: 2000, ignore_eos: true, stream: true,
});
let seen = 0;
for await (const _ of endless) if (++seen === 3) break;

// A forced tool, a schema for the answer, several choices, log probabilities where they are had.
const tool = {
  type: "function",
  function: {
    name: "weather",
    parameters: { type: "object", properties: { city: { type: "string", maxLength: 12 } }, required: ["city"] },
  },
};
const called = await client.chat.completions.create({
  ...short, max_completion_tokens: 60, tools: [tool], tool_choice: { type: "function", function: { name: "weather" } },
});
assert.equal(called.choices[0].finish_reason, "tool_calls");
assert.equal(called.choices[0].message.tool_calls[0].function.name, "weather");
assert.equal(typeof JSON.parse(called.choices[0].message.tool_calls[0].function.arguments).city, "string");
const formed = await client.chat.completions.create({
  ...short, max_completion_tokens: 40,
  response_format: { type: "json_schema", json_schema: { name: "yes", schema: { enum: ["yes", "no"] } } },
});
assert.ok(["yes", "no"].includes(JSON.parse(formed.choices[0].message.content)));
const several = await client.chat.completions.create({ ...short, n: 2, temperature: 1 });
assert.deepEqual(several.choices.map((choice) => choice.index), [0, 1]);

// Completions and models.
const text = await client.completions.create({ model, prompt: "Once upon a time", max_tokens: 5 });
assert.equal(text.object, "text_completion");
assert.equal(text.usage.completion_tokens, 5);
const listed = [];
for await (const one of client.models.list()) listed.push(one.id);
assert.ok(listed.includes(model));
assert.equal((await client.models.retrieve(model)).id, model);

// Errors are the SDK's own classes, with what was wrong.
await assert.rejects(client.chat.completions.create({ ...short, model: "nobody" }), (error) => {
  assert.ok(error instanceof OpenAI.NotFoundError);
  assert.equal(error.code, "model_not_found");
  return true;
});
await assert.rejects(client.chat.completions.create({ ...short, audio: {} }), (error) => {
  assert.ok(error instanceof OpenAI.BadRequestError);
  assert.equal(error.param, "audio");
  return true;
});
console.log("all of it");
