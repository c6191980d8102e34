# shellcheck shell=bash
# Checks of what a release publishes, by a registry of this machine: `./bake`, tags, layers and sizes.

# A registry on 127.0.0.1:5055 that asks user `you` for the password $TOKEN. It gets one request at a
# time: on disk it truncates a tag before it writes it, and an engine that looks meanwhile, as Docker's
# does, gets a 500 and fails (3 of 85 pushes, and none of 120 this way).
start_registry() {
  local disk=127.0.0.1:5056
  export REGISTRY=127.0.0.1:5055 TOKEN=$RANDOM$RANDOM
  export WKG_OCI_INSECURE=$REGISTRY # It speaks plain HTTP.
  mkdir -p "$STATE/registry"
  cat > "$STATE/registry/config.yml" << CONFIG
version: 0.1
storage: {filesystem: {rootdirectory: $STATE/registry/data}}
http: {addr: "$disk"}
CONFIG
  cat > "$STATE/registry/haproxy.cfg" << CONFIG
userlist people
  user you insecure-password $TOKEN
defaults
  mode http
  timeout connect 5s
  timeout queue 10m
  timeout client 10m
  timeout server 10m
listen registry
  bind $REGISTRY
  http-request auth unless { http_auth(people) }
  option http-server-close
  server disk $disk maxconn 1
CONFIG
  docker-registry serve "$STATE/registry/config.yml" > "$STATE/registry.log" 2>&1 &
  echo $! > "$STATE/registry.pid"
  haproxy -db -f "$STATE/registry/haproxy.cfg" > "$STATE/haproxy.log" 2>&1 &
  echo $! > "$STATE/haproxy.pid"
  await curl -sf -u "you:$TOKEN" "http://$REGISTRY/v2/"
}

# Succeeds if the registry has every tag for every architecture, and the log of the pages shows a pull of what was removed.
published() {
  local api=http://$REGISTRY/v2/you/wasi-essentials version tags tag architecture index
  version=$(version)
  tags=$(curl -sf -u "you:$TOKEN" "$api/tags/list") || return
  for tag in "$version" "${version%.*}" latest production "$version-runtime" "$version-compile" single by-hand; do
    grep -q "\"$tag\"" <<< "$tags" || fail "the registry lacks $tag: $tags" || return
  done
  index=$(curl -sf -u "you:$TOKEN" -H 'Accept: application/vnd.oci.image.index.v1+json' "$api/manifests/production")
  for architecture in amd64 arm64; do
    grep "\"architecture\": *\"$architecture\"" <<< "$index" || fail "not for $architecture: $index" || return
  done
  curl -s -o /dev/null -w '%{http_code}' "http://$REGISTRY/v2/" | grep -x 401 ||
    fail "the registry asks for no login" || return
  grep "Status: Downloaded newer image for $REGISTRY/you/wasi-essentials:production" "$1"
}

bake_rejects_invalid_input() {
  local copy name host version output
  for name in You/service you//service -you you/service:1; do
    is_error 2 "REPOSITORY=$name: not a repository, .*" env REPOSITORY="$name" ./bake || return
  done
  for host in -docker.io docker.io/you 'docker io'; do
    is_error 2 "REGISTRY=$host: not a host, .*" env REGISTRY="$host" ./bake || return
  done
  copy=$(mktemp -d)
  cp bake docker-bake.hcl "$copy"
  for version in 1.0 v1.0.0 1.0.0.0 01.0.0 1.0.0+build ''; do
    echo "version = \"$version\"" > "$copy/Cargo.toml"
    is_error 2 "version = \"$version\" in Cargo.toml: not .*" "$copy/bake" || return
  done
  is_error 2 "not logged in to $REGISTRY: run \`docker login $REGISTRY\`" \
    env DOCKER_CONFIG="$copy" ./bake --push || return
  # Without ./bake there is no version, and with that no tag.
  output=$(docker buildx bake 2>&1) && { fail "it builds without a version"; return; }
  grep 'invalid tag .*run ./bake, which takes it from Cargo.toml' <<< "$output"
}

a_prerelease_moves_no_tag() {
  local copy
  copy=$(mktemp -d)
  cp bake docker-bake.hcl "$copy"
  echo 'version = "1.1.0-rc.1"' > "$copy/Cargo.toml"
  "$copy/bake" --print | tee "$copy/plan" || return
  [ "$(grep -o 'wasi-essentials:[^"]*' "$copy/plan" | sort | xargs)" = \
    'wasi-essentials:1.1.0-rc.1 wasi-essentials:1.1.0-rc.1-compile wasi-essentials:1.1.0-rc.1-runtime wasi-essentials:1.1.0-rc.1-single' ]
}

