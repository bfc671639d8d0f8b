// SPDX-License-Identifier: GPL-2.0

/* What of ftrace has no Rust binding: its struct, and inline functions. */

#include <linux/ftrace.h>
#include <linux/module.h>
#include <linux/rcupdate.h>

bool window_is_own(unsigned long ip);
void window_go_to(struct ftrace_regs *fregs, unsigned long ip);
void window_synchronize_rcu_tasks(void);

/* As in livepatch: a callback with a function's arguments can change where it continues. */
#ifdef CONFIG_HAVE_DYNAMIC_FTRACE_WITH_ARGS
#define HOOK_FLAGS FTRACE_OPS_FL_IPMODIFY
#else
#define HOOK_FLAGS (FTRACE_OPS_FL_SAVE_REGS | FTRACE_OPS_FL_IPMODIFY)
#endif

/* One hook for each function that is detoured; NAME_at is in detours.rs. */
#define HOOK(name)								\
	void window_##name##_at(unsigned long ip, unsigned long parent_ip,	\
				struct ftrace_ops *ops,				\
				struct ftrace_regs *fregs);			\
	extern struct ftrace_ops window_##name##_ops;				\
	struct ftrace_ops window_##name##_ops = {				\
		.func = window_##name##_at,					\
		.flags = HOOK_FLAGS,						\
	}

HOOK(dax_read_unlock);
HOOK(vfs_fsync_range);
HOOK(kill_dax);
HOOK(dax_layout_busy_page_range);
HOOK(kill_block_super);
HOOK(down_write);
#ifdef CONFIG_DEBUG_LOCK_ALLOC
HOOK(down_write_nested);
#endif

notrace bool window_is_own(unsigned long ip)
{
	return within_module(ip, THIS_MODULE);
}

notrace void window_go_to(struct ftrace_regs *fregs, unsigned long ip)
{
	ftrace_regs_set_instruction_pointer(fregs, ip);
}

void window_synchronize_rcu_tasks(void)
{
	synchronize_rcu_tasks();
}
