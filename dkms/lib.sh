# SPDX-License-Identifier: GPL-2.0

# What the scripts of the package share. To be sourced, by bash.
# shellcheck shell=bash disable=SC2034

set -euo pipefail
umask 022
export LC_ALL=C
# Debian's compilers, and not those of rustup or /usr/local.
PATH=/usr/sbin:/usr/bin:/sbin:/bin

# Here each kernel has a folder with its metadata, and a file with the reason if it has no module.
state=/var/lib/pmem-rs-dkms
library=/usr/lib/pmem-rs-dkms
# Installs a kernel that the module can be built for.
install_kernel="apt install -t trixie-backports linux-image-amd64 linux-headers-amd64 linux-source"

# refuse RELEASE PROBLEM [REMEDY…]: ends a build with the status that means to dkms that the module
# is not for this kernel, so that apt goes on. install-modules shows the text to the user.
refuse() {
    local release=$1 problem=$2
    shift 2
    mkdir -p "$state"
    {
        printf 'pmem_rs.ko was not built for Linux %s: %s\n' "$release" "$problem"
        (($# == 0)) || printf '  %s\n' "$@"
    } >"$state/$release.reason" || true # also if the disk is full
    printf '%s\n' "$problem" "$@" >&2
    exit 77
}

# Prints the version of the source package that an installed package was built from, or nothing.
source_version() { # PACKAGE
    # shellcheck disable=SC2016 # these are dpkg's
    dpkg-query -W -f '${db:Status-Abbrev}${source:Version}\n' "$1" 2>/dev/null | sed -n 's/^.[^nc].//p' || true
}

# Returns whether the disk of a folder is full.
is_full() { # FOLDER
    (($(df --output=avail -k "$1" | tail -n 1) < 1024))
}

# Prints the releases of the kernels whose headers are installed.
kernels() {
    local folder
    for folder in /lib/modules/*/build; do
        if [[ -e $folder/.config ]]; then basename "${folder%/build}"; fi
    done
}

# Prints a message and its remedy.
say() {
    printf 'pmem-rs-dkms: %s\n' "$1"
    shift
    (($# == 0)) || printf '  %s\n' "$@"
}

module_of() { # RELEASE
    find "/lib/modules/$1/updates/dkms" -name 'pmem_rs.ko*' 2>/dev/null || true
}

secure_boot() {
    local on
    on=$(od -An -t u1 -j 4 -N 1 /sys/firmware/efi/efivars/SecureBoot-* 2>/dev/null) || return 1
    [[ ${on// /} == 1 ]]
}

# With Secure Boot, the kernel loads a module only if its key is enrolled.
report_key() {
    local key=/var/lib/dkms/mok.pub
    secure_boot && [[ -e $key ]] || return 0
    if command -v mokutil >/dev/null && [[ $(mokutil --test-key "$key" 2>/dev/null) == *"already enrolled"* ]]; then
        return 0
    fi
    say "Secure Boot is on, and the key of pmem_rs.ko is not enrolled, so nd_pmem gets the devices." \
        "Run: apt install mokutil; mokutil --import $key" \
        "Then reboot, choose \"Enroll MOK\" in the blue menu, and enter the password."
}
