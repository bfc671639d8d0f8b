/* SPDX-License-Identifier: GPL-2.0 */
/* The parameters of the module. The parameters of `module!` are not in sysfs. */

extern unsigned int pmem_rs_revoke_timeout_ms;
