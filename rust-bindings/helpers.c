// SPDX-License-Identifier: GPL-2.0
/*
 * Inline functions and macros of the kernel that Rust cannot call. Each has its own name with the
 * prefix `pmem_rs_helper_`, which the bindings remove. No logic here.
 */
#include <linux/badblocks.h>
#include <linux/blkdev.h>
#include <linux/bvec.h>
#include <linux/crash_dump.h>
#include <linux/dax.h>
#include <linux/device.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/io.h>
#include <linux/libnvdimm.h>
#include <linux/memremap.h>
#include <linux/mm.h>
#include <linux/numa.h>
#include <linux/pagemap.h>
#include <linux/percpu-refcount.h>
#include <linux/ratelimit.h>
#include <linux/rcupdate_wait.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/set_memory.h>
#include <linux/string.h>
#include <linux/suspend.h>
#include <linux/sysfs.h>
#include <linux/uaccess.h>
#include <linux/uio.h>
#include <linux/vmalloc.h>
#include <linux/wait_bit.h>
#include "nd.h"
#include "pmem.h"

void pmem_rs_helper_ratelimit_default_init(struct ratelimit_state *rs);
void pmem_rs_helper_ratelimit_default_init(struct ratelimit_state *rs)
{
	ratelimit_default_init(rs);
}

void *pmem_rs_helper_page_address(struct page *page);
void *pmem_rs_helper_page_address(struct page *page)
{
	return page_address(page);
}

int pmem_rs_helper_register_pm_notifier(struct notifier_block *nb);
int pmem_rs_helper_register_pm_notifier(struct notifier_block *nb)
{
	return register_pm_notifier(nb);
}

int pmem_rs_helper_unregister_pm_notifier(struct notifier_block *nb);
int pmem_rs_helper_unregister_pm_notifier(struct notifier_block *nb)
{
	return unregister_pm_notifier(nb);
}

bool pmem_rs_helper_is_kdump_kernel(void);
bool pmem_rs_helper_is_kdump_kernel(void)
{
	return is_kdump_kernel();
}

void pmem_rs_helper_device_lock(struct device *dev);
void pmem_rs_helper_device_lock(struct device *dev)
{
	device_lock(dev);
}

void pmem_rs_helper_device_unlock(struct device *dev);
void pmem_rs_helper_device_unlock(struct device *dev)
{
	device_unlock(dev);
}

void pmem_rs_helper_flush_dcache_page(struct page *page);
void pmem_rs_helper_flush_dcache_page(struct page *page)
{
	flush_dcache_page(page);
}

void *pmem_rs_helper_zero_page_address(void);
void *pmem_rs_helper_zero_page_address(void)
{
	return page_address(ZERO_PAGE(0));
}

void pmem_rs_helper_memcpy_flushcache(void *dst, const void *src, size_t len);
void pmem_rs_helper_memcpy_flushcache(void *dst, const void *src, size_t len)
{
	memcpy_flushcache(dst, src, len);
}

size_t pmem_rs_helper_copy_from_iter_flushcache(void *dst, size_t len, struct iov_iter *i);
size_t pmem_rs_helper_copy_from_iter_flushcache(void *dst, size_t len, struct iov_iter *i)
{
	return _copy_from_iter_flushcache(dst, len, i);
}

void pmem_rs_helper_arch_invalidate_pmem(void *addr, size_t size);
void pmem_rs_helper_arch_invalidate_pmem(void *addr, size_t size)
{
	arch_invalidate_pmem(addr, size);
}

#ifndef CONFIG_ARCH_HAS_COPY_MC
unsigned long pmem_rs_helper_copy_mc_to_kernel(void *dst, const void *src, unsigned int len);
unsigned long pmem_rs_helper_copy_mc_to_kernel(void *dst, const void *src, unsigned int len)
{
	return copy_mc_to_kernel(dst, src, len);
}
#endif

bool pmem_rs_helper_test_and_clear_pmem_poison(unsigned long pfn);
bool pmem_rs_helper_test_and_clear_pmem_poison(unsigned long pfn)
{
	return test_and_clear_pmem_poison(pfn_to_page(pfn));
}

int pmem_rs_helper_clear_mce_nospec(unsigned long pfn);
int pmem_rs_helper_clear_mce_nospec(unsigned long pfn)
{
	return clear_mce_nospec(pfn);
}

void *pmem_rs_helper_pfn_to_kaddr(unsigned long pfn);
void *pmem_rs_helper_pfn_to_kaddr(unsigned long pfn)
{
	return pfn_to_kaddr(pfn);
}

int pmem_rs_helper_dev_to_node(struct device *dev);
int pmem_rs_helper_dev_to_node(struct device *dev)
{
	return dev_to_node(dev);
}

int pmem_rs_helper_phys_to_target_node(u64 start);
int pmem_rs_helper_phys_to_target_node(u64 start)
{
	return phys_to_target_node(start);
}

