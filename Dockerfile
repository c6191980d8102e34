# Two images from one file:
#
#   docker build -t wasi-essentials .                            the production image: one static file
#   docker build -t wasi-essentials:single --target builder .    the single-stage image: toolchain and all

ARG RUST_IMAGE=rust:1.95.0-slim-bookworm

FROM ${RUST_IMAGE} AS builder

# Writes into the binary what it is made of, for vulnerability scanners: an image of one file has no
# other list. Before the settings below, which are for another target than this tool's.
RUN cargo install --locked cargo-auditable --version 0.7.7

WORKDIR /build
# One static binary, by way of musl, laid out as bench/profile has seen it run; the few lines of C in
# Wasmtime compile with the image's gcc.
RUN target="$(uname -m)-unknown-linux-musl" \
    && rustup target add wasm32-wasip2 "$target" \
    && mkdir -p .cargo \
    && printf '[build]\ntarget = "%s"\n[target.%s]\nrustflags = "-Cprofile-use=/build/server/release.profdata"\n[env]\nTARGET_CC = "gcc"\n' \
        "$target" "$target" > .cargo/config.toml

# The dependencies, before the sources: they take minutes and change seldom.
COPY Cargo.toml Cargo.lock ./
COPY server/Cargo.toml server/release.profdata server/
RUN mkdir -p src server/src/bin \
    && touch src/lib.rs server/src/lib.rs \
    && echo 'fn main() {}' | tee server/build.rs server/src/main.rs server/src/bin/fixtures.rs server/src/bin/wasi-essentials-spin.rs \
    && cargo auditable build --release --locked --package server

# The sources. `touch`, because Cargo goes by the time of a file: these are older than the above, and the
# profile, which is the same as above, may be newer.
COPY src src
COPY server server
RUN touch --date @0 server/release.profdata \
    && find src server -name '*.rs' -exec touch {} + \
    && cargo auditable build --release --locked --package server \
    && cp target/*-musl/release/wasi-essentials /usr/local/bin/

USER 65532:65532
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --start-interval=1s CMD ["wasi-essentials", "healthcheck"]
ENTRYPOINT ["wasi-essentials"]


FROM scratch

ARG VERSION=1.0.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="wasi-essentials" \
      org.opencontainers.image.description="A Hello/Health web service as a WebAssembly component, shipped as an ordinary container" \
      org.opencontainers.image.source="https://github.com/wasi-essentials/wasi-essentials" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="MIT"

COPY --from=builder /usr/local/bin/wasi-essentials /wasi-essentials

USER 65532:65532
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --start-interval=1s CMD ["/wasi-essentials", "healthcheck"]
ENTRYPOINT ["/wasi-essentials"]
