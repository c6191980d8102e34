# shellcheck shell=bash
# Checks of the images: how they are built, and what they contain.

build_images() {
  local revision
  revision=$(git rev-parse HEAD) || return
  docker build --build-arg VERSION="$(version)" --build-arg REVISION="$revision" -t wasi-essentials:ci . 2>&1 |
    tee "$STATE/build.log" &&
    docker build -t wasi-essentials:ci-single --target builder . &&
    docker build --platform linux/arm64 -t wasi-essentials:ci-arm64 .
}

# Builds the image of an edited clone; sets $output to the log of the build, and $copy to the clone. The edit has to be new to
# the layer cache.
build_edited() {
  local started=$SECONDS
  copy=$(mktemp -d)
  # A clone, as an archive has other file modes, which count for the layer cache.
  git clone -q . "$copy" && (cd "$copy" && "$@") || return
  output=$(docker build --progress plain -t wasi-essentials:ci-edit "$copy" 2>&1) || fail "$output" || return
  echo "$*: built in $((SECONDS - started)) s"
}

edit_route() {
  sed -i "s/Hello from Docker!/Hello from $EPOCHREALTIME!/" src/routes.rs
}

change_manifest() {
  sed -i '0,/^version = .*/s//version = "99.0.0"/' Cargo.toml && cargo add --quiet hex &&
    sed -i "s/^hex = .*/& # $EPOCHREALTIME/" Cargo.toml && cargo update --quiet --workspace
}

# Names the crates that the last build has compiled.
compiled() {
  grep -o 'Compiling [^ ]*' <<< "$output" | sort -u | cut -d ' ' -f 2 | xargs
}

# The engine may have deleted layers of an earlier build, which a first edit makes again: one of two has to be cheap.
edit_is_cheap() {
  local copy output
  build_edited edit_route && { [ "$(compiled)" = wasi-essentials ] || build_edited edit_route; } || return
  [ "$(compiled)" = wasi-essentials ] || fail "more than the component is compiled: $(compiled)" || return
  # The runtime's layer is the same, the component's is another.
  paste <(layers wasi-essentials:ci) <(layers wasi-essentials:ci-edit) | tee "$STATE/layers"
  awk '$1 == $2 { same = same NR } END { exit !(NR == 2 && same == "1") }' "$STATE/layers" ||
    fail "another layer than the component's alone has changed" || return
  # Another version and another dependency of the service compile the component's crates, and no server.
  build_edited change_manifest || return
  compiled
  [[ " $(compiled) " == *" hex "* ]] || fail "the new dependency is not compiled" || return
  ! compiled | grep -E '(^| )(server|wasmtime)( |$)'
}

# Both images, one after the other.
images_keep_the_contract() {
  local image
  for image in wasi-essentials:ci wasi-essentials:ci-single; do
    contract "$image" && turns_healthy "$image" || fail "$image" || return
  done
}

contract() {
  start "$1" && CONTRACT_URL=http://127.0.0.1:$port cargo test --package server --test contract
}

turns_healthy() {
  start "$1" && await_healthy
}

# Under emulation, and in 39 bits of address space, which is all that many arm64 kernels give a process.
arm64_keeps_the_contract() {
  local arm64=$STATE/arm64 port server status=0
  extract wasi-essentials:ci-arm64 "$arm64" && port=$(free_port) || return
  for file in wasi-essentials component.cwasm; do
    readelf --file-header "$arm64/$file" | grep 'Machine: *AArch64' || return
  done
  qemu-aarch64-static -R 0x7fffffffff "$arm64/wasi-essentials" "$arm64/component.cwasm" --listen "127.0.0.1:$port" &
  server=$!
  echo $server > "$STATE/qemu.pid" # For .ci/run, should it be cut off.
  await curl -sf "http://127.0.0.1:$port/health" &&
    CONTRACT_URL=http://127.0.0.1:$port cargo test --package server --test contract || status=1
  kill $server
  wait $server
  rm "$STATE/qemu.pid"
  return $status
}

