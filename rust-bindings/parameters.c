// SPDX-License-Identifier: GPL-2.0
/*
 * Parameters that can be written while the module is loaded. Rust reads them through
 * `src/abstractions/kernel_ext/module_param.rs`. No logic here.
 */
#include <linux/moduleparam.h>
#include "parameters.h"

unsigned int pmem_rs_revoke_timeout_ms = 10000;
module_param_named(revoke_timeout_ms, pmem_rs_revoke_timeout_ms, uint, 0644);
MODULE_PARM_DESC(revoke_timeout_ms,
		 "How long unbind waits for pinned pages before it retires the range, in milliseconds; 0: for as long as it takes (default: 10000)");
