#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# dracut's counterpart of initramfs-hook.

# Also without devices at the moment, which may be found at the next boot only.
check() {
    return 0
}

installkernel() {
    hostonly='' instmods pmem_rs nd_pmem nd_btt dax_pmem libnvdimm \
        nfit nd_e820 of_pmem virtio_pmem cxl_acpi cxl_pci cxl_mem cxl_port cxl_pmem
}

install() {
    inst_multiple -o /usr/lib/modprobe.d/pmem-rs.conf /etc/modprobe.d/pmem-rs-options.conf
}
