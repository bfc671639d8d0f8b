// SPDX-License-Identifier: GPL-2.0
/*
 * Parameters that `module!` cannot define: those that are writable while the module is loaded, and
 * strings. `src/abstractions/kernel_ext/module_param.rs` reads them. No logic here.
 */
#include <linux/module.h>
#include "parameters.h"

unsigned int pmem_rs_revoke_timeout_ms = 10000;
module_param_named(revoke_timeout_ms, pmem_rs_revoke_timeout_ms, uint, 0644);
MODULE_PARM_DESC(revoke_timeout_ms,
		 "How long unbind waits for users of the memory, in milliseconds; 0: no limit (default: 10000)");

unsigned int pmem_rs_revoke_notice_ms;
module_param_named(revoke_notice_ms, pmem_rs_revoke_notice_ms, uint, 0644);
MODULE_PARM_DESC(revoke_notice_ms,
		 "How long unbind waits for the disk to be closed before it revokes, in milliseconds (default: 0)");

unsigned int pmem_rs_suspend_limit_ms = 30000;
module_param_named(suspend_limit_ms, pmem_rs_suspend_limit_ms, uint, 0644);
MODULE_PARM_DESC(suspend_limit_ms,
		 "How long a disk stays suspended at most, in milliseconds, up to 100000 (default: 30000)");

char *pmem_rs_except;
module_param_named(except, pmem_rs_except, charp, 0);
MODULE_PARM_DESC(except,
		 "Namespaces to leave to other drivers: UUIDs or start addresses, separated by commas");

/* The version of the newest entry in CHANGELOG.md. */
MODULE_VERSION("0.1.0");
