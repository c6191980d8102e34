import json

from componentize_py_types import Err, Ok
from wit_world import exports
from wit_world.imports import streams, types

count = 0


class IncomingHandler(exports.IncomingHandler):
    def handle(self, request: types.IncomingRequest, response_out: types.ResponseOutparam):
        status, content_type, text = respond(request)
        headers = types.Fields.from_list([("content-type", content_type.encode())])
        response = types.OutgoingResponse(headers)
        response.set_status_code(status)
        body = response.body()
        types.ResponseOutparam.set(response_out, Ok(response))
        data = text.encode()
        with body.write() as stream:
            # WASI takes at most 4096 bytes in one such call.
            for start in range(0, len(data), 4096):
                stream.blocking_write_and_flush(data[start : start + 4096])
        types.OutgoingBody.finish(body, None)


def respond(request: types.IncomingRequest) -> tuple[int, str, str]:
    global count
    match request.method(), (request.path_with_query() or "/").partition("?")[0]:
        case types.Method_Get(), "/":
            return 200, "text/plain", "Hello from Python!"
        case types.Method_Get(), "/health":
            return 200, "text/plain", "OK"
        case types.Method_Get(), "/count":
            count += 1
            return 200, "text/plain", str(count)
        case types.Method_Post(), "/":
            return greet(read_body(request))
    return 404, "text/plain", "Not Found"


def greet(body: bytes) -> tuple[int, str, str]:
    try:
        match json.loads(body):
            case {"name": str(name)}:
                greeting = json.dumps({"greeting": f"Hello, {name}!"}, separators=(",", ":"))
                return 200, "application/json", greeting
    except ValueError:
        return 400, "text/plain", "The body is not JSON"
    return 400, "text/plain", "The JSON has no string `name`"


def read_body(request: types.IncomingRequest) -> bytes:
    data = bytearray()
    with request.consume() as body, body.stream() as stream:
        try:
            while True:
                data += stream.blocking_read(65536)
        except Err as error:
            if not isinstance(error.value, streams.StreamError_Closed):
                raise
    return bytes(data)
