#!/bin/sh
# Makes sure that something on this machine can link aarch64 code: Debian's cross compiler where root may install it,
# else zig from PyPI. Called by make with the Python of the virtual environment.
set -eu
python=$1
for linker in aarch64-linux-gnu-gcc ld.lld zig; do
    if command -v "$linker" >/dev/null; then exit 0; fi
done
if [ "$(uname -m)" = aarch64 ] && command -v cc >/dev/null; then exit 0; fi
if "$python" -c 'import ziglang' 2>/dev/null; then exit 0; fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing gcc-aarch64-linux-gnu"
    if apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq gcc-aarch64-linux-gnu >/dev/null; then
        exit 0
    fi
fi
echo "installing ziglang from PyPI"
"$python" -m pip install --quiet --disable-pip-version-check ziglang