# The machine code of all architectures names the component that is published by itself, which imports no more than it needs,
# and starts small.
architectures_share_one_component() {
  local component=$PWD/target/component/component.wasm digest image
  ./bake component && digest=$(sha256sum "$component") || return
  for image in ci ci-arm64; do
    extract wasi-essentials:$image "$STATE/$image" || return
    grep -ao '{"wasi".*}' "$STATE/$image/component.cwasm" | grep -F "\"sha256\":\"${digest%% *}\"" ||
      fail "$image carries another" || return
  done
  # A compiler that was built in another way makes the same of it.
  compile_component "$component" "$STATE/component.cwasm" &&
    cmp "$STATE/component.cwasm" "$STATE/ci/component.cwasm" || return
  COMPONENT_FILE=$component cargo test --package server --test component
}

# Builds the image's runtime on this machine, and what bench/run needs besides.
build_host_runtime() {
  server/release --bin wasi-essentials --example native
}

build_host_components() {
  PROGRAM=component server/release --lib &&
    PROGRAM=component server/release --lib --target-dir target/spin --no-default-features --features spin
}

# The same toolchain, in another directory.
builds_the_same_binary() {
  local built
  built=target/$(uname -m)-unknown-linux-musl/image/wasi-essentials
  build_host_runtime && extract wasi-essentials:ci "$STATE/ci" || return
  sha256sum "$STATE/ci/wasi-essentials" "$built"
  cmp "$STATE/ci/wasi-essentials" "$built"
}

# The layout goes by names, which contain hashes of crates. Of this machine's runtime, the one that `bench/run` has left: Cargo's
# directory can have those of earlier builds.
start_is_laid_out() {
  docker build --platform linux/arm64 --target symbols --output "$STATE/arm64" . &&
    has_the_functions_of_its_profile "$(uname -m)" target/bench/wasi-essentials.symbols &&
    has_the_functions_of_its_profile aarch64 "$STATE/arm64/wasi-essentials.symbols"
}

has_the_functions_of_its_profile() {
  local profile=bench/profiles/$1.functions listed known
  sort -u "$profile" > "$STATE/listed"
  nm "$2" | awk '{ print $NF }' | sort -u > "$STATE/functions"
  listed=$(wc -l < "$STATE/listed")
  known=$(comm -12 "$STATE/listed" "$STATE/functions" | wc -l)
  echo "the runtime has $known of the $listed functions in $profile"
  [ "$listed" -gt 1000 ] && [ $((known * 10)) -ge $((listed * 9)) ] || fail "run ARCH=$1 bench/profile"
}

# Of another clone, with the component compiled once more, and all layers made again. The runtime is compiled once more by
# `builds_the_same_binary`.
builds_the_same_layers() {
  local copy
  copy=$(mktemp -d)
  git clone -q . "$copy" || return
  docker build --no-cache-filter component-build,component-compile,runtime -t wasi-essentials:ci-again "$copy" || return
  layers wasi-essentials:ci > "$STATE/layers" && layers wasi-essentials:ci-again > "$STATE/layers-again" || return
  cat "$STATE/layers"
  diff "$STATE/layers" "$STATE/layers-again"
}

# The image's runtime has no compiler, and the image that compiles has no server: each says in one line what it cannot do.
programs_say_what_they_cannot_do() {
  local runtime=$STATE/ci/wasi-essentials wasm=target/component/component.wasm compile
  extract wasi-essentials:ci "$STATE/ci" || return
  is_error 1 "$wasm: not compiled, and this program has no compiler: .*" "$runtime" "$wasm" &&
    is_error 1 "this program has no compiler: .*" "$runtime" compile "$wasm" || return
  docker build --target compile -t wasi-essentials:ci-compile . || return
  compile=(docker run --rm wasi-essentials:ci-compile)
  is_error 1 "this program only compiles: .*" "${compile[@]}" serve /component.cwasm &&
    is_error 1 "this program only compiles: .*" "${compile[@]}" healthcheck &&
    is_error 2 'no command: `compile INPUT.wasm`; see --help' "${compile[@]}" &&
    is_error 2 'no command: `compile app.wasm`; see --help' "${compile[@]}" app.wasm &&
    "${compile[@]}" --help | grep '^Usage: wasi-essentials compile INPUT.wasm'
}

