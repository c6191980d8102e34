# Two images from one file:
#
#   docker build -t wasi-essentials .                            the production image: one static file
#   docker build -t wasi-essentials:single --target builder .    the single-stage image: toolchain and all
#
# `./bake` builds both with their tags, for all architectures. The compilers always run on the building
# machine's own.

ARG RUST_IMAGE=rust:1.99.1-slim-bookworm

FROM --platform=$BUILDPLATFORM ${RUST_IMAGE} AS toolchain
WORKDIR /build
COPY server/release server/
RUN server/release
# What Cargo knows dependencies by. They take minutes and change seldom: each stage below compiles them
# with empty sources first. The sources are touched then, as Cargo goes by the time of a file.
COPY Cargo.toml Cargo.lock ./
COPY server/Cargo.toml server/
RUN mkdir -p src server/src/bin \
    && touch src/lib.rs server/src/lib.rs \
    && echo 'fn main() {}' | tee server/build.rs server/src/main.rs server/src/bin/fixtures.rs server/src/bin/wasi-essentials-spin.rs


# The component: one file for all architectures.
FROM toolchain AS component
# The same as server/build.rs does, for the same bits.
ENV RUSTFLAGS="--remap-path-prefix=/usr/local/cargo=/cargo"
RUN cargo build --release --locked --target wasm32-wasip2
COPY build.rs ./
COPY src src
RUN touch build.rs src/*.rs \
    && cargo build --release --locked --target wasm32-wasip2

FROM scratch AS wasm
COPY --from=component /build/target/wasm32-wasip2/release/wasi_essentials.wasm /


FROM toolchain AS dependencies
ARG BUILDARCH
ARG TARGETARCH
ENV ARCH=${TARGETARCH}
RUN test "$TARGETARCH" = "$BUILDARCH" \
    || { apt-get update && apt-get install -y --no-install-recommends gcc-aarch64-linux-gnu libc6-dev-arm64-cross; }
COPY bench/release.profdata bench/
RUN server/release --bin wasi-essentials


FROM dependencies AS builder
COPY server server
COPY --from=wasm / .
# The time of a file is part of an image's layer: the same binary is to give the same layer. This is the
# earliest that every kind of archive can have.
RUN find server -name '*.rs' -exec touch {} + \
    && COMPONENT=wasi_essentials.wasm server/release --bin wasi-essentials \
    && install target/*-musl/release/wasi-essentials /usr/local/bin/ \
    && touch --date 1980-01-01T00:00Z /usr/local/bin/wasi-essentials

USER 65532:65532
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --start-interval=1s CMD ["wasi-essentials", "healthcheck"]
ENTRYPOINT ["wasi-essentials"]


FROM scratch

ARG VERSION=unknown
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