int pmem_rs_helper_numa_map_to_online_node(int node);
int pmem_rs_helper_numa_map_to_online_node(int node)
{
	return numa_map_to_online_node(node);
}

struct kernfs_node *pmem_rs_helper_sysfs_get_dirent(struct kernfs_node *parent, const char *name);
struct kernfs_node *pmem_rs_helper_sysfs_get_dirent(struct kernfs_node *parent, const char *name)
{
	return sysfs_get_dirent(parent, name);
}

void pmem_rs_helper_bio_end_io_acct(struct bio *bio, unsigned long start_time);
void pmem_rs_helper_bio_end_io_acct(struct bio *bio, unsigned long start_time)
{
	bio_end_io_acct(bio, start_time);
}

void pmem_rs_helper_put_dev_pagemap(struct dev_pagemap *pgmap);
void pmem_rs_helper_put_dev_pagemap(struct dev_pagemap *pgmap)
{
	put_dev_pagemap(pgmap);
}

void pmem_rs_helper_synchronize_rcu_and_tasks(void);
void pmem_rs_helper_synchronize_rcu_and_tasks(void)
{
	synchronize_rcu_mult(call_rcu_hurry, call_rcu_tasks);
}

int pmem_rs_helper_fatal_signal_pending(struct task_struct *task);
int pmem_rs_helper_fatal_signal_pending(struct task_struct *task)
{
	return fatal_signal_pending(task);
}

bool pmem_rs_helper_dax_mapping(struct address_space *mapping);
bool pmem_rs_helper_dax_mapping(struct address_space *mapping)
{
	return dax_mapping(mapping);
}

void pmem_rs_helper_filemap_invalidate_lock(struct address_space *mapping);
void pmem_rs_helper_filemap_invalidate_lock(struct address_space *mapping)
{
	filemap_invalidate_lock(mapping);
}

bool pmem_rs_helper_filemap_invalidate_trylock(struct address_space *mapping);
bool pmem_rs_helper_filemap_invalidate_trylock(struct address_space *mapping)
{
	return down_write_trylock(&mapping->invalidate_lock);
}

void pmem_rs_helper_filemap_invalidate_unlock(struct address_space *mapping);
void pmem_rs_helper_filemap_invalidate_unlock(struct address_space *mapping)
{
	filemap_invalidate_unlock(mapping);
}

struct page *pmem_rs_helper_pfn_to_page(unsigned long pfn);
struct page *pmem_rs_helper_pfn_to_page(unsigned long pfn)
{
	return pfn_to_page(pfn);
}

unsigned long pmem_rs_helper_page_to_pfn(const struct page *page);
unsigned long pmem_rs_helper_page_to_pfn(const struct page *page)
{
	return page_to_pfn(page);
}

struct folio *pmem_rs_helper_page_folio(struct page *page);
struct folio *pmem_rs_helper_page_folio(struct page *page)
{
	return page_folio(page);
}

int pmem_rs_helper_folio_ref_count(const struct folio *folio);
int pmem_rs_helper_folio_ref_count(const struct folio *folio)
{
	return folio_ref_count(folio);
}

/*
 * As folio_mapcount(). The folio may have become a tail page of another one, for which that
 * function is a bug with CONFIG_DEBUG_VM_PGFLAGS. Here the result is then any number.
 */
int pmem_rs_helper_folio_mapcount_racy(const struct folio *folio);
int pmem_rs_helper_folio_mapcount_racy(const struct folio *folio)
{
	bool is_large = PageHead(&folio->page);

	return atomic_read(is_large ? &folio->_large_mapcount : &folio->_mapcount) + 1;
}

unsigned long pmem_rs_helper_folio_nr_pages(const struct folio *folio);
unsigned long pmem_rs_helper_folio_nr_pages(const struct folio *folio)
{
	return folio_nr_pages(folio);
}

long pmem_rs_helper_wait_dax_page_idle_timeout(struct page *page, unsigned long timeout);
long pmem_rs_helper_wait_dax_page_idle_timeout(struct page *page, unsigned long timeout)
{
	/* Like wait_var_event_timeout(), but does not count as load. */
	return ___wait_var_event(page, ___wait_cond_timeout(dax_page_is_idle(page)),
				 TASK_IDLE, 0, timeout, __ret = schedule_timeout(__ret));
}

void pmem_rs_helper_arch_wb_cache_pmem(void *addr, size_t size);
void pmem_rs_helper_arch_wb_cache_pmem(void *addr, size_t size)
{
	arch_wb_cache_pmem(addr, size);
}

bool pmem_rs_helper_nd_region_has_flush_function(const struct nd_region *nd_region);
bool pmem_rs_helper_nd_region_has_flush_function(const struct nd_region *nd_region)
{
	return nd_region->flush;
}

