#!/bin/sh
# Makes sure, where root may install it, that there is a C++ compiler for examples/cpp. Called by make; nothing else
# needs one, so a machine without is no failure: the test of the example says that it did not run.
set -eu
for compiler in g++ c++ clang++; do
    if command -v "$compiler" >/dev/null; then exit 0; fi
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing g++"
    if apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq g++ >/dev/null; then exit 0; fi
fi
echo "no C++ compiler: the test of examples/cpp will not run"