# The errors that docs/any-component.md lists, from its Dockerfile.
compile_rejects_invalid_components() {
  local directory wasm=target/spin/wasm32-wasip2/release/examples/greet.wasm
  directory=$(mktemp -d)
  refuses() {
    local output
    output=$(docker build -f target/any.Dockerfile "$directory" 2>&1) && { fail "it builds: $1"; return; }
    grep -E "^#[0-9]+ [0-9.]+ error: /component.wasm: $1" <<< "$output" || fail "$output"
  }
  : > "$directory/app.wasm" && refuses 'not a WebAssembly component' || return
  cp README.md "$directory/app.wasm" && refuses 'not a WebAssembly component' || return
  printf '\0asm\1\0\0\0' > "$directory/app.wasm" && refuses 'a core WebAssembly module, not a component' || return
  head -c 100000 $wasm > "$directory/app.wasm" && refuses 'not a valid component' || return
  printf '\0asm\15\0\1\0' > "$directory/app.wasm" && refuses 'exports neither wasi:http/incoming-handler@0.2 nor' || return
  # An import of another package, of a name as long.
  sed 's,wasi:random/insecure-seed@,wasi:dancer/insecure-seed@,g' $wasm > "$directory/app.wasm" &&
    refuses 'imports what this server does not have: wasi:dancer/insecure-seed@' || return
  cp "$STATE/component.cwasm" "$directory/app.wasm" && refuses 'machine code already, not a .wasm'
}

# Of the runtime, including crates for its build, and of the component.
files_list_their_dependencies() {
  extract wasi-essentials:ci "$STATE/ci" && ./bake component || return
  .ci/sbom "$STATE/ci/wasi-essentials" > "$STATE/sbom.cdx.json" || return
  .ci/sbom target/component/component.wasm > "$STATE/sbom-component.cdx.json" || return
  .ci/sbom-crates "$STATE/sbom.cdx.json" server hyper wasmtime &&
    .ci/sbom-crates "$STATE/sbom-component.cdx.json" wasi-essentials anyhow wstd
}

# A layer each. A created, never started container also shows the engine's own mount points; a saved image
# does not.
image_holds_two_files() {
  local directory files
  directory=$(mktemp -d)
  docker save wasi-essentials:ci | tar -x -C "$directory"
  files=$(find "$directory" -type f | while read -r file; do
    tar -tvf "$file" 2> /dev/null | sed "s,\$, in layer ${file#"$directory"/},"
  done)
  echo "$files"
  [ "$(wc -l <<< "$files")" = 2 ] && [ "$(awk '{ print $NF }' <<< "$files" | sort -u | wc -l)" = 2 ] &&
    grep -E '^-rwxr-xr-x .* wasi-essentials in layer' <<< "$files" &&
    grep -E '^-rw-r--r-- .* component.cwasm in layer' <<< "$files"
}

image_has_labels() {
  local label
  docker image inspect --format '{{json .Config}}' wasi-essentials:ci | tee "$STATE/config.json"
  for label in title description source version licenses; do
    grep -E "\"org.opencontainers.image.$label\":\"[^\"]+\"" "$STATE/config.json" > /dev/null ||
      fail "no label $label" || return
  done
  grep "\"org.opencontainers.image.revision\":\"$(git rev-parse HEAD)\"" "$STATE/config.json" > /dev/null ||
    fail "no revision" || return
  grep '"User":"65532:65532"' "$STATE/config.json" > /dev/null || fail "it runs as root"
}

context_is_small() {
  local bytes
  bytes=$(find Cargo.toml Cargo.lock build.rs bench/profiles src server -type f -printf '%s\n' | paste -sd +)
  bytes=$((bytes))
  grep 'transferring context: [0-9]' "$STATE/build.log" || fail "the build's log does not say what it reads" || return
  echo "$bytes bytes"
  [ "$bytes" -lt 4500000 ] && ! grep -E 'transferring context: .*GB|transferring context: ([5-9]|[0-9]{2,})[.0-9]*MB' "$STATE/build.log"
}
