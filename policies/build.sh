#!/usr/bin/env bash
# Builds the policies in this folder to WebAssembly: NAME/src -> NAME/NAME.wasm, and SHA256SUMS over all of them.
#
#   policies/build.sh            build and replace the modules
#   policies/build.sh --check    build, and compare with what is committed; changes nothing
#
# The same compiler gives the same bytes, wherever the checkout lies.
# TAQ_BUILD_STD=1: compile the standard library too, for a compiler that has its source but not the target (README.md).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
target=wasm32-unknown-unknown

check=
case ${1-} in
    '') ;;
    --check) check=1 ;;
    *) sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac

rustc=${RUSTC:-rustc}
version=$("$rustc" --version)
sysroot=$("$rustc" --print sysroot)
std=()
if [ -n "${TAQ_BUILD_STD-}" ]; then
    export RUSTC_BOOTSTRAP=1
    std=(-Z build-std=std,panic_abort)
elif ! compgen -G "$sysroot/lib/rustlib/$target/lib/libstd-*.rlib" >/dev/null; then
    cat >&2 <<EOF
$version has no standard library for $target. One of these helps:
  rustup target add $target
  rustup component add rust-src, then TAQ_BUILD_STD=1 policies/build.sh
  without rustup: policies/README.md, "Without the target"
EOF
    exit 1
fi

sha256() { if command -v sha256sum >/dev/null; then sha256sum "$@"; else shasum -a 256 "$@"; fi; }

# Where the sources lie must not show in the modules: panic messages carry file names.
cargo fetch --quiet --locked
flags="--remap-path-prefix=$root=/taq"
flags+=$'\x1f'"--remap-path-prefix=$sysroot/lib/rustlib/src/rust=/rust"
for registry in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/; do
    flags+=$'\x1f'"--remap-path-prefix=${registry%/}=/crates"
done

names=()
for manifest in policies/*/Cargo.toml; do
    names+=("$(basename "$(dirname "$manifest")")")
done
fresh=$root/target/policies/fresh
mkdir -p "$fresh"
for name in "${names[@]}"; do
    CARGO_ENCODED_RUSTFLAGS=$flags cargo rustc --quiet --locked --release --target "$target" \
        --target-dir target/policies --package "taq-policy-$name" --lib --crate-type cdylib \
        --config 'profile.release.opt-level="s"' --config 'profile.release.lto="fat"' \
        --config 'profile.release.codegen-units=1' --config 'profile.release.panic="abort"' \
        --config 'profile.release.strip=true' --config 'profile.release.debug=0' \
        ${std[@]+"${std[@]}"}
    built=target/policies/$target/release/taq_policy_${name//-/_}.wasm
    for private in "$root" "$sysroot" "$HOME"; do
        if LC_ALL=C grep -qaF "$private/" "$built"; then
            echo "$built has the path $private inside" >&2
            exit 1
        fi
    done
    cp "$built" "$fresh/$name.wasm"
done

if [ -n "$check" ]; then
    committed=$(sed -n '1s/^# //p' policies/SHA256SUMS)
    if [ "$committed" != "$version" ]; then
        echo "cannot compare: the modules were built by $committed, this is $version" >&2
        exit 1
    fi
    for name in "${names[@]}"; do
        cmp "$fresh/$name.wasm" "policies/$name/$name.wasm"
    done
    echo "policies: ${names[*]}: same bytes"
    exit
fi

for name in "${names[@]}"; do
    cp "$fresh/$name.wasm" "policies/$name/$name.wasm"
    chmod 644 "policies/$name/$name.wasm"
done
cd policies
{
    echo "# $version"
    for name in "${names[@]}"; do sha256 "$name/$name.wasm"; done
} > SHA256SUMS
wc -c */*.wasm
