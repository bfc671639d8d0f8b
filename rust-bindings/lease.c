// SPDX-License-Identifier: GPL-2.0
/*
 * Exports the functions of pmem_rs_lease.h, which src/abstractions/kernel/lease/exports.rs defines.
 * No logic here.
 */
#include <linux/export.h>
#include "pmem_rs_lease.h"

EXPORT_SYMBOL_GPL(pmem_rs_lease_get);
EXPORT_SYMBOL_GPL(pmem_rs_lease_put);
EXPORT_SYMBOL_GPL(pmem_rs_lease_address);
EXPORT_SYMBOL_GPL(pmem_rs_lease_size);
EXPORT_SYMBOL_GPL(pmem_rs_lease_read);
EXPORT_SYMBOL_GPL(pmem_rs_lease_write);
EXPORT_SYMBOL_GPL(pmem_rs_lease_flush);
