/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The tracepoints of the module. `src/abstractions/kernel_ext/tracepoint.rs` calls them.
 * `docs/tracing.md` describes the events.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM pmem_rs

#if !defined(_PMEM_RS_TRACEPOINTS_H) || defined(TRACE_HEADER_MULTI_READ)
#define _PMEM_RS_TRACEPOINTS_H

#include <linux/tracepoint.h>

TRACE_EVENT(pmem_bind,
	TP_PROTO(const char *dev, const char *mode, u64 start, u64 len, int error),
	TP_ARGS(dev, mode, start, len, error),
	TP_STRUCT__entry(
		__string(dev, dev)
		__string(mode, mode)
		__field(u64, start)
		__field(u64, len)
		__field(int, error)
	),
	TP_fast_assign(
		__assign_str(dev);
		__assign_str(mode);
		__entry->start = start;
		__entry->len = len;
		__entry->error = error;
	),
	TP_printk("dev=%s mode=\"%s\" start=%#llx len=%#llx error=%d",
		  __get_str(dev), __get_str(mode), __entry->start, __entry->len, __entry->error)
);

TRACE_EVENT(pmem_leaving,
	TP_PROTO(const char *dev, u64 notice_ms, u64 timeout_ms),
	TP_ARGS(dev, notice_ms, timeout_ms),
	TP_STRUCT__entry(
		__string(dev, dev)
		__field(u64, notice_ms)
		__field(u64, timeout_ms)
	),
	TP_fast_assign(
		__assign_str(dev);
		__entry->notice_ms = notice_ms;
		__entry->timeout_ms = timeout_ms;
	),
	TP_printk("dev=%s notice_ms=%llu timeout_ms=%llu",
		  __get_str(dev), __entry->notice_ms, __entry->timeout_ms)
);

TRACE_EVENT(pmem_step,
	TP_PROTO(const char *dev, const char *step, u64 duration_us, u64 age_us),
	TP_ARGS(dev, step, duration_us, age_us),
	TP_STRUCT__entry(
		__string(dev, dev)
		__string(step, step)
		__field(u64, duration_us)
		__field(u64, age_us)
	),
	TP_fast_assign(
		__assign_str(dev);
		__assign_str(step);
		__entry->duration_us = duration_us;
		__entry->age_us = age_us;
	),
	TP_printk("dev=%s step=%s duration_us=%llu age_us=%llu",
		  __get_str(dev), __get_str(step), __entry->duration_us, __entry->age_us)
);

TRACE_EVENT(pmem_wait,
	TP_PROTO(const char *dev, const char *user, u64 duration_us, u64 age_us),
	TP_ARGS(dev, user, duration_us, age_us),
	TP_STRUCT__entry(
		__string(dev, dev)
		__string(user, user)
		__field(u64, duration_us)
		__field(u64, age_us)
	),
	TP_fast_assign(
		__assign_str(dev);
		__assign_str(user);
		__entry->duration_us = duration_us;
		__entry->age_us = age_us;
	),
	TP_printk("dev=%s user=%s duration_us=%llu age_us=%llu",
		  __get_str(dev), __get_str(user), __entry->duration_us, __entry->age_us)
);

TRACE_EVENT(pmem_revoked,
	TP_PROTO(const char *dev, u64 inodes, u64 pages, u64 age_us),
	TP_ARGS(dev, inodes, pages, age_us),
	TP_STRUCT__entry(
		__string(dev, dev)
		__field(u64, inodes)
		__field(u64, pages)
		__field(u64, age_us)
	),
	TP_fast_assign(
		__assign_str(dev);
		__entry->inodes = inodes;
		__entry->pages = pages;
		__entry->age_us = age_us;
	),
	TP_printk("dev=%s inodes=%llu pages=%llu age_us=%llu",
		  __get_str(dev), __entry->inodes, __entry->pages, __entry->age_us)
);

