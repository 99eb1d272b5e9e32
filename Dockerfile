# kitfs in a container. Two images:
#
#   docker build --target scratch -t kitfs:scratch .     the static program alone (default)
#   docker build --target debian -t kitfs:debian .     with a shell, fusermount3 and fuse-overlayfs
#
# docs/guide/containers.md says which rights a container needs. scripts/test-container.sh tries the parts without Docker.

FROM rust:1.95-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends musl-tools && rm -rf /var/lib/apt/lists/*
WORKDIR /kitfs
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/kitfs/target \
    scripts/build-static.sh /out/kitfs
# The folders that an image from scratch lacks.
RUN mkdir -p /out/root/cache /out/root/models /out/root/tmp /out/root/etc/ssl/certs /out/root/usr/bin \
    && chmod 1777 /out/root/tmp \
    && cp /etc/ssl/certs/ca-certificates.crt /out/root/etc/ssl/certs/ \
    && mv /out/kitfs /out/root/usr/bin/kitfs

FROM debian:bookworm-slim AS debian
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates fuse3 fuse-overlayfs \
    && rm -rf /var/lib/apt/lists/* && mkdir /cache /models
COPY --from=build /out/root/usr/bin/kitfs /usr/bin/kitfs
ENV KITFS_CACHE_DIR=/cache
VOLUME /cache
HEALTHCHECK --interval=30s --timeout=25s --start-period=60s CMD ["kitfs", "daemon", "status"]
ENTRYPOINT ["kitfs"]
CMD ["daemon", "start", "--foreground"]

FROM scratch AS scratch
COPY --from=build /out/root /
# Without /etc/passwd there is no home, so the cache has a place of its own.
ENV PATH=/usr/bin KITFS_CACHE_DIR=/cache
VOLUME /cache
HEALTHCHECK --interval=30s --timeout=25s --start-period=60s CMD ["kitfs", "daemon", "status"]
ENTRYPOINT ["kitfs"]
CMD ["daemon", "start", "--foreground"]
