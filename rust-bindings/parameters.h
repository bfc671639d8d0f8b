/* SPDX-License-Identifier: GPL-2.0 */
/* The parameters of the module. */

extern unsigned int pmem_rs_revoke_timeout_ms;
extern unsigned int pmem_rs_revoke_notice_ms;
extern unsigned int pmem_rs_suspend_limit_ms;
extern char *pmem_rs_except;
