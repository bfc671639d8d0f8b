# SPDX-License-Identifier: GPL-2.0

# Functions that all scripts of qemu/ share: messages, the cache and its locks, and the namespaces
# of the build root. To be sourced.
# shellcheck shell=bash

set -euo pipefail
umask 022
export LC_ALL=C
PATH=$PATH:/usr/sbin:/sbin # where an ordinary user does not have chroot

PROJECT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# shellcheck source=qemu/config
. "$PROJECT/qemu/config"

# The start of the outermost script, from which all messages of a run count.
export PMEM_RS_STARTED=${PMEM_RS_STARTED:-$EPOCHSECONDS}

# Prints a message on stderr, because stdout carries results.
say() {
    printf '[%3d s] %s\n' "$((EPOCHSECONDS - PMEM_RS_STARTED))" "$*" >&2
}

# die MESSAGE [REMEDY…]
die() {
    printf 'pmem-rs: %s\n' "$1" >&2
    shift
    (($# == 0)) || printf '         %s\n' "$@" >&2
    exit 1
}

# Ends the script like `die`, with the status that means that something cannot be had, and not that
# it failed.
unavailable() {
    (die "$@") || exit 77
}

# Kbuild passes paths through make and the shell unquoted.
case $PROJECT in
*[[:space:]:\']*) die "the checkout's path has a space, a colon or a quote in it, which Kbuild cannot handle: $PROJECT" ;;
esac

CACHE=${PMEM_RS_CACHE:-${XDG_CACHE_HOME:-${HOME:?HOME or PMEM_RS_CACHE must be set}/.cache}/pmem-rs}
CACHE=$(realpath -m -- "$CACHE")
case $CACHE in
*[[:space:]:\']*) die "the cache's path has a space, a colon or a quote in it: $CACHE" "Set PMEM_RS_CACHE to another folder." ;;
esac
export PMEM_RS_CACHE=$CACHE

# The file that marks a folder as this project's cache. Backup programs skip such a folder, and
# distclean removes nothing without it.
cache_tag=$CACHE/CACHEDIR.TAG
cache_tag_text='Signature: 8a477f597d28d172789f06886806bc55
# Cache of pmem-rs, which make distclean removes.'

# Makes the cache folder, and refuses a folder of another project.
open_cache() {
    if [[ -e $cache_tag ]]; then
        [[ -O $CACHE ]] || die "the cache $CACHE belongs to $(stat -c %U "$CACHE")" \
            "Set PMEM_RS_CACHE to a folder of your own."
        return
    fi
    mkdir -p "$CACHE" || die "cannot make the cache folder $CACHE" "Set PMEM_RS_CACHE to another folder."
    # A parallel run may be making the cache, and writes the tag first.
    [[ -z $(ls -A "$CACHE") || -e $cache_tag ]] || die "$CACHE is neither empty nor a cache of pmem-rs" \
        "Set PMEM_RS_CACHE to another folder."
    printf '%s\n' "$cache_tag_text" >"$cache_tag"
}

# hash WORD… : prints a short name that depends on all words.
hash() {
    printf '%s\n' "$@" | sha256sum | cut -c1-12
}

# Prints scripts without their comments, for a hash of what they do.
code() {
    sed -E '/^[[:space:]]*(#|$)/d' "$@"
}

# Waits until no other run makes NAME, and locks NAME until this script ends.
lock() {
    local fd
    exec {fd}>"$CACHE/$1.lock"
    if ! flock -n "$fd"; then
        say "$1: waiting for another run that is making it"
        flock "$fd"
    fi
}

# need_space WHAT MIB: fails if the cache's file system has less space.
need_space() {
    local have
    have=$(($(df --output=avail -k "$CACHE" | tail -n 1) / 1024))
    ((have >= $2)) || die "$1 needs $2 MiB in $CACHE, but only $have MiB are free there" \
        "Make room, or set PMEM_RS_CACHE to a folder on another disk."
}

# Prints the remedy for a failure that a step's output names.
explain() { # LOG
    local package
    package=$(grep -o -E -m 1 "Unable to locate package .*|Package .* has no installation candidate" "$1" || true)
    if [[ -n $package ]]; then
        echo "$suite has no package $package, which qemu/config lists: correct the list."
    elif grep -q -i -E 'No space left on device|not enough free space' "$1"; then
        echo "Make room in $CACHE or in /tmp, or set PMEM_RS_CACHE to a folder on another disk."
    elif grep -q -E '^(Err|E: Failed to fetch)' "$1"; then
        echo "Is $mirror reachable from here? Set PMEM_RS_MIRROR for another mirror, http_proxy for a proxy."
    else
        echo "Completed steps are kept. Run the command again to continue."
    fi
}

# Prints the last line of a log that has text, with any line ending.
last_words() { # LOG
    tail -c 2000 "$1" | tr '\r' '\n' | awk 'NF { words = $0 } END { print substr(words, 1, 90) }'
}

# watched LABEL LOG CMD… : runs CMD with its output in LOG. Reports every ten seconds that it still
# runs, with its last line, and shows the end of LOG if it fails. watched --late prints nothing for
# a command that ends within ten seconds.
watched() {
    local late=no late_label='' label log status=0 began=$EPOCHSECONDS never words
    if [[ $1 == --late ]]; then
        late=yes late_label="$2, "
        shift
    fi
    label=$1 log=$2
    shift 2
    mkdir -p "$(dirname "$log")"
    : >"$log"
    if [[ $late == no ]]; then
        say "$label"
    fi
    # Nothing is written to this pipe: read's timeout sleeps without a child that could outlive us.
    exec {never}<> <(:)
    while ! read -r -t 10 -u "$never" && kill -0 $$ 2>/dev/null; do
        words=$(last_words "$log")
        say "  ${late_label}still running after $((EPOCHSECONDS - began)) s: ${words:-no output yet}"
    done &
    watched_ticker=$!
    trap 'kill "$watched_ticker" 2>/dev/null' EXIT
    # Not `"$@" || status=$?`, which would switch errexit off inside of a function.
    set +e
    (set -e; "$@") >"$log" 2>&1 </dev/null
    status=$?
    set -e
    kill "$watched_ticker" 2>/dev/null || true
    wait "$watched_ticker" 2>/dev/null || true
    trap - EXIT
    exec {never}>&-
    if ((status)); then
        tail -n 20 "$log" >&2
        die "failed (status $status): $label" "$(explain "$log")" "The whole output is in $log"
    fi
    if [[ $late == no ]] || ((EPOCHSECONDS - began >= 10)); then
        say "  done in $((EPOCHSECONDS - began)) s"
    fi
}

# Prints the command with which the kernel's make compiled the module, without the names of outputs.
rustc_command() { # OBJECTS
    local command
    command=$(sed -n 's/^savedcmd_src\/pmem_rs\.o := //p' "$1/src/.pmem_rs.o.cmd" | cut -d ';' -f 1)
    [[ $command == *rustc* ]] || die "no rustc command in $1/src/.pmem_rs.o.cmd"
    sed -E 's/ --emit=[^ ]*//g; s/ --out-dir [^ ]*//; s/ -Cremark[^ ]*//g; s/ --remap-path-prefix=[^ ]*//g' <<<"$command"
}

inside_root() {
    [[ -e /.pmem-rs-root ]]
}

# The options of unshare for the namespaces of the build root. Without root, one is a user
# namespace: the caller is root there, and the ids of /etc/subuid are the others.
namespaces=(--mount --pid --fork --kill-child)
if ((EUID != 0)); then
    namespaces+=(--user --map-auto --map-root-user)
fi

# Runs a command with the rights over the build root's files.
as_root() {
    unshare "${namespaces[@]}" --mount-proc -- "$@"
}

# Prints the lines of sources.list for a tree of `suite`. The archive may be one of the past, such
# as snapshot.debian.org.
archive_sources() {
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg archives archive
    [[ -e $keyring ]] || die "Debian's archive keys are missing ($keyring)" "Run: sudo apt-get install debian-archive-keyring"
    case $suite in
    sid) archives=("$mirror sid" "$mirror experimental") ;;
    *) archives=("$mirror $suite" "$mirror $suite-updates" "$security_mirror $suite-security" "$mirror $suite-backports") ;;
    esac
    for archive in "${archives[@]}"; do
        echo "deb [signed-by=$keyring check-valid-until=no] $archive main"
    done
}

# Removes folders that an interrupted run has left.
remove_partial() { # FOLDER…
    local folder
    for folder; do
        [[ -e $folder ]] || continue
        say "${folder##*/}: removing what is left of an earlier attempt"
        as_root rm -rf --one-file-system "$folder"
    done
}

# Explains why namespaces cannot be made.
need_namespaces() {
    local problem
    if ((EUID == 0)); then
        problem=$(unshare "${namespaces[@]}" true 2>&1) && return
        die "root, but not allowed to make mount namespaces: $problem" \
            "In a container, run it privileged (docker run --privileged), or as a user with user namespaces."
    fi
    unshare --help | grep -e --map-auto >/dev/null ||
        die "this util-linux is too old to run without root (unshare has no --map-auto, which came with 2.38)" \
            "Run as root, or on a newer system."
    command -v newuidmap >/dev/null ||
        die "newuidmap is missing, which is needed to run without root" "Run: sudo apt-get install uidmap"
    if [[ $(cat /proc/sys/user/max_user_namespaces) == 0 ]]; then
        die "neither root nor user namespaces: user.max_user_namespaces is 0" \
            "Run as root, or: sudo sysctl user.max_user_namespaces=10000"
    fi
    if [[ -r /proc/sys/kernel/unprivileged_userns_clone ]] &&
        [[ $(cat /proc/sys/kernel/unprivileged_userns_clone) == 0 ]]; then
        die "neither root nor user namespaces: kernel.unprivileged_userns_clone is 0" \
            "Run as root, or: sudo sysctl kernel.unprivileged_userns_clone=1"
    fi
    for file in /etc/subuid /etc/subgid; do
        grep -q -E "^($(id -un)|$EUID):" "$file" 2>/dev/null ||
            die "$(id -un) has no entry in $file, which is needed to run without root" \
                "Run: sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $(id -un)"
    done
    problem=$(unshare "${namespaces[@]}" true 2>&1) && return
    die "neither root nor user namespaces: $problem" \
        "Run as root. (Ubuntu: sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0)"
}

# The crates that cargo has compiled are kept in the cache for the next checkout, which does not
# compile them again if lock file and compiler are the same. The packages of the workspace are not
# kept: cargo would look at the sources of the checkout that compiled them.
#
# crates_key COMPILER: the folder in the cache for a compiler.
crates_key() {
    echo "$CACHE/crates-$(hash "$1" "$(<"$PROJECT/Cargo.lock")" "$(<"$PROJECT/Cargo.toml")" \
        "$(declare -f keep_crates)")"
}

# seed_crates KEPT TARGET: fills an empty target folder of cargo.
seed_crates() {
    local profile
    for profile in debug release; do
        if [[ -d $1/$profile && ! -e $2/$profile ]]; then
            mkdir -p "$2"
            cp -a --reflink=auto "$1/$profile" "$2/$profile.partial"
            mv "$2/$profile.partial" "$2/$profile"
        fi
    done
}

# keep_crates KEPT TARGET: keeps what is not there yet. What was not used for a month is removed.
keep_crates() {
    local profile package packages
    open_cache
    mkdir -p "$1"
    touch "$1"
    for profile in debug release; do
        if [[ -d $2/$profile && ! -e $1/$profile ]]; then
            rm -rf "$1/$profile.partial"
            cp -a --reflink=auto "$2/$profile" "$1/$profile.partial"
            rm -rf "$1/$profile.partial/incremental"
            mapfile -t packages < <(sed -n 's/^name = "\(.*\)"$/\1/p' "$PROJECT"/*/*/Cargo.toml)
            for package in "${packages[@]}"; do
                rm -rf "$1/$profile.partial/"{.fingerprint,build}/"$package"-* \
                    "$1/$profile.partial/deps/"{,lib}"${package//-/_}"-*
            done
            mv -T "$1/$profile.partial" "$1/$profile" 2>/dev/null || rm -rf "$1/$profile.partial"
        fi
    done
    find "$CACHE" -mindepth 1 -maxdepth 1 -name 'crates-*' -mtime +30 -exec rm -rf {} +
}