# Prepares `./bake --push` of images of one file each, in a repository of their own. Sets $copy, the directory, and logs in to
# $REGISTRY. For a subshell, which removes the engine's copies at its end.
prepare_small_images() {
  copy=$(mktemp -d)
  trap 'docker images --quiet --filter "reference=$REGISTRY/$REPOSITORY" | sort -u | xargs -r docker rmi --force' EXIT
  export REPOSITORY=you/small-${copy##*.} DOCKER_CONFIG=$copy/docker
  REPOSITORY=${REPOSITORY,,}
  cp bake docker-bake.hcl "$copy"
  cat > "$copy/Dockerfile" << 'DOCKERFILE'
ARG RUST_IMAGE=none
FROM scratch AS builder
COPY Cargo.toml /single
FROM scratch AS compile
ARG RUST_IMAGE
LABEL io.github.wasi-essentials.rust-image="${RUST_IMAGE}"
COPY Cargo.toml /compile
FROM scratch AS runtime
ARG VERSION
ARG RUST_IMAGE
LABEL org.opencontainers.image.version="${VERSION}" io.github.wasi-essentials.rust-image="${RUST_IMAGE}"
COPY Cargo.toml /runtime
FROM runtime
COPY Cargo.toml /component
DOCKERFILE
  echo "$TOKEN" | docker login --username you --password-stdin "$REGISTRY"
}

# Publishes small images of this version; further arguments are those of ./bake.
publish_small() {
  echo "version = \"$1\"" > "$copy/Cargo.toml"
  shift
  "$copy/bake" --push "$@"
}

# The tag of $REPOSITORY has the image of this version.
tag_is_at() {
  docker buildx imagetools inspect --format '{{json .Image}}' "$REGISTRY/$REPOSITORY:$1" |
    grep -q "\"org.opencontainers.image.version\": *\"$2\"" || fail "$1 is not at $2"
}

# In a subshell, for its own environment.
tags_move_forward_only() (
  prepare_small_images || exit
  export PLATFORMS=linux/amd64
  image=$REGISTRY/$REPOSITORY
  stays="stays where it is: 1.1.0 is published, which is higher than"
  all_at() {
    local tag version=$1
    shift
    for tag; do tag_is_at "$tag" "$version" || return; done
  }
  # Nothing is there, not even the repository.
  publish_small 1.0.0 && all_at 1.0.0 1.0.0 1.0 latest production || exit
  publish_small 1.1.0 && all_at 1.1.0 1.1.0 1.1 latest production && all_at 1.0.0 1.0.0 1.0 || exit
  # A fix of an older release.
  publish_small 1.0.10 > "$copy/log" 2>&1 || fail "$(cat "$copy/log")" || exit
  for tag in latest production; do
    grep -x "$image:$tag $stays 1.0.10" "$copy/log" || fail "it does not say that $tag stays" || exit
  done
  all_at 1.0.10 1.0.10 1.0 && all_at 1.1.0 1.1.0 1.1 latest production || exit
  # Older than that fix: numbers are compared, not letters.
  publish_small 1.0.9 > "$copy/log" 2>&1 || fail "$(cat "$copy/log")" || exit
  grep -x "$image:1.0 stays where it is: 1.0.10 is published, which is higher than 1.0.9" "$copy/log" || exit
  all_at 1.0.9 1.0.9 && all_at 1.0.10 1.0 && all_at 1.1.0 latest production || exit
  # Moved back manually: an older release does not move `production`, a newer one does.
  docker buildx imagetools create --tag "$image:production" "$image:1.0.0" || exit
  publish_small 1.0.11 2>&1 | grep -x "$image:production $stays 1.0.11" || exit
  publish_small 2.0.0-rc.1 && all_at 1.1.0 latest && all_at 1.0.0 production || exit
  publish_small 2.0.0 && all_at 2.0.0 2.0.0 2.0 latest production || exit
  # Tags of a version stay.
  curl -sf -u "you:$TOKEN" "http://$REGISTRY/v2/$REPOSITORY/tags/list" | tr -d ' \n' | tee "$copy/tags"
  for tag in 1.0.10-single 1.0.10-runtime 2.0.0-rc.1-compile single; do
    grep -q "\"$tag\"" "$copy/tags" || fail "no tag $tag" || exit
  done
)

published_version_stays() (
  prepare_small_images && publish_small 1.0.0 runtime || exit
  image=$REGISTRY/$REPOSITORY
  refuses() {
    local error=$1
    shift
    is_error 2 "$error" publish_small "$@"
  }
  # Each target by itself, and any of several.
  refuses "$image:1.0.0-runtime is published already: raise the version in Cargo.toml" 1.0.0 runtime || exit
  refuses "$image:1.0.0-runtime is published already: .*" 1.0.0 || exit
  publish_small 1.0.0 image compile single || exit
  digest=$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$image:1.0.0") || exit
  refuses "$image:1.0.0 is published already: .*" 1.0.0 || exit
  refuses "$image:1.0.0 is published already: .*" 1.0.0 image --print || exit
  # However a push is asked for.
  error="$image:1.0.0 is published already: .*"
  is_error 2 "$error" "$copy/bake" --push=true image && OUTPUT=type=image,push=true is_error 2 "$error" "$copy/bake" image &&
    is_error 2 "$error" "$copy/bake" image --set '*.output=type=registry' || exit
  docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$image:1.0.0" | grep -x "$digest" || exit
  # Some other image.
  publish_small 1.1.0 image --set image.args.VERSION=new || exit
  refuses "cannot tell which version $image:latest is, for lack of a label: .*" 1.2.0 || exit
)

rebuild_detects_changed_layers() (
  prepare_small_images && publish_small 1.0.0 image runtime compile || exit
  image=$REGISTRY/$REPOSITORY
  gives_the_published_layers "$copy" "$image" 1.0.0 || exit
  # Another component, and nothing else.
  sed -i 's,/component,/other,' "$copy/Dockerfile"
  gives_the_published_layers "$copy" "$image" 1.0.0 > "$copy/log" 2>&1 && { fail "other layers pass"; exit; }
  for platform in linux/amd64 linux/arm64; do
    grep -x "error: $image:1.0.0 for $platform has other layers than a build with none" "$copy/log" || exit
  done
  [ "$(grep -c '^error: ' "$copy/log")" = 2 ] || fail "$(cat "$copy/log")"
)

# An error of the registry counts neither as published nor as absent.
bake_fails_on_registry_errors() (
  prepare_small_images && port=$(free_port) || exit
  local -x REGISTRY=127.0.0.1:$port
  .ci/registry-stub "$port" "$TOKEN" &
  server=$!
  trap 'kill "$server"' EXIT
  login() { docker login --username you --password-stdin "$REGISTRY" <<< "$TOKEN"; }
  await login || exit
  REPOSITORY=you/absent publish_small 1.0.0 --print | grep -F "\"$REGISTRY/you/absent:latest\"" || exit
  error="you/published:1.0.0 is published already: raise the version in Cargo.toml"
  REPOSITORY=you/published is_error 2 "$REGISTRY/$error" publish_small 1.0.0 --print || exit
  for name in denied limited broken; do
    REPOSITORY=you/$name is_error 2 "cannot tell whether $REGISTRY/you/$name:1.0 is published: ERROR: .*" \
      publish_small 1.0.0 --print || exit
  done
  # An old password; a registry that is down.
  error="cannot tell whether $REGISTRY/you/absent:1.1.0-rc.1 is published: ERROR: .*"
  sed -i "s/\"auth\": \".*\"/\"auth\": \"$(printf you:old | base64)\"/" "$DOCKER_CONFIG/config.json"
  REPOSITORY=you/absent is_error 2 "$error" publish_small 1.1.0-rc.1 --print || exit
  kill "$server" && trap - EXIT
  wait "$server"
  REPOSITORY=you/absent is_error 2 "$error" publish_small 1.1.0-rc.1 --print
)

# Of this version, as the README has published it.
published_layers_are_those_of_the_sources() {
  gives_the_published_layers . "$REGISTRY/you/wasi-essentials" "$(version)"
}

# The images that are published under a version have the layers that a clone at this version gives, for each
# architecture, by the image of the toolchain that they name.
gives_the_published_layers() {
  local clone=$1 name=$2:$3 tag target platform image rust status=0
  for platform in linux/amd64 linux/arm64; do
    image="(index .Image \"$platform\")"
    for target in '' runtime compile; do
      tag=$name${target:+-$target}
      docker buildx imagetools inspect "$tag" --format "{{range $image.RootFS.DiffIDs}}{{println .}}{{end}}" > "$STATE/published" || return
      rust=$(docker buildx imagetools inspect "$tag" --format "{{index $image.Config.Labels \"io.github.wasi-essentials.rust-image\"}}") || return
      docker build --platform "$platform" --build-arg RUST_IMAGE="$rust" --target "$target" -t wasi-essentials:rebuilt "$clone" || return
      layers wasi-essentials:rebuilt > "$STATE/rebuilt" && grep sha256 "$STATE/published" || return
      diff "$STATE/published" "$STATE/rebuilt" || fail "$tag for $platform has other layers than a build with $rust" || status=1
    done
  done
  return $status
}

# Compressed as `./bake --push` has pushed it, in the course of the README.
image_is_small() {
  extract wasi-essentials:ci "$STATE/ci" || return
  stat --format '%n: %s bytes' "$STATE"/ci/*
  [ "$(stat --format %s "$STATE/ci/wasi-essentials")" -le 7400000 ] &&
    [ "$(cat "$STATE"/ci/* | wc -c)" -lt 8300000 ] &&
    .ci/layer-sizes "$REGISTRY" you/wasi-essentials "$(version)"
}
