#!/usr/bin/env bash
# Builds the templates of bit policies to WebAssembly, as their READMEs say: OUT/{rust,c,assemblyscript}.wasm.
#
#   sdk/templates/build.sh [OUT]    OUT is target/templates unless given
#
# Needs Rust with the target wasm32-unknown-unknown, clang 14 or later with its lld, and npm with Node.js 20 or later.
# Every template is built or the script fails: nothing is skipped. The projects are built in copies.
#
# CLANG    the compiler for C, such as `clang-19`, or `python3 -m ziglang cc` of PyPI's ziglang (default: clang)
# WASM_LD  the path of another wasm-ld, such as rustup's: $(rustc --print sysroot)/lib/rustlib/HOST/bin/gcc-ld/wasm-ld
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
root=$PWD
out=${1:-target/templates}
mkdir -p "$out"
out=$(cd "$out" && pwd)
read -ra clang <<<"${CLANG:-clang}"

missing=
for tool in cargo npm "${clang[0]}"; do
    command -v "$tool" >/dev/null || { echo "needed, but not found: $tool" >&2; missing=1; }
done
sysroot=$(rustc --print sysroot)
if ! compgen -G "$sysroot/lib/rustlib/wasm32-unknown-unknown/lib/libstd-*.rlib" >/dev/null; then
    echo "needed, but not found: rustup target add wasm32-unknown-unknown" >&2
    missing=1
fi
[ -z "$missing" ] || exit 1

copies=$(mktemp -d)
trap 'rm -rf "$copies"' EXIT

# A copy lies elsewhere, so the SDK has another path there; the workspace's lock keeps the versions.
cp -R sdk/templates/policy/rust "$copies/rust"
cp Cargo.lock "$copies/rust/"
(
    cd "$copies/rust"
    sed "s|path = \"../../../../sdk/policy\"|path = \"$root/sdk/policy\"|" Cargo.toml > edited && mv edited Cargo.toml
    flags="--remap-path-prefix=$root=/taq"$'\x1f'"--remap-path-prefix=$copies/rust=/policy"
    for registry in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/; do
        flags+=$'\x1f'"--remap-path-prefix=${registry%/}=/crates"
    done
    CARGO_TARGET_DIR=$root/target/templates/cargo cargo test --quiet
    CARGO_TARGET_DIR=$root/target/templates/cargo CARGO_ENCODED_RUSTFLAGS=$flags \
        cargo build --quiet --release --target wasm32-unknown-unknown
)
cp target/templates/cargo/wasm32-unknown-unknown/release/my_policy.wasm "$out/rust.wasm"

linker=()
if [ -n "${WASM_LD-}" ]; then linker=("-fuse-ld=$WASM_LD"); fi
"${clang[@]}" --target=wasm32-freestanding -Oz -Wall -Wextra -Werror -ffreestanding -nostdlib -Wl,--no-entry -Wl,--strip-all \
    ${linker[@]+"${linker[@]}"} -o "$out/c.wasm" sdk/templates/policy/c/policy.c

cp -R sdk/templates/policy/assemblyscript "$copies/assemblyscript"
(
    cd "$copies/assemblyscript"
    npm install --silent --no-audit --no-fund
    npm run --silent build
)
cp "$copies/assemblyscript/policy.wasm" "$out/assemblyscript.wasm"

wc -c "$out"/{rust,c,assemblyscript}.wasm
