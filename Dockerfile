# The image is the binary and nothing else: no shell, no libraries, and no CA
# certificates, since the watchdog dials nobody outside its pod. `make dist`
# builds the binaries, so the image needs no base image and no network:
#
#	make image
#
# It runs with a read-only root filesystem and any user.
FROM scratch

# Builders set it to the platform that the image is for.
ARG TARGETARCH=amd64
ARG VERSION=devel

LABEL org.opencontainers.image.title="svid-watchdog" \
      org.opencontainers.image.description="Tells whether certificate rotation in a mesh pod really works" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"

COPY --chmod=0555 dist/linux-${TARGETARCH}/watchdog /watchdog

USER 65532:65532
EXPOSE 9816
ENTRYPOINT ["/watchdog"]
CMD ["run"]
