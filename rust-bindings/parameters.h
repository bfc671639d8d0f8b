/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The parameters of the module. Those of `module!` are read when the module is loaded, and
 * are not in sysfs.
 */

extern unsigned int pmem_rs_revoke_timeout_ms;
