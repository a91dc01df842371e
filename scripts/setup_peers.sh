#!/usr/bin/env bash
# Installs the engines of testing/peer_comparison.py, pinned, each for itself: one that cannot be
# installed is named at the end and the rest is there. Does nothing, fast, when nothing changed.
#
#   scripts/setup_peers.sh
#
#   TORCH_INDEX=URL              package index for PyTorch alone, such as PyTorch's own CPU index
#   CMAKE_BUILD_PARALLEL_LEVEL   compilers at once for llama.cpp (default: all cores)
#
# llama.cpp is built here, for this very CPU, and needs a C++ compiler; nothing else does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv-peers
convert_venv=$venv/convert
llama_flags="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" # without its image models

say() { printf 'peers: %s\n' "$*" >&2; }

failed=()

# A stamp holds the pins and build flags an installation followed and is written last: a changed
# pin, a new environment and an interrupted installation all leave no matching stamp.
recipe() { # REQUIREMENTS EXTRA PACKAGES...
    local package requirements=$1
    printf '%s\n' "$2"
    shift 2
    for package in "$@"; do
        grep "^$package==" "$requirements"
    done
}
is_installed() { # VENV NAME REQUIREMENTS EXTRA PACKAGES...
    local stamp=$1/.installed-$2
    [ -x "$1/bin/python" ] || return 1
    shift 2
    recipe "$@" | cmp -s - "$stamp"
}

ensure_venv() { # VENV
    if ! "$1/bin/python" -m pip --version >/dev/null 2>&1; then
        rm -rf "$1"
        say "making $1"
        .venv/bin/python -m venv "$1"
    fi
}

pip_install() { # VENV ARGUMENTS...
    local python=$1/bin/python
    shift
    "$python" -m pip install --disable-pip-version-check "$@" </dev/null >&2
}

install_torch() { # VENV REQUIREMENTS
    [ -z "${TORCH_INDEX:-}" ] ||
        pip_install "$1" --no-deps --index-url "$TORCH_INDEX" "$(grep '^torch==' "$2")"
}

# install NAME VENV REQUIREMENTS EXTRA PACKAGES...: the packages at their pins. EXTRA is what else
# the result depends on; pip_options and the environment may say more.
install() {
    local name=$1 venv=$2 requirements=$3 extra=$4
    shift 4
    is_installed "$venv" "$name" "$requirements" "$extra" "$@" && return 0
    say "installing $name"
    if ensure_venv "$venv" &&
        "$venv/bin/python" scripts/remove_partial_installs.py &&
        case " $* " in *" torch "*) install_torch "$venv" "$requirements" ;; esac &&
        pip_install "$venv" ${pip_options:-} -c "$requirements" "$@"; then
        recipe "$requirements" "$extra" "$@" >"$venv/.installed-$name"
    else
        failed+=("$name")
    fi
}

have_compiler() {
    command -v c++ >/dev/null 2>&1 || command -v g++ >/dev/null 2>&1 ||
        command -v clang++ >/dev/null 2>&1
}

install_llama() {
    local packages="llama-cpp-python gguf"
    # shellcheck disable=SC2086 # a list
    is_installed "$venv" llama.cpp requirements-peers.txt "$llama_flags" $packages && return 0
    if ! have_compiler; then
        say "llama.cpp is built from source and there is no C++ compiler (Debian: g++)."
        failed+=(llama.cpp)
        return 0
    fi
    # Built anew whatever is there: a wheel from pip's cache or with other flags will not do.
    "$venv/bin/python" -m pip uninstall -q -y llama-cpp-python >&2 || true
    # shellcheck disable=SC2086 # a list
    CMAKE_ARGS=$llama_flags pip_options="--no-binary llama-cpp-python --no-cache-dir" \
        install llama.cpp "$venv" requirements-peers.txt "$llama_flags" $packages
}

if command -v flock >/dev/null 2>&1; then # two of these at once would fight over the folder
    exec 9<scripts/setup_peers.sh
    flock -n 9 || { say "waiting for another set-up to finish"; flock 9; }
fi

install "what all of them need" "$venv" requirements-peers.txt "" numpy safetensors matplotlib
install transformers "$venv" requirements-peers.txt "" torch transformers
install "ONNX Runtime" "$venv" requirements-peers.txt "" onnxruntime onnx
install CTranslate2 "$venv" requirements-peers.txt "" ctranslate2
install "OpenVINO GenAI" "$venv" requirements-peers.txt "" \
    openvino openvino-genai openvino-tokenizers
install "OpenVINO's converter" "$convert_venv" requirements-peers-convert.txt "" \
    torch transformers optimum-intel nncf openvino openvino-tokenizers safetensors
install_llama

if [ ${#failed[@]} -gt 0 ]; then
    for name in "${failed[@]}"; do
        say "$name could not be installed, see above; the comparison leaves it out."
    done
    exit 1
fi
