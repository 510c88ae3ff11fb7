#!/usr/bin/env bash
# Installs what catflap is built and tested with, on Debian and its kin; quick when all is there.
# Elsewhere it names the packages and stops.
set -eu
build="gcc make pkg-config liburing-dev libvulkan-dev libvulkan-volk-dev glslc spirv-tools
       libzstd-dev libjansson-dev libpcre2-dev libxxhash-dev
       opencl-c-headers ocl-icd-opencl-dev"
test="mesa-vulkan-drivers vulkan-validationlayers pocl-opencl-icd clang libclang-rt-14-dev zstd util-linux jq"
packages="$build $test"

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    echo "catflap builds with these packages (Debian's names), please install them:" >&2
    echo $packages >&2
    exit 1
fi
missing=""
for p in $packages; do
    dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $p"
done
[ -n "$missing" ] || exit 0
echo "installing:$missing" >&2
sudo=""
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "not root and no sudo: please install$missing" >&2; exit 1; }
    sudo=sudo
fi
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -qq
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
