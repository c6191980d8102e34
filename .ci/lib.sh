# shellcheck shell=bash
# Functions that the scripts of .ci share, for a shell in the project's directory.

# Tools that .ci/machine builds without optimization, which a benchmark must not find.
UNOPTIMISED=$HOME/.cargo/unoptimised
PATH=$PATH:$UNOPTIMISED/bin

fail() {
  echo "error: $*" >&2
  return 1
}

# Ends a check that this machine cannot run, with the status that Automake uses for skipped tests.
not_run() {
  echo "$*"
  return 77
}

# Waits up to 60 s for a command to succeed.
await() {
  local end=$((SECONDS + 60))
  until "$@" > /dev/null 2>&1; do
    [ $SECONDS -lt $end ] || fail "gave up on: $*" || return
    sleep 0.25
  done
}

free_port() {
  python3 -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])'
}

# The version in Cargo.toml as Cargo reads it, to check `./bake`, which does not use Cargo.
version() {
  cargo pkgid --locked --package wasi-essentials | sed 's/.*[#@]//'
}

# Installs packages from PyPI; their commands are in $STATE/venv/bin.
install_python_packages() {
  (
    # Checks run beside each other, and pip does not wait for another one.
    flock 9 || exit
    [ -x "$STATE/venv/bin/python" ] || python3 -m venv "$STATE/venv" || exit
    "$STATE/venv/bin/pip" install --quiet "$@"
  ) 9> "$STATE/venv.lock"
}

# Renders deploy/ with its component `monitoring`; with an argument, under that name instead of the project's.
render_manifests() {
  local copy file
  copy=$(mktemp -d) && cp -r deploy/. "$copy" && file=$copy/kustomization.yaml || return
  sed -i 's/^# components:/components:/' "$file"
  [ $# = 0 ] || sed -i "s/^namespace: .*/namespace: $1/; s/wasi-essentials}$/$1}/" "$file"
  kustomize build "$copy"
}

# Succeeds if a command ends with this status and this one-line error.
is_error() {
  local expected=$1 error=$2 output status=0
  shift 2
  output=$("$@" 2>&1) || status=$?
  [ $status = "$expected" ] && grep -qx "error: $error" <<< "$output" && [ "$(wc -l <<< "$output")" = 1 ] ||
    fail "$*: status $status: $output"
}

# Counts the passed tests in a log of `cargo test`.
tests_passed() {
  awk '/^test result: ok\. / { sum += $4 } END { print sum + 0 }' "$1"
}

# Compiles a component with the program that the tests have built.
compile_component() {
  cargo run --package server -- compile "$1" -o "$2"
}

# Digests of an image's layers, a line each.
layers() {
  docker image inspect --format '{{range .RootFS.Layers}}{{println .}}{{end}}' "$1" | grep sha256
}

# Copies the files of a production image to a directory.
extract() {
  local id file
  mkdir -p "$2" && id=$(docker create --label ci "$1") || return
  for file in wasi-essentials component.cwasm; do
    docker cp "$id:/$file" "$2/$file" || return
  done
}

# Starts a container on a free port, and waits until it responds; sets $container and $port.
start() {
  local image=$1
  shift
  container=$(docker run -d --label ci -p 127.0.0.1:0:5000 "$@" "$image") || return
  port=$(docker port "$container" 5000) || return
  port=${port##*:}
  await curl -sf "http://127.0.0.1:$port/health" || { docker logs "$container"; return 1; }
}

# Waits until the health status of $container is `healthy`.
await_healthy() {
  await sh -c "docker inspect --format '{{.State.Health.Status}}' $container | grep -x healthy"
}

# Removes the containers of these checks and of the README.
remove_containers() {
  docker ps -aq --filter label=ci | xargs -r docker rm -f
  docker rm -f web hardened production mine sbom any
} > /dev/null 2>&1
