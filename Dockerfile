# Builds four images, and a file of symbols:
#
#   docker build -t wasi-essentials .                            the production image: runtime and component
#   docker build -t wasi-essentials:single --target builder .    the single-stage image, with its toolchain
#   docker build --target runtime .                              the runtime alone
#   docker build --target compile .                              the program that compiles components
#   docker build --target symbols --output DIRECTORY .           the runtime's symbols, for profilers and debuggers
#
# With `--build-context component=DIRECTORY` the component is DIRECTORY/component.wasm instead of the one here.
# `./bake` builds the images with their tags, for all architectures. Compilers always run on the building machine's architecture.

# A release names the digest, too: that of a tag changes.
ARG RUST_IMAGE=rust:1.99.1-slim-bookworm
# The C compiler for arm64 makes a part of the binaries: a few lines of Wasmtime, and the allocator.
ARG ARM64_COMPILER="gcc-aarch64-linux-gnu=4:12.2.0-3 gcc-12-aarch64-linux-gnu=12.2.0-14cross1 \
  binutils-aarch64-linux-gnu=2.40-2 libc6-dev-arm64-cross=2.36-8cross1"

# checkov:skip=CKV_DOCKER_7:The version is in RUST_IMAGE, which checkov does not look up.
FROM --platform=$BUILDPLATFORM ${RUST_IMAGE} AS toolchain
WORKDIR /build
COPY server/linker server/release server/
RUN server/release

# The manifests, with empty sources. Dependencies take minutes and rarely change, so the stages below compile them in layers
# of their own. They touch the sources afterwards, because Cargo compares the times of files.
FROM toolchain AS manifests
COPY Cargo.toml Cargo.lock ./
COPY server/Cargo.toml server/
RUN mkdir -p src server/src \
    && touch src/lib.rs server/src/lib.rs \
    && echo 'fn main() {}' > server/src/main.rs


# The component: one file for all architectures, with a list of its dependencies.
FROM toolchain AS component-toolchain
ENV PROGRAM=component
RUN server/release

