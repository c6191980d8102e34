// The same service in Node.js, on its own HTTP server, in one process, or with WORKERS=n as a cluster of n processes.

import cluster from "node:cluster";
import { createServer } from "node:http";

const EVENT_INTERVAL_MS = 250;
const large = Buffer.alloc(1 << 20, "x");

const routes = {
  "GET /": (_, response) => respond(response, 200, "text/plain; charset=utf-8", "Hello from Docker!"),
  "GET /health": (_, response) => respond(response, 200, "text/plain; charset=utf-8", "OK"),
  "GET /large": (_, response) => respond(response, 200, "text/plain; charset=utf-8", large),
  "GET /events": sendEvents,
  "POST /echo": (request, response) => readJson(request, response, (value) => value),
  "POST /": (request, response) => readJson(request, response, ({ name }) => ({ greeting: `Hello, ${name}!` })),
};

function respond(response, status, type, body) {
  response.writeHead(status, { "content-type": type, "content-length": Buffer.byteLength(body) });
  response.end(body);
}

function readJson(request, response, handle) {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    try {
      const value = handle(JSON.parse(Buffer.concat(chunks).toString()));
      respond(response, 200, "application/json", JSON.stringify(value));
    } catch {
      respond(response, 400, "text/plain; charset=utf-8", "not JSON");
    }
  });
}

function sendEvents(_, response) {
  response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-store" });
  let count = 0;
  let timer;
  const send = () => {
    response.write(`id: ${count}\ndata: {"count": ${count}}\n\n`);
    count += 1;
    timer = setTimeout(send, EVENT_INTERVAL_MS);
  };
  response.on("close", () => clearTimeout(timer));
  send();
}

const workers = Number(process.env.WORKERS ?? 0);
if (workers > 0 && cluster.isPrimary) {
  for (let n = 0; n < workers; n += 1) cluster.fork();
  process.on("SIGTERM", () => process.exit(0));
} else {
  createServer((request, response) => {
    const route = routes[`${request.method} ${request.url}`];
    if (route) route(request, response);
    else respond(response, 404, "text/plain; charset=utf-8", "Not Found");
  }).listen(Number(process.env.PORT), "127.0.0.1");
}
