// The service of app.js on the bindings of wasi:http. An instance of it can serve several requests: the engine's `fetch`
// event can be responded to only once.

import { Fields, OutgoingBody, OutgoingResponse, ResponseOutparam } from "wasi:http/types@0.2.10";

let count = 0;

export const incomingHandler = {
  handle(request, out) {
    const { status, type, text } = respond(request);
    const fields = Fields.fromList([["content-type", new TextEncoder().encode(type)]]);
    const response = new OutgoingResponse(fields);
    response.setStatusCode(status);
    const body = response.body();
    ResponseOutparam.set(out, { tag: "ok", val: response });
    const bytes = new TextEncoder().encode(text);
    const stream = body.write();
    // One call takes at most 4096 bytes.
    for (let at = 0; at < bytes.length; at += 4096) {
      stream.blockingWriteAndFlush(bytes.subarray(at, at + 4096));
    }
    stream[Symbol.dispose]();
    OutgoingBody.finish(body, undefined);
  },
};

function respond(request) {
  const path = request.pathWithQuery() ?? "/";
  switch (`${request.method().tag} ${path.split("?")[0]}`) {
    case "get /":
      return plain(200, "Hello from JavaScript!");
    case "get /health":
      return plain(200, "OK");
    case "get /count":
      count += 1;
      return plain(200, String(count));
    case "post /":
      return greet(read(request));
    default:
      return plain(404, "Not Found");
  }
}

function greet(body) {
  let value;
  try {
    value = JSON.parse(body);
  } catch {
    return plain(400, "The body is not JSON");
  }
  if (typeof value?.name !== "string") {
    return plain(400, "The JSON has no string `name`");
  }
  const text = JSON.stringify({ greeting: `Hello, ${value.name}!` });
  return { status: 200, type: "application/json", text };
}

function plain(status, text) {
  return { status, type: "text/plain; charset=utf-8", text };
}

function read(request) {
  const body = request.consume();
  const stream = body.stream();
  const decoder = new TextDecoder();
  let text = "";
  try {
    for (;;) {
      text += decoder.decode(stream.blockingRead(65536n), { stream: true });
    }
  } catch (error) {
    if (error.payload?.tag !== "closed") throw error;
  }
  stream[Symbol.dispose]();
  body[Symbol.dispose]();
  return text + decoder.decode();
}
