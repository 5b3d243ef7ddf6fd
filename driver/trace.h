/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Tracepoints: what a device does, for bpftrace and perf (events/ublk_drv/).
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM ublk_drv

#if !defined(UBLK_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define UBLK_TRACE_H

#include <linux/tracepoint.h>

DECLARE_EVENT_CLASS(ublk_tag,
	TP_PROTO(u32 dev, u16 q_id, u16 tag, int value),
	TP_ARGS(dev, q_id, tag, value),
	TP_STRUCT__entry(
		__field(u32, dev)
		__field(u16, q_id)
		__field(u16, tag)
		__field(int, value)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->q_id = q_id;
		__entry->tag = tag;
		__entry->value = value;
	),
	TP_printk("dev %u queue %u tag %u value %d", __entry->dev, __entry->q_id, __entry->tag,
		  __entry->value)
);

/* A request goes to the server; value is the command's result. */
DEFINE_EVENT(ublk_tag, ublk_dispatch,
	TP_PROTO(u32 dev, u16 q_id, u16 tag, int value),
	TP_ARGS(dev, q_id, tag, value)
);

/* The server ends a request; value is its result. */
DEFINE_EVENT(ublk_tag, ublk_commit,
	TP_PROTO(u32 dev, u16 q_id, u16 tag, int value),
	TP_ARGS(dev, q_id, tag, value)
);

/* A request met a closed gate or lost its server; value is enum ublk_gate. */
DEFINE_EVENT(ublk_tag, ublk_abort,
	TP_PROTO(u32 dev, u16 q_id, u16 tag, int value),
	TP_ARGS(dev, q_id, tag, value)
);

TRACE_EVENT(ublk_state,
	TP_PROTO(u32 dev, unsigned int from, unsigned int to),
	TP_ARGS(dev, from, to),
	TP_STRUCT__entry(
		__field(u32, dev)
		__field(unsigned int, from)
		__field(unsigned int, to)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->from = from;
		__entry->to = to;
	),
	TP_printk("dev %u state %u to %u", __entry->dev, __entry->from, __entry->to)
);

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
