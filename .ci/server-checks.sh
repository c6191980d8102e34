# shellcheck shell=bash
# Checks of the server in its image: limits, shutdown, metrics.

# Options of a container without privileges and with little memory.
HARDENED=(--user 12345:54321 --read-only --cap-drop ALL --security-opt no-new-privileges
  --pids-limit 64 --memory 32m --cpus 0.5)

# With the example `proxy` and a name server that does not respond, every request fails in time, also if all look-ups are
# in use, and the server exits without waiting for one.
survives_a_silent_name_server() {
  local port statuses started took
  python3 -c 'import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(("127.0.0.9", 53)); time.sleep(600)' &
  echo $! > "$STATE/names.pid"
  port=$(free_port)
  container=$(docker run -d --label ci --network host --dns 127.0.0.9 -e LISTEN="127.0.0.1:$port" -e GUEST_ENV=UPSTREAM \
    -e UPSTREAM=http://slow.test -e ALLOWED_OUTBOUND_HOSTS=http://slow.test proxy:1.0) || return
  await curl -s -m 30 -o /dev/null "http://127.0.0.1:$port/"
  started=$SECONDS
  statuses=$(seq 96 | xargs -P 48 -I '{}' curl -s -o /dev/null -w '%{http_code}\n' "http://127.0.0.1:$port/" | sort | uniq -c)
  took=$((SECONDS - started))
  echo "$statuses after $took s"
  # Two requests one after the other, each within OUTBOUND_CONNECT_TIMEOUT of 2 s, not GUEST_TIMEOUT of 5 s.
  [ "$(xargs <<< "$statuses")" = "96 504" ] && [ $took -lt 9 ] || return
  started=$SECONDS
  docker stop --time 30 "$container" || return
  [ $((SECONDS - started)) -lt 5 ] || fail "it takes $((SECONDS - started)) s to stop" || return
  docker inspect --format '{{.State.ExitCode}}' "$container" | grep -x 0 || return
  kill "$(cat "$STATE/names.pid")" && rm "$STATE/names.pid"
}

serves_hardened() {
  start wasi-essentials:ci "${HARDENED[@]}" || return
  curl -sf "http://127.0.0.1:$port/" | grep -x 'Hello from Docker!' || return
  is_healthy_and_stops
}

serves_without_network() {
  container=$(docker run -d --label ci --network none "${HARDENED[@]}" wasi-essentials:ci) || return
  is_healthy_and_stops
}

is_healthy_and_stops() {
  await_healthy &&
    docker exec "$container" /wasi-essentials healthcheck &&
    docker stop "$container" || return
  docker inspect --format '{{.State.ExitCode}} {{.State.OOMKilled}}' "$container" | grep -x '0 false'
}

# The shutdown under load, with the server as process 1 of a container: `docker run` passes signals on.
drains_as_process_1() {
  SERVER="$(command -v docker) run --rm --label ci --network host -e ACCESS_LOG -e MANAGEMENT_LISTEN=off -v $PWD/target:$PWD/target:ro wasi-essentials:ci" \
    cargo test --package server --test shutdown shutdown_drops_no -- --nocapture | tee "$STATE/drains.log" || return
  [ "$(tests_passed "$STATE/drains.log")" = 2 ] || fail "not two tests"
}

# At the defaults, with the limits of compose.yaml. The worst clients reconnect when they are closed: 40 s is longer than each
# timeout that closes them.
limits_hold_in_the_container() {
  local status=0 limits="--cpus 1 --memory 512m --pids-limit 64 --read-only --cap-drop ALL"
  for limit in 'cpus: "1"' 'memory: 512M' 'pids: 64'; do
    grep -q "$limit" compose.yaml || fail "compose.yaml has other limits than $limit" || return
  done
  SERVER="$(command -v docker) run --rm --label ci $limits --network host -e ACCESS_LOG -e MANAGEMENT_LISTEN=off -v $PWD/target:$PWD/target:ro wasi-essentials:ci" \
    WORST_SECONDS=40 cargo test --package server --test limits -- --nocapture || status=1
  # A server that a test kills continues in its container.
  docker ps -aq --filter label=ci | xargs -r docker rm -f
  return $status
}

# The tests of the server, with the image's runtime rather than a program built for tests.
shipped_runtime_holds() {
  extract wasi-essentials:ci "$STATE/ci" || return
  SERVER=$STATE/ci/wasi-essentials SOAK_SECONDS=15 cargo test --package server \
    --test guests --test load --test log --test malformed --test management --test metrics --test requests --test service \
    --test shutdown \
    -- --nocapture
}

# Writes the text of /metrics for `dashboard_uses_metrics_that_exist`.
metrics_are_read() {
  command -v prometheus > /dev/null || fail "there is no prometheus" || return
  install_python_packages prometheus-client || return
  "$STATE/venv/bin/python" .ci/metrics wasi-essentials:ci "$STATE/metrics"
}

# In one of three tries, because other work on the machine can slow each of them.
stops_fast() {
  local before ended _
  for _ in 1 2 3; do
    start wasi-essentials:ci || return
    before=$(date +%s%N)
    docker stop "$container" || return
    ended=$(date +%s%N)
    echo "$(((ended - before) / 1000000)) ms"
    docker logs "$container" | tail -n 1 | grep 'SIGTERM: shutting down' || return
    [ "$(docker inspect --format '{{.State.ExitCode}}' "$container")" = 0 ] || return
    [ $((ended - before)) -ge 1000000000 ] || return 0
  done
  fail "it takes a second to stop"
}

unhealthy_when_gone() {
  local status=0
  docker run --rm --label ci wasi-essentials:ci healthcheck || status=$?
  [ $status = 1 ]
}