FROM component-toolchain AS component-build
COPY --from=manifests /build ./
RUN server/release --lib
COPY build.rs ./
COPY src src
RUN touch build.rs src/*.rs \
    && server/release --lib

FROM scratch AS component
COPY --from=component-build /build/target/wasm32-wasip2/image/wasi_essentials.wasm /component.wasm


# The server's manifests without the component's: another dependency or version of the component compiles no server.
FROM manifests AS server-manifests
RUN awk '/^\[/ { keep = /^\[(workspace|profile)/ } keep && !/^version = /' Cargo.toml > server.toml \
    && mv server.toml Cargo.toml \
    && cargo update --workspace

FROM toolchain AS server-toolchain
COPY --from=server-manifests /build/Cargo.toml /build/Cargo.lock ./
COPY --from=server-manifests /build/server server


# The program that only compiles, for the building machine.
FROM server-toolchain AS compiler-dependencies
ENV PROGRAM=compiler
RUN server/release --bin wasi-essentials

FROM compiler-dependencies AS compiler
COPY server server
RUN find server -name '*.rs' -exec touch {} + \
    && server/release --bin wasi-essentials \
    && install target/*-musl/release/wasi-essentials /usr/local/bin/

# The time of a file is part of a layer, and the same file has to give the same layer. This is the earliest time that every
# archive format can store.
FROM compiler AS component-compile
ARG TARGETARCH
COPY --from=component /component.wasm /
RUN wasi-essentials compile /component.wasm \
    && touch --date 1980-01-01T00:00Z /component.cwasm

# The same program for the target. Macros and build scripts run on the building machine, and are compiled already.
FROM compiler-dependencies AS target-compiler
ARG ARM64_COMPILER
ARG BUILDARCH
ARG TARGETARCH
ENV ARCH=${TARGETARCH}
RUN test "$TARGETARCH" = "$BUILDARCH" \
    || { rm -r target/*-musl \
        && apt-get update \
        && apt-get install -y --no-install-recommends $ARM64_COMPILER \
        && server/release --bin wasi-essentials; }
COPY server server
COPY --from=compiler /usr/local/bin/wasi-essentials /usr/local/bin/
RUN test "$TARGETARCH" = "$BUILDARCH" \
    || { find server -name '*.rs' -exec touch {} + \
        && server/release --bin wasi-essentials \
        && install target/*-musl/release/wasi-essentials /usr/local/bin/; }
RUN touch --date 1980-01-01T00:00Z /usr/local/bin/wasi-essentials

FROM scratch AS compile
ARG VERSION=unknown
ARG REVISION=unknown
ARG RUST_IMAGE
LABEL org.opencontainers.image.title="wasi-essentials-compile" \
      org.opencontainers.image.description="Compiles WASI HTTP components for the runtime of wasi-essentials" \
      org.opencontainers.image.source="https://github.com/wasi-essentials/wasi-essentials" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="MIT" \
      io.github.wasi-essentials.rust-image="${RUST_IMAGE}"
COPY --from=target-compiler /usr/local/bin/wasi-essentials /wasi-essentials
ENTRYPOINT ["/wasi-essentials"]


# The runtime, without the compiler: the same file for every component.
FROM server-toolchain AS runtime-dependencies
COPY bench/profiles bench/profiles/
RUN server/release --bin wasi-essentials

FROM runtime-dependencies AS runtime-build
ARG ARM64_COMPILER
ARG BUILDARCH
ARG TARGETARCH
ENV ARCH=${TARGETARCH}
RUN test "$TARGETARCH" = "$BUILDARCH" \
    || { rm -r target/*-musl \
        && apt-get update \
        && apt-get install -y --no-install-recommends $ARM64_COMPILER \
        && server/release --bin wasi-essentials; }
COPY server server
RUN find server -name '*.rs' -exec touch {} + \
    && rm target/*-musl/image/deps/*.symbols \
    && server/release --bin wasi-essentials \
    && install target/*-musl/image/wasi-essentials /usr/local/bin/ \
    && touch --date 1980-01-01T00:00Z /usr/local/bin/wasi-essentials


# The same program with its symbols.
FROM scratch AS symbols
COPY --from=runtime-build /build/target/*-musl/image/deps/wasi_essentials-*.symbols /wasi-essentials.symbols


FROM runtime-build AS builder
COPY --from=component-compile /component.cwasm /

USER 65532:65532
EXPOSE 5000
# The health check queries this address.
ENV MANAGEMENT_LISTEN=127.0.0.1:5001
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --start-interval=1s CMD ["wasi-essentials", "healthcheck"]
ENTRYPOINT ["wasi-essentials"]


FROM scratch AS runtime
ARG VERSION=unknown
ARG REVISION=unknown
ARG RUST_IMAGE
LABEL org.opencontainers.image.title="wasi-essentials-runtime" \
      org.opencontainers.image.description="A runtime for WASI HTTP components, to be shipped with one" \
      org.opencontainers.image.source="https://github.com/wasi-essentials/wasi-essentials" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="MIT" \
      io.github.wasi-essentials.rust-image="${RUST_IMAGE}"
COPY --from=runtime-build /usr/local/bin/wasi-essentials /wasi-essentials
USER 65532:65532
EXPOSE 5000
# The health check queries this address.
ENV MANAGEMENT_LISTEN=127.0.0.1:5001
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --start-interval=1s CMD ["/wasi-essentials", "healthcheck"]
ENTRYPOINT ["/wasi-essentials"]


# The component has a layer of its own, so that an update transfers nothing else.
FROM runtime
LABEL org.opencontainers.image.title="wasi-essentials" \
      org.opencontainers.image.description="A Hello/Health web service as a WebAssembly component, shipped as an ordinary container"
COPY --from=component-compile /component.cwasm /component.cwasm
