/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The input of bindgen: C interfaces that the bindings of the kernel crate lack.
 * `bindgen_parameters` selects their items.
 */

/* Forward references to enums confuse bindgen; see rust/bindings/bindings_helper.h. */
#include <linux/hrtimer_types.h>

#include <linux/badblocks.h>
#include <linux/blkdev.h>
#include <linux/cacheflush.h>
#include <linux/dax.h>
#include <linux/libnvdimm.h>
#include <linux/memremap.h>
#include <linux/nd.h>
#include <linux/reboot.h>
#include <linux/vmalloc.h>
#include "btt.h"
#include "dax-private.h"
#include "nd.h"
#include "parameters.h"
#include "pfn.h"
#include "pmem_rs_lease.h"
#include "tracepoints.h"

/* bindgen cannot evaluate macros with casts, but it can evaluate initialised constants. */
const u32 PMEM_RS_CONST_BLK_FEAT_WRITE_CACHE = (__force u32)BLK_FEAT_WRITE_CACHE;
const u32 PMEM_RS_CONST_BLK_FEAT_FUA = (__force u32)BLK_FEAT_FUA;
const u32 PMEM_RS_CONST_BLK_FEAT_SYNCHRONOUS = (__force u32)BLK_FEAT_SYNCHRONOUS;
const u32 PMEM_RS_CONST_BLK_FEAT_NOWAIT = (__force u32)BLK_FEAT_NOWAIT;
const u32 PMEM_RS_CONST_BLK_FEAT_DAX = (__force u32)BLK_FEAT_DAX;
const u32 PMEM_RS_CONST_BLK_FEAT_IO_STAT = (__force u32)BLK_FEAT_IO_STAT;
const u32 PMEM_RS_CONST_REQ_OP_MASK = (__force u32)REQ_OP_MASK;
const u32 PMEM_RS_CONST_REQ_PREFLUSH = (__force u32)REQ_PREFLUSH;
const u32 PMEM_RS_CONST_REQ_FUA = (__force u32)REQ_FUA;
const u32 PMEM_RS_CONST_REQ_NOWAIT = (__force u32)REQ_NOWAIT;
const u8 PMEM_RS_CONST_BLK_STS_OK = (__force u8)BLK_STS_OK;
const u8 PMEM_RS_CONST_BLK_STS_IOERR = (__force u8)BLK_STS_IOERR;
const u8 PMEM_RS_CONST_BLK_STS_MEDIUM = (__force u8)BLK_STS_MEDIUM;
const u8 PMEM_RS_CONST_BLK_STS_AGAIN = (__force u8)BLK_STS_AGAIN;
const u8 PMEM_RS_CONST_BLK_STS_NOTSUPP = (__force u8)BLK_STS_NOTSUPP;
const u32 PMEM_RS_CONST_BLK_OPEN_READ = (__force u32)BLK_OPEN_READ;
const u32 PMEM_RS_CONST_BLK_OPEN_WRITE = (__force u32)BLK_OPEN_WRITE;
const u32 PMEM_RS_CONST_BLK_OPEN_EXCL = (__force u32)BLK_OPEN_EXCL;
const u32 PMEM_RS_CONST_S_DAX = S_DAX;
const u64 PMEM_RS_CONST_SB_BORN = SB_BORN;
const u64 PMEM_RS_CONST_SB_RDONLY = SB_RDONLY;
const u64 PMEM_RS_CONST_ARCH_MEMREMAP_PMEM = ARCH_MEMREMAP_PMEM;
const u32 PMEM_RS_CONST_ND_DRIVER_NAMESPACE_IO = ND_DRIVER_NAMESPACE_IO;
const u32 PMEM_RS_CONST_ND_DRIVER_NAMESPACE_PMEM = ND_DRIVER_NAMESPACE_PMEM;
const u32 PMEM_RS_CONST_ND_REGION_PAGEMAP = ND_REGION_PAGEMAP;
const u32 PMEM_RS_CONST_ND_REGION_PERSIST_MEMCTRL = ND_REGION_PERSIST_MEMCTRL;
const u32 PMEM_RS_CONST_PMD_ORDER = PMD_ORDER;
const u32 PMEM_RS_CONST_SECTION_SIZE_BITS = SECTION_SIZE_BITS;
const u32 PMEM_RS_CONST_XA_PRESENT = (__force u32)XA_PRESENT;
const u32 PMEM_RS_CONST_PAGECACHE_TAG_DIRTY = (__force u32)PAGECACHE_TAG_DIRTY;
const u32 PMEM_RS_CONST_PAGECACHE_TAG_TOWRITE = (__force u32)PAGECACHE_TAG_TOWRITE;
const bool PMEM_RS_CONST_HAS_UACCESS_FLUSHCACHE =
	IS_ENABLED(CONFIG_ARCH_HAS_UACCESS_FLUSHCACHE);
const bool PMEM_RS_CONST_HAS_HIGHMEM = IS_ENABLED(CONFIG_HIGHMEM);

#include "helpers.c"
