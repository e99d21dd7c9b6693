#!/bin/bash
# One file that makes a sensor of a Debian 12 without internet: `make archive`, or `make archive ARCH=amd64`.
#
#   archive.sh arm64|amd64      writes dist/edgetag-VERSION-debian12-ARCH.tar.gz
#
# In it: edgetag and its dependencies as wheels (nothing of the trainer), pip, PortAudio and what Debian packages it
# needs, the units, deploy/, install.sh and everybody's SHA-256. Packages come from where this machine's pip and apt
# take theirs; apt's own state is left alone (lists of packages are kept in ~/.cache/edgetag/archive), and root is not
# needed. The same inputs make the same bytes.
#
# Exit codes: 0 done, 1 something could not be built or fetched, 2 usage.

set -euo pipefail
shopt -s inherit_errexit

readonly SUITE=bookworm GLIBC_MINOR=36 # of that suite: the newest manylinux tag its pip takes
readonly ROOTS=("?priority(required)" python3) # what every sensor has, and install.sh asks for
readonly HEARING=libportaudio2
readonly DATE=@1577836800 # of every file: when something was built is no part of it

fail() {
    echo "archive.sh: $1" >&2
    exit "${2:-1}"
}

machine_of() {
    case $1 in
        arm64) echo aarch64 ;;
        amd64) echo x86_64 ;;
        *) fail "$1 is neither arm64 nor amd64" 2 ;;
    esac
}

# -- wheels ------------------------------------------------------------------------------------------------

pip() {
    .venv/bin/python -m pip --quiet --disable-pip-version-check "$@"
}

platforms() { # MACHINE: what a Debian 12 can load
    local minor
    echo "--platform=manylinux2014_$1"
    for ((minor = 17; minor <= GLIBC_MINOR; minor++)); do echo "--platform=manylinux_2_${minor}_$1"; done
}

fetch_wheels() { # MACHINE FOLDER
    local options own_pip
    own_pip=$(.venv/bin/python -c 'import pip; print(pip.__version__)')
    mapfile -t options < <(platforms "$1")
    options+=(--python-version=3.11 --only-binary=:all: --constraint=constraints.txt --dest="$2")
    pip wheel --no-deps --wheel-dir="$2" . || fail "edgetag's wheel cannot be built; pip says above why"
    pip download "${options[@]}" "$2"/edgetag-*.whl "pip==$own_pip" ||
        fail "pip cannot get the wheels that a sensor needs for $1; it says above which"
}

# -- Debian packages ---------------------------------------------------------------------------------------

# The suite's sources among this machine's, for an apt of another architecture that knows of no installed package.
apt() { # PROGRAM ARGUMENT…
    local program=$1
    shift
    "$program" -o APT::Architecture="$arch" -o APT::Architectures="$arch" -o APT::Install-Recommends=false \
        -o Dir::State="$apt/state" -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache" \
        -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=- -o APT::Sandbox::User="$(id -un)" \
        -o Acquire::Languages=none "$@"
}

sources() {
    # shellcheck disable=SC2016 # apt's own variables
    apt-get indextargets --format '$(SITE) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        awk -v suite="^$SUITE(-updates|-security)?$" '$2 ~ suite && $3 == "main" { print "deb", $1, $2, $3 }' |
        sort -u
}

needed_by() { # PACKAGE…
    apt apt-get install --simulate -qq "$@" | awk '$1 == "Inst" { print $2 }' | sort
}

fetch_packages() { # FOLDER
    local there needed packages
    mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial"
    exec 9>"$apt/lock"
    flock 9 # apt itself would not wait
    : >"$apt/status"
    sources >"$apt/sources.list"
    [ -s "$apt/sources.list" ] || fail "apt has no source of Debian $SUITE, from which $HEARING comes"
    apt apt-get update -qq || fail "apt cannot read its sources of Debian $SUITE; it says above why"
    { there=$(needed_by "${ROOTS[@]}") && needed=$(needed_by "${ROOTS[@]}" "$HEARING"); } ||
        fail "apt finds no $HEARING for $arch; it says above why"
    mapfile -t packages < <(comm -13 <(echo "$there") <(echo "$needed"))
    (cd "$1" && apt apt-get download -qq "${packages[@]}") || fail "apt cannot get ${packages[*]}; it says above why"
}

# -- the archive -------------------------------------------------------------------------------------------

own_files() { # what git has: no secret that provision.sh has made in here, whatever it is called
    git ls-files -z --cached systemd deploy ||
        fail "git cannot tell what belongs to this checkout; it says above why"
}

write_sums() { # FOLDER
    (cd "$1" && find . -type f -printf '%P\0' | LC_ALL=C sort -z | xargs -0 sha256sum) >"$1.sums"
    mv "$1.sums" "$1/SHA256SUMS"
}

pack() { # FOLDER FILE
    tar --create --sort=name --mtime="$DATE" --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX \
        --directory="$(dirname "$1")" "$(basename "$1")" | gzip --no-name --best >"$2"
}

main() {
    [ $# = 1 ] || fail "usage: archive.sh arm64|amd64" 2
    local machine work version name folder
    arch=$1
    machine=$(machine_of "$arch")
    cd "$(dirname "$0")/.."
    [ -x .venv/bin/python ] || fail "there is no .venv, whose pip is needed: \`make archive\` makes it"
    apt=${XDG_CACHE_HOME:-$HOME/.cache}/edgetag/archive/apt-$arch
    mkdir -p dist
    work=$(mktemp --directory dist/.archive.XXXXXX)
    # shellcheck disable=SC2064 # this folder, whatever the name means then
    trap "rm -rf '$PWD/$work'" EXIT
    mkdir "$work/wheels" "$work/debs"
    fetch_wheels "$machine" "$work/wheels"
    fetch_packages "$PWD/$work/debs"
    version=$(basename "$work"/wheels/edgetag-*.whl | cut -d- -f2)
    name=edgetag-$version-debian12-$arch
    folder=$work/$name
    mkdir "$folder"
    mv "$work/wheels" "$work/debs" "$folder"
    own_files | xargs --null cp --parents --target-directory="$folder"
    cp deploy/install.sh "$folder"
    write_sums "$folder"
    pack "$folder" "$work/$name.tar.gz"
    mv "$work/$name.tar.gz" dist/
    echo "dist/$name.tar.gz: $(du --apparent-size -h "dist/$name.tar.gz" | cut -f1)"
}

main "$@"
