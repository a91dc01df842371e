#!/usr/bin/env bash
# Sets up what the program (`run`) or the tests and checks (`dev`) need: a .venv on Python 3.11,
# the pinned requirements, the system libraries. Does nothing, fast, when nothing changed.
#
#   scripts/setup.sh run|dev
#
#   PYTHON=PATH       a Python 3.11 to try before those on PATH
#   TORCH_INDEX=URL   package index for PyTorch alone, such as PyTorch's own CPU index
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
venv_python=$venv/bin/python

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
is_root() { [ "$(id -u)" -eq 0 ]; }
have() { command -v "$1" >/dev/null 2>&1; }

set_up=${1:-}
case $set_up in
    run) requirement_files=(requirements.txt) ;;
    dev) requirement_files=(requirements.txt requirements-{dev,jax,openvino,ray}.txt) ;;
    *) fail "usage: scripts/setup.sh run|dev" ;;
esac

# ---- what is in place already ---------------------------------------------------------------
# A stamp is a copy of the file it was installed from and is written last, inside the .venv: a
# changed file, a new .venv and an interrupted installation all leave no matching stamp.

stamp_of() { printf '%s/.installed-%s' "$venv" "$1"; }

requirements_installed() {
    local file
    for file in "${requirement_files[@]}"; do
        cmp -s "$file" "$(stamp_of "$file")" || return 1
    done
}

system_stamp=$venv/.system-libraries-$set_up

# ---- Python 3.11 ----------------------------------------------------------------------------

# A pyenv shim exists on PATH even where its version is not selected, so run it to know.
is_python311() {
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' </dev/null >/dev/null 2>&1
}
can_make_venv() { "$1" -c 'import ensurepip, venv' </dev/null >/dev/null 2>&1; }

python=              # a Python 3.11 that can make a virtual environment
python_without_venv= # one that cannot: Debian packs venv apart

try_python() {
    [ -x "$1" ] && [ ! -d "$1" ] && is_python311 "$1" || return 1
    if can_make_venv "$1"; then
        python=$1
    else
        python_without_venv=${python_without_venv:-$1}
        return 1
    fi
}

find_python() {
    local name directory directories
    if [ -n "${PYTHON:-}" ]; then
        try_python "$(command -v "$PYTHON" || true)" && return 0
        say "PYTHON=$PYTHON is not a usable Python 3.11; looking on PATH."
    fi
    IFS=: read -r -a directories <<<"$PATH"
    for name in python3.11 python3 python; do
        for directory in "${directories[@]}"; do
            try_python "$directory/$name" && return 0
        done
    done
    return 1
}

# Root may install what Debian packs apart; everybody else is told the command.
install_venv_module() {
    [ -n "$python_without_venv" ] && is_root && have apt-get && apt_install python3.11-venv
}

make_venv() {
    rm -rf "$venv"
    if find_python || { ! have uv && install_venv_module && find_python; }; then
        say "making $venv with $python"
        "$python" -m venv "$venv"
    elif have uv; then
        say "making $venv with uv's Python 3.11"
        uv venv --seed --python 3.11 "$venv" ||
            fail "uv could not supply Python 3.11; install Python 3.11 and run this again."
    elif [ -n "$python_without_venv" ]; then
        fail "$python_without_venv has no venv module; install it (sudo apt-get install python3.11-venv) and run this again."
    else
        fail "Python 3.11 is needed and was not found: install it (Debian 12: sudo apt-get install python3.11 python3.11-venv) or uv, and run this again."
    fi
}

ensure_venv() {
    if [ ! -e "$venv" ] && [ ! -L "$venv" ]; then
        make_venv
    elif ! "$venv_python" -m pip --version >/dev/null 2>&1; then
        say "$venv is incomplete; making it again"
        make_venv
    elif ! is_python311 "$venv_python"; then
        fail "$venv holds another Python than 3.11; remove the folder and run this again."
    fi
}

# ---- Python packages ------------------------------------------------------------------------

pip_install() {
    "$venv_python" -m pip install --disable-pip-version-check "$@" </dev/null ||
        fail "installing failed, see above; run this again to continue."
}

