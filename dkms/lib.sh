# SPDX-License-Identifier: GPL-2.0

# What the scripts of the package share. To be sourced, by bash.
# shellcheck shell=bash disable=SC2034

set -euo pipefail
umask 022
export LC_ALL=C
# Debian's compilers, and not those of rustup or /usr/local.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin

# Here each kernel has a folder with its metadata, and a file with the reason if it has no module.
state=/var/lib/pmem-rs-dkms
library=/usr/lib/pmem-rs-dkms
# Installs a kernel that the module can be built for.
architecture=$(dpkg --print-architecture)
install_kernel="apt install -t trixie-backports linux-image-$architecture"
install_kernel+=" linux-headers-$architecture linux-source"

# refuse RELEASE PROBLEM [REMEDY…]: ends a build with the status that means to dkms that the module
# is not for this kernel, so that apt goes on. install-modules shows the text to the user.
refuse() {
    local release=$1 problem=$2
    shift 2
    mkdir -p "$state" || true
    {
        printf 'pmem_rs.ko was not built for Linux %s: %s\n' "$release" "$problem"
        (($# == 0)) || printf '  %s\n' "$@"
    } >"$state/$release.reason" || true # also if the disk is full
    printf '%s\n' "$problem" "$@" >&2 || true
    exit 77
}

# Prints the version of the source package that an installed package was built from, or nothing.
source_version() { # PACKAGE
    # shellcheck disable=SC2016 # these are dpkg's
    dpkg-query -W -f '${db:Status-Abbrev}${source:Version}\n' "$1" 2>/dev/null | sed -n 's/^.[^nc].//p' || true
}

source_package() { # PACKAGE
    # shellcheck disable=SC2016 # this is dpkg's
    dpkg-query -W -f '${source:Package}' "$1" 2>/dev/null || true
}

# Prints how many MB are free on the disk of a folder.
free_space() { # FOLDER
    echo $(($(df --output=avail -k "$1" | tail -n 1) / 1024))
}

# Builds of two kernels use the same folder of metadata. Each holds this lock.
lock() {
    exec 9>"$state/lock"
    flock 9
}

is_older() { # RELEASE: than the kernels that the module can be built for
    [[ $(printf '%s\n' 7.2 "$1" | sort -V | sed -n 1p) != 7.2 ]]
}

has_headers() { # RELEASE
    [[ -e /lib/modules/$1/build/.config ]]
}

# Returns whether all that a kernel lacks is its headers. Debian's kernels have their configuration
# there.
lacks_headers() { # RELEASE
    ! has_headers "$1" && grep -q '^CONFIG_RUST=y' "/lib/modules/$1/config" 2>/dev/null
}

# Returns whether a kernel is installed, or unknown to dpkg. The folder in /lib/modules belongs to
# another package, which stays after the image until `apt autoremove`.
is_installed() { # RELEASE
    [[ -n $(source_version "linux-image-$1")$(source_version "linux-image-$1-unsigned") ]] ||
        ! dpkg-query -S "/usr/lib/modules/$1/kernel" >/dev/null 2>&1
}

# Prints the releases of the installed kernels that are not too old.
kernels() {
    local folder release
    for folder in /lib/modules/*/kernel/; do
        release=$(basename "${folder%/kernel/}")
        [[ -d $folder ]] || continue
        if ! is_older "$release" && is_installed "$release"; then echo "$release"; fi
    done
}

# Prints how to install the headers of a kernel, and its source.
headers_command() { # RELEASE
    echo "apt install linux-headers-$1 linux-source-$(cut -d . -f 1,2 <<<"$1")"
}

# Prints a message and its remedy.
say() {
    printf 'pmem-rs-dkms: %s\n' "$1"
    shift
    (($# == 0)) || printf '  %s\n' "$@"
}

# Prints the module that dkms has installed for a kernel. A file without dkms' link is left from an
# installation that was interrupted.
module_of() { # RELEASE
    [[ ! -L /var/lib/dkms/pmem-rs/kernel-$1-$(uname -m) ]] ||
        find "/lib/modules/$1/updates/dkms" -name 'pmem_rs.ko*' 2>/dev/null || true
}

secure_boot() {
    local on
    on=$(od -An -t u1 -j 4 -N 1 /sys/firmware/efi/efivars/SecureBoot-* 2>/dev/null) || return 1
    [[ ${on// /} == 1 ]]
}

# Prints the certificate of the key that dkms signs with.
certificate() (
    set +eu
    mok_certificate=
    for file in /etc/dkms/framework.conf /etc/dkms/framework.conf.d/*.conf; do
        # shellcheck disable=SC1090 # these are dkms'
        [[ ! -e $file ]] || . "$file" >/dev/null 2>&1
    done
    echo "${mok_certificate:-/var/lib/dkms/mok.pub}"
)

# With Secure Boot, the kernel loads a module only if its key is enrolled. Says so if it is not.
# Returns whether it has said so.
report_key() {
    local key is_not="may not be"
    key=$(certificate)
    secure_boot && [[ -e $key ]] || return 1
    if command -v mokutil >/dev/null; then
        # There are several answers for a key that is enrolled, and this one for others.
        [[ $(mokutil --test-key "$key" 2>/dev/null) == *"is not enrolled"* ]] || return 1
        is_not="is not"
    fi
    say "Secure Boot is on, and the key of pmem_rs.ko $is_not enrolled." \
        "Without it, nd_pmem gets the devices." \
        "Run: apt install mokutil; mokutil --import $key" \
        "Then reboot, choose \"Enroll MOK\" in the blue menu, and enter the password."
}
