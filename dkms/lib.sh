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

# Prints the version of the source package that an installed package was built from.
source_version() { # PACKAGE
    # shellcheck disable=SC2016 # these are dpkg's
    dpkg-query -W -f '${db:Status-Abbrev}${source:Version}\n' "$1" 2>/dev/null | sed -n 's/^i[^n] *//p'
}

# Prints the releases of the kernels whose headers are installed.
kernels() {
    local folder
    for folder in /lib/modules/*/build; do
        if [[ -e $folder/.config ]]; then basename "${folder%/build}"; fi
    done
}