install_requirements() {
    local file arguments=()
    "$venv_python" scripts/remove_partial_installs.py
    if [ -n "${TORCH_INDEX:-}" ]; then
        say "installing PyTorch from $TORCH_INDEX"
        pip_install --no-deps --index-url "$TORCH_INDEX" "$(grep '^torch==' requirements.txt)"
    elif [ "$(uname -s)" = Linux ] && ! "$venv_python" -m pip show -q torch >/dev/null 2>&1; then
        say "the default PyTorch may bring several GB of CUDA libraries, which this program does" \
            "not use; TORCH_INDEX=URL takes it from PyTorch's CPU index instead."
    fi
    for file in "${requirement_files[@]}"; do
        arguments+=(-r "$file")
    done
    say "installing ${requirement_files[*]} (this takes minutes the first time)"
    pip_install "${arguments[@]}"
    for file in "${requirement_files[@]}"; do
        cp "$file" "$(stamp_of "$file").new"
        mv "$(stamp_of "$file").new" "$(stamp_of "$file")"
    done
    say "Python packages are in place."
}

# ---- system libraries -----------------------------------------------------------------------

# GLFW's wheel holds libglfw itself, which opens these when it starts (LIBRARY:PACKAGES).
# libgl1-mesa-dri draws in software where there is no graphics driver.
window_libraries="
    libGL.so.1:libgl1,libgl1-mesa-dri libX11.so.6:libx11-6 libX11-xcb.so.1:libx11-xcb1
    libXext.so.6:libxext6 libXrandr.so.2:libxrandr2 libXinerama.so.1:libxinerama1
    libXcursor.so.1:libxcursor1 libXi.so.6:libxi6 libXrender.so.1:libxrender1
    libXxf86vm.so.1:libxxf86vm1 libstdc++.so.6:libstdc++6"
# The tests drive the real window on a virtual display, and the server's page in a browser
# (COMMAND:PACKAGES).
test_commands="Xvfb:xvfb xdotool:xdotool chromium:chromium"

missing_packages() {
    local entry known
    known=$(ldconfig -p)
    for entry in $window_libraries; do
        case $known in *$'\t'"${entry%%:*} "*) ;; *) printf '%s\n' "${entry#*:}" ;; esac
    done
    if [ "$set_up" = dev ]; then
        for entry in $test_commands; do
            have "${entry%%:*}" || printf '%s\n' "${entry#*:}"
        done
    fi
}

apt_install() {
    say "installing system packages: $*"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q </dev/null >&2 || say "apt-get update failed; trying with the lists at hand."
    apt-get install -y -q --no-install-recommends "$@" </dev/null >&2
}

ensure_system_libraries() {
    local packages
    PATH=$PATH:/usr/sbin:/sbin # where ldconfig is, for users other than root
    have ldconfig || return 0  # macOS and the like bring OpenGL with them
    packages=$(missing_packages | tr ',\n' '  ')
    # shellcheck disable=SC2086 # a list of package names
    set -- $packages
    if [ $# -eq 0 ]; then
        : >"$system_stamp"
    elif is_root && have apt-get; then
        if apt_install "$@"; then
            : >"$system_stamp"
        else
            say "they could not be installed; what can run without them runs."
        fi
    else
        say "some system libraries for the $([ "$set_up" = run ] && echo window || echo 'window and the tests') are missing; what can run without them runs."
        if have apt-get; then
            say "install them with: sudo apt-get install $*"
        else
            say "install your system's packages for (Debian's names): $*"
        fi
    fi
}

# ---------------------------------------------------------------------------------------------

if [ -x "$venv_python" ] && [ -e "$system_stamp" ] && requirements_installed; then
    exit 0
fi
if have flock; then # two of these at once would fight over the .venv
    exec 9<scripts/setup.sh
    flock -n 9 || { say "waiting for another set-up to finish"; flock 9; }
fi
if ! { [ -x "$venv_python" ] && requirements_installed; }; then
    ensure_venv
    install_requirements
fi
[ -e "$system_stamp" ] || ensure_system_libraries
