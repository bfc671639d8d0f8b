// SPDX-License-Identifier: GPL-2.0
/*
 * Parameters that are writable while the module is loaded.
 * `src/abstractions/kernel_ext/module_param.rs` reads them. No logic here.
 */
#include <linux/moduleparam.h>
#include "parameters.h"

unsigned int pmem_rs_revoke_timeout_ms = 10000;
module_param_named(revoke_timeout_ms, pmem_rs_revoke_timeout_ms, uint, 0644);
MODULE_PARM_DESC(revoke_timeout_ms,
		 "How long unbind waits for pinned pages, in milliseconds; 0: no limit (default: 10000)");
