# What is published, and under which tags. `./bake` runs this with the version of Cargo.toml.

# No tag, so that nothing is built or published under a version that is not Cargo.toml's.
variable "VERSION" {
  default = "(unknown, run ./bake, which takes it from Cargo.toml)"
}

variable "REVISION" {
  default = "unknown"
}

variable "REGISTRY" {
  default = "docker.io"
}

variable "REPOSITORY" {
  default = "you/wasi-essentials"
}

# More than one needs an engine with the containerd image store, or a builder of its own.
variable "PLATFORMS" {
  default = "linux/amd64,linux/arm64"
}

# What to make, as `--output` of `docker buildx build` has it.
variable "OUTPUT" {
  default = "type=image"
}

# Separated by colons. ./bake leaves out those that are to stay where they are.
variable "TAGS" {
  default = VERSION
}

# A digest, for the same bits: rust:1.99.1-slim-bookworm@sha256:…
variable "RUST_IMAGE" {
  default = ""
}

group "default" {
  targets = ["image", "runtime", "compile", "single"]
}

target "toolchain" {
  args = { RUST_IMAGE = RUST_IMAGE != "" ? RUST_IMAGE : null }
}

target "released" {
  inherits  = ["toolchain"]
  args      = { VERSION = VERSION, REVISION = REVISION }
  platforms = split(",", PLATFORMS)
  # A tenth less to pull than with gzip; Docker from 23.0 and containerd from 1.5 know it.
  output    = ["${OUTPUT},compression=zstd,compression-level=19,force-compression=true"]
}

target "image" {
  inherits = ["released"]
  tags     = [for tag in split(":", TAGS) : "${REGISTRY}/${REPOSITORY}:${tag}"]
}

# For images of other components: what they run on, and what compiles them.
target "runtime" {
  inherits = ["released"]
  target   = "runtime"
  tags     = ["${REGISTRY}/${REPOSITORY}:${VERSION}-runtime"]
}

target "compile" {
  inherits = ["released"]
  target   = "compile"
  tags     = ["${REGISTRY}/${REPOSITORY}:${VERSION}-compile"]
}

# With its toolchain, hence for the building machine's own platform. Over a gigabyte: zstd at its default level takes a
# seventh of gzip's time, and less space.
target "single" {
  inherits = ["toolchain"]
  target   = "builder"
  output   = ["${OUTPUT},compression=zstd"]
  tags     = ["${REGISTRY}/${REPOSITORY}:${contains(split(":", TAGS), "latest") ? "" : "${VERSION}-"}single"]
}

# The bare component: target/component/component.wasm.
target "component" {
  inherits = ["toolchain"]
  target   = "component"
  output   = ["type=local,dest=target/component"]
}