TRACE_EVENT(pmem_retire,
	TP_PROTO(const char *dev, u64 referenced, u64 cached, u64 age_us),
	TP_ARGS(dev, referenced, cached, age_us),
	TP_STRUCT__entry(
		__string(dev, dev)
		__field(u64, referenced)
		__field(u64, cached)
		__field(u64, age_us)
	),
	TP_fast_assign(
		__assign_str(dev);
		__entry->referenced = referenced;
		__entry->cached = cached;
		__entry->age_us = age_us;
	),
	TP_printk("dev=%s referenced=%llu cached=%llu age_us=%llu",
		  __get_str(dev), __entry->referenced, __entry->cached, __entry->age_us)
);

TRACE_EVENT(pmem_free,
	TP_PROTO(const char *dev, bool retired, u64 age_us),
	TP_ARGS(dev, retired, age_us),
	TP_STRUCT__entry(
		__string(dev, dev)
		__field(bool, retired)
		__field(u64, age_us)
	),
	TP_fast_assign(
		__assign_str(dev);
		__entry->retired = retired;
		__entry->age_us = age_us;
	),
	TP_printk("dev=%s retired=%d age_us=%llu",
		  __get_str(dev), __entry->retired, __entry->age_us)
);

DECLARE_EVENT_CLASS(pmem_range,
	TP_PROTO(const char *dev, u64 offset, u64 len, int error),
	TP_ARGS(dev, offset, len, error),
	TP_STRUCT__entry(
		__string(dev, dev)
		__field(u64, offset)
		__field(u64, len)
		__field(int, error)
	),
	TP_fast_assign(
		__assign_str(dev);
		__entry->offset = offset;
		__entry->len = len;
		__entry->error = error;
	),
	TP_printk("dev=%s offset=%llu len=%llu error=%d",
		  __get_str(dev), __entry->offset, __entry->len, __entry->error)
);

DEFINE_EVENT(pmem_range, pmem_memory_failure,
	TP_PROTO(const char *dev, u64 offset, u64 len, int error),
	TP_ARGS(dev, offset, len, error)
);

DEFINE_EVENT(pmem_range, pmem_repair,
	TP_PROTO(const char *dev, u64 offset, u64 len, int error),
	TP_ARGS(dev, offset, len, error)
);

TRACE_EVENT(pmem_expose,
	TP_PROTO(const char *dev, u64 offset, u64 len),
	TP_ARGS(dev, offset, len),
	TP_STRUCT__entry(
		__string(dev, dev)
		__field(u64, offset)
		__field(u64, len)
	),
	TP_fast_assign(
		__assign_str(dev);
		__entry->offset = offset;
		__entry->len = len;
	),
	TP_printk("dev=%s offset=%llu len=%llu",
		  __get_str(dev), __entry->offset, __entry->len)
);

TRACE_EVENT(pmem_flush,
	TP_PROTO(const char *dev, u64 duration_ns, int error),
	TP_ARGS(dev, duration_ns, error),
	TP_STRUCT__entry(
		__string(dev, dev)
		__field(u64, duration_ns)
		__field(int, error)
	),
	TP_fast_assign(
		__assign_str(dev);
		__entry->duration_ns = duration_ns;
		__entry->error = error;
	),
	TP_printk("dev=%s duration_ns=%llu error=%d",
		  __get_str(dev), __entry->duration_ns, __entry->error)
);

TRACE_EVENT(pmem_refuse,
	TP_PROTO(const char *dev, const char *op, u64 offset, u64 len, int error),
	TP_ARGS(dev, op, offset, len, error),
	TP_STRUCT__entry(
		__string(dev, dev)
		__string(op, op)
		__field(u64, offset)
		__field(u64, len)
		__field(int, error)
	),
	TP_fast_assign(
		__assign_str(dev);
		__assign_str(op);
		__entry->offset = offset;
		__entry->len = len;
		__entry->error = error;
	),
	TP_printk("dev=%s op=%s offset=%llu len=%llu error=%d",
		  __get_str(dev), __get_str(op), __entry->offset, __entry->len, __entry->error)
);

#endif /* _PMEM_RS_TRACEPOINTS_H */

/* Outside of the guard: define_trace.h reads this file again. */
#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE tracepoints
#include <trace/define_trace.h>
