# syntax=docker/dockerfile:1
#
#   docker build --tag flatland .                             CPU
#   docker build --tag flatland:cuda --build-arg DEVICE=cuda .    CPU and CUDA (needs no GPU to build)
#   add --build-arg GIT_COMMIT=$(git rev-parse HEAD) for the manifests of its runs to name the commit
#
#   docker run --rm -v "$PWD/outputs:/flatland/outputs" --user "$(id -u):$(id -g)" flatland flatness --preset quick --dataset digits
#   docker run --rm --gpus all -v "$PWD/outputs:/flatland/outputs" -v "$PWD/data:/data" flatland:cuda flatness --device cuda
#
# Stop it with `docker stop --time 60` (or Ctrl-C): the run ends with exit code 75 after the epoch at hand, and --resume goes on.

# ---------------------------------------------------------------------------------------------------- build
FROM rust:1.95-bookworm AS builder
ARG DEVICE=cpu
RUN case "$DEVICE" in cpu | cuda) ;; *) echo "DEVICE must be cpu or cuda, found '$DEVICE'" >&2; exit 1 ;; esac
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-pip \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# libtorch first: it changes least and is the largest to fetch.
COPY scripts/setup scripts/setup
RUN scripts/setup "--$DEVICE"
COPY . .
RUN cargo build --release --locked --package flatland-lab --bins

# The image's own tree. A binary in bin/ looks for ../torch/lib (scripts/rpath.rs), libtorch for ../../nvidia/*/lib.
RUN <<'SCRIPT'
set -eu
root=/image/opt/flatland
mkdir -p "$root/bin" "$root/torch/lib" "$root/nvidia" /image/flatland/outputs /image/data
for source in crates/lab/src/bin/*.rs; do
  install -m 755 "target/release/$(basename "$source" .rs)" "$root/bin/"
done
# Shared libraries only: libtorch.so of a CPU set-up is a text for the linker.
for library in .libtorch/torch/lib/*.so*; do
  if [ "$(head -c 4 "$library" | tail -c 3)" = ELF ]; then cp "$library" "$root/torch/lib/"; fi
done
find .libtorch/nvidia -name '*.so*' -type f | while read -r library; do
  # Without CUDA, libtorch is linked to these two all the same.
  case $DEVICE-$library in cuda-* | *libcudart.so* | *libcupti.so*) ;; *) continue ;; esac
  target="$root/${library#.libtorch/}"
  mkdir -p "$(dirname "$target")"
  cp "$library" "$target"
done
cp LICENSE-MIT LICENSE-APACHE "$root/"
# Anyone may write here, so that `docker run --user` works with any user.
chmod 1777 /image/flatland /image/flatland/outputs /image/data
SCRIPT

# ---------------------------------------------------------------------------------------------------- run
FROM debian:bookworm-slim
# ca-certificates for downloads of data sets; libstdc++6 and libgcc-s1 for libtorch.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libgcc-s1 libstdc++6 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 flatland
COPY --from=builder /image/ /
# Nothing is missing; found out here, not by a user. (libcuda.so.1 is the driver's, and is opened only where --device asks.)
RUN for file in /opt/flatland/bin/* /opt/flatland/torch/lib/*; do \
        if ldd "$file" | grep -v 'libcuda\.so' | grep 'not found'; then echo "needed by $file" >&2; exit 1; fi; \
    done; \
    for binary in /opt/flatland/bin/*; do "$binary" --version || exit 1; done

ARG GIT_COMMIT=
ENV PATH=/opt/flatland/bin:$PATH \
    FLATLAND_DATA=/data \
    FLATLAND_GIT_COMMIT=$GIT_COMMIT \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER flatland
WORKDIR /flatland
VOLUME ["/flatland/outputs", "/data"]
# The experiment is the first word after the image's name.
CMD ["lab", "list"]
