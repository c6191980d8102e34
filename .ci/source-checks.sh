# shellcheck shell=bash
# Checks of the sources: format, lints, dependencies, tests and fuzzing.

rustfmt() {
  cargo fmt --check
}

# With the lints of clippy, as .ci/run has them for all builds.
build_workspace() {
  cargo build --workspace --all-targets
}

build_components() {
  local wasm=(cargo build --release --target wasm32-wasip2)
  # One at a time, as the tests build them.
  "${wasm[@]}" --lib && "${wasm[@]}" --examples || return
  wasm+=(--target-dir target/spin --no-default-features --features spin)
  "${wasm[@]}" --lib && "${wasm[@]}" --example service && "${wasm[@]}" --example greet
}

entry_points_exclude_each_other() {
  local output
  for features in "wasi spin" ""; do
    # With the profile of `build_components`, which has compiled most dependencies.
    output=$(cargo build --release --target wasm32-wasip2 --no-default-features --features "$features" 2>&1) &&
      { fail "features '$features' compile"; return; }
    # This line and no others: what follows from the mistake would hide it.
    [ "$(grep -c '^error' <<< "$output")" = 2 ] &&
      grep -E '^error: (both `wasi` .* are enabled|no entry point): .*spin' <<< "$output" || fail "$output" || return
  done
}

dependencies_are_allowed() {
  cargo deny --locked --workspace check licenses bans sources
}

# The crates of the server's program with one of its features.
crates_with() {
  cargo tree --locked --package server --no-default-features --features "$1" --edges normal --target all --prefix none
}

# The runtime in the image: the feature `compile` is off there.
runtime_has_no_compiler() {
  local tree
  tree=$(crates_with serve) || return
  grep '^wasmtime v' <<< "$tree" || fail "the tree lacks Wasmtime: $tree" || return
  ! grep -E '^(cranelift-codegen|wasmtime-internal-(cranelift|winch)) v' <<< "$tree"
}

# The image that compiles: the feature `serve` is off there.
compiler_has_no_server() {
  local tree
  tree=$(crates_with compile) || return
  grep '^cranelift-codegen v' <<< "$tree" || fail "the tree lacks Cranelift: $tree" || return
  ! grep -E '^(hyper|tokio|rustls|wasmtime-wasi(-http)?) v' <<< "$tree"
}

# The database is a repository on GitHub, which not every machine reaches.
advisories() {
  timeout 60 cargo deny fetch db || not_run "the RustSec database cannot be fetched" || return
  cargo deny --offline --workspace check advisories
}

# Prints the tests of the workspace, as `file::name`.
list_tests() {
  cargo test --locked --workspace -- --list 2>&1 |
    awk '/^ *Running / { n = split($2 == "unittests" ? $3 : $2, path, /[\/.]/); file = path[n - 1] }
      sub(/: test$/, "") { print file "::" $0 }'
}

# Each test that the README and the pages name exists.
documents_name_tests() {
  local names unknown
  names=$(grep -ohE '`[a-z]+::[a-z_0-9]+`' README.md docs/*.md | tr -d '`' | sort -u)
  [ -n "$names" ] || fail "the pages name no tests" || return
  echo "$names"
  unknown=$(comm -23 <(echo "$names") <(list_tests | sort -u))
  [ -z "$unknown" ] || fail "no such tests: $unknown"
}

spin_manifest() {
  local command source
  command=$(sed -n 's/^command = "\(.*\)"$/\1/p' spin.toml)
  source=$(sed -n 's/^source = "\(.*\)"$/\1/p' spin.toml)
  rm -f "$source"
  $command && test -s "$source" || fail "the build command leaves no $source" || return
  grep -q 'wasi:http/handler@0.3' "$source" || fail "$source does not export WASI 0.3's handler" || return
  # Spin takes only what its manifest schema knows; this is what would grant more.
  grep -x 'allowed_outbound_hosts = \[\]' spin.toml
}

examples() {
  EXAMPLES_HOST=wasmtime cargo test --package server --test examples
}

build_fuzzer() {
  cargo_fuzz build
}

# With clippy for all crates, as the server is a dependency here. No other build with clippy has the server without the compiler.
cargo_fuzz() {
  env -u RUSTC_WORKSPACE_WRAPPER RUSTC_WRAPPER=clippy-driver cargo fuzz "$1" --sanitizer none connection "${@:2}"
}

# Fuzzes from the corpus, for $1 seconds. What it finds stays out of the repository.
fuzz() {
  local directory
  directory=$(mktemp -d) && tar -xzf fuzz/corpus.tar.gz -C "$directory" &&
    compile_component target/wasm32-wasip2/release/wasi_essentials.wasm "$directory.cwasm" || return
  COMPONENT=$directory.cwasm cargo_fuzz run "$directory" -- \
    -max_total_time="$1" -timeout=10 -print_final_stats=1
}

# Only with kind, which no package registry has. GitHub's runners have it.
rolls_out_in_a_cluster() {
  command -v kind > /dev/null || { not_run "kind is in no package"; return; }
  .ci/cluster
}

# Applies the edits of the page on operations, one after the other, and renders what comes of each.
operations_page_edits_what_kustomize_reads() (
  copy=$(mktemp -d) && cp -r deploy "$copy" || exit
  IMAGE=docker.io/me/mine digest=sha256:$(printf '1%.0s' {1..64})
  edits=$(grep '^sed -i' docs/operations.md) && [ "$(wc -l <<< "$edits")" = 3 ] || exit
  cd "$copy" || exit
  while read -r edit; do
    echo "$edit"
    eval "$edit" && kustomize build deploy > rendered.yaml || exit
    grep -F "image: $IMAGE" rendered.yaml | grep -F "@$digest" || exit
  done <<< "$edits"
  grep -F "kind: PodMonitor" rendered.yaml
)

# With the metrics that `metrics_are_read` has written.
dashboard_uses_metrics_that_exist() {
  .ci/monitoring "$STATE/metrics"
}
