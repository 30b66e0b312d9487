// Reads a response as it comes: Server-Sent Events one by one, or the whole text.

/** Yields {event, data} for each event, {event: "ping"} for a comment. */
export async function* events(response) {
  let text = "";
  for await (const chunk of chunks(response)) {
    text += chunk;
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      yield parse(text.slice(0, end));
      text = text.slice(end + 2);
    }
  }
}

async function* chunks(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  while (true) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}

function parse(block) {
  const found = { event: "message", data: "" };
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith(":")) found.event = "ping";
    else if (line.startsWith("event: ")) found.event = line.slice(7);
    else if (line.startsWith("data: ")) data.push(line.slice(6));
  }
  found.data = data.join("\n");
  return found;
}
