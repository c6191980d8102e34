let count = 0;

async function handle(request) {
  const { pathname } = new URL(request.url);
  switch (`${request.method} ${pathname}`) {
    case "GET /":
      return new Response("Hello from JavaScript!");
    case "GET /health":
      return new Response("OK");
    case "GET /count":
      count += 1;
      return new Response(String(count));
    case "POST /":
      return greet(request);
    default:
      return new Response("Not Found", { status: 404 });
  }
}

async function greet(request) {
  let value;
  try {
    value = await request.json();
  } catch {
    return new Response("The body is not JSON", { status: 400 });
  }
  if (typeof value?.name !== "string") {
    return new Response("The JSON has no string `name`", { status: 400 });
  }
  return Response.json({ greeting: `Hello, ${value.name}!` });
}

addEventListener("fetch", (event) => event.respondWith(handle(event.request)));