struct badblocks *pmem_rs_helper_nd_region_badblocks(struct nd_region *nd_region);
struct badblocks *pmem_rs_helper_nd_region_badblocks(struct nd_region *nd_region)
{
	return &nd_region->bb;
}

u64 pmem_rs_helper_nd_region_start(const struct nd_region *nd_region);
u64 pmem_rs_helper_nd_region_start(const struct nd_region *nd_region)
{
	return nd_region->ndr_start;
}

u64 pmem_rs_helper_nd_region_size(const struct nd_region *nd_region);
u64 pmem_rs_helper_nd_region_size(const struct nd_region *nd_region)
{
	return nd_region->ndr_size;
}

bool pmem_rs_helper_nd_region_is_cxl(const struct nd_region *nd_region);
bool pmem_rs_helper_nd_region_is_cxl(const struct nd_region *nd_region)
{
	return test_bit(ND_REGION_CXL, &nd_region->flags);
}

u16 pmem_rs_helper_nd_region_mappings(const struct nd_region *nd_region);
u16 pmem_rs_helper_nd_region_mappings(const struct nd_region *nd_region)
{
	return nd_region->ndr_mappings;
}

u64 pmem_rs_helper_nd_region_mapping_start(const struct nd_region *nd_region, u16 index);
u64 pmem_rs_helper_nd_region_mapping_start(const struct nd_region *nd_region, u16 index)
{
	return nd_region->mapping[index].start;
}

/* The NVDIMM, if it was not disabled: the region has a reference to the one it was bound with. */
static struct nvdimm_drvdata *nd_region_ndd(struct nd_region *nd_region, u16 index)
{
	struct nd_mapping *mapping = &nd_region->mapping[index];
	struct nvdimm_drvdata *ndd = to_ndd(mapping);

	return ndd == mapping->ndd ? ndd : NULL;
}

const struct resource *pmem_rs_helper_nd_region_dpa(struct nd_region *nd_region, u16 index);
const struct resource *pmem_rs_helper_nd_region_dpa(struct nd_region *nd_region, u16 index)
{
	struct nvdimm_drvdata *ndd = nd_region_ndd(nd_region, index);

	return ndd ? &ndd->dpa : NULL;
}

u32 pmem_rs_helper_nd_region_label_size(struct nd_region *nd_region, u16 index);
u32 pmem_rs_helper_nd_region_label_size(struct nd_region *nd_region, u16 index)
{
	struct nvdimm_drvdata *ndd = nd_region_ndd(nd_region, index);

	return ndd ? ndd->nslabel_size : 0;
}

bool pmem_rs_helper_nd_region_is_read_only(const struct nd_region *nd_region);
bool pmem_rs_helper_nd_region_is_read_only(const struct nd_region *nd_region)
{
	return READ_ONCE(nd_region->ro);
}

void pmem_rs_helper_pmem_wmb(void);
void pmem_rs_helper_pmem_wmb(void)
{
	pmem_wmb();
}

bool pmem_rs_helper_percpu_ref_tryget_live(struct percpu_ref *ref);
bool pmem_rs_helper_percpu_ref_tryget_live(struct percpu_ref *ref)
{
	return percpu_ref_tryget_live(ref);
}

void pmem_rs_helper_percpu_ref_get(struct percpu_ref *ref);
void pmem_rs_helper_percpu_ref_get(struct percpu_ref *ref)
{
	percpu_ref_get(ref);
}

void pmem_rs_helper_percpu_ref_put(struct percpu_ref *ref);
void pmem_rs_helper_percpu_ref_put(struct percpu_ref *ref)
{
	percpu_ref_put(ref);
}

void pmem_rs_helper_cond_resched(void);
void pmem_rs_helper_cond_resched(void)
{
	cond_resched();
}

void pmem_rs_helper_i_size_write(struct inode *inode, loff_t i_size);
void pmem_rs_helper_i_size_write(struct inode *inode, loff_t i_size)
{
	i_size_write(inode, i_size);
}

u64 pmem_rs_helper_bdev_nr_bytes(struct block_device *bdev);
u64 pmem_rs_helper_bdev_nr_bytes(struct block_device *bdev)
{
	return bdev_nr_bytes(bdev);
}

bool pmem_rs_helper_bdev_read_only(struct block_device *bdev);
bool pmem_rs_helper_bdev_read_only(struct block_device *bdev)
{
	return bdev_read_only(bdev);
}

unsigned long pmem_rs_helper_totalram_pages(void);
unsigned long pmem_rs_helper_totalram_pages(void)
{
	return totalram_pages();
}

void *pmem_rs_helper_vmap_dax_pages(struct page **pages, unsigned int count);
void *pmem_rs_helper_vmap_dax_pages(struct page **pages, unsigned int count)
{
	/* The protection is that of memremap_pages(). */
	return vmap(pages, count, VM_MAP, pgprot_decrypted(PAGE_KERNEL));
}
